# The fast CPU path. Adds its sources to hpa. The algorithms are compiled once for each kind of real
# numbers; the tile operations besides for each instruction set, of which the plan picks one.

target_sources(hpa PRIVATE core/cpu/dispatch.c)

function(hpa_add_cpu_objects name)
  add_library(hpa_cpu_${name} OBJECT ${ARGN})
  target_include_directories(hpa_cpu_${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}
                                                     ${CMAKE_CURRENT_SOURCE_DIR}/include)
  target_link_libraries(hpa_cpu_${name} PRIVATE hpa_options OpenMP::OpenMP_C)
  target_sources(hpa PRIVATE $<TARGET_OBJECTS:hpa_cpu_${name}>)
endfunction()

foreach(bits 32 64)
  hpa_add_cpu_objects(f${bits} mask/mask_cpu.c forward/forward_cpu.c backward/backward_cpu.c)
  target_compile_definitions(hpa_cpu_f${bits} PRIVATE HPA_REAL_BITS=${bits})
endforeach()

# The tile operations are always optimised: without it they are no use in any build. They need the
# freedom to fuse a product with a sum, and to compute both sides of a choice; neither changes what
# is done with NaN, infinity or -0.
function(hpa_add_cpu_set set)
  foreach(bits 32 64)
    hpa_add_cpu_objects(${set}_f${bits} core/cpu/tile_kernels.c)
    target_compile_definitions(hpa_cpu_${set}_f${bits}
                               PRIVATE HPA_REAL_BITS=${bits} HPA_TILES_NAME=hpa_tiles_${set}_f${bits})
    target_compile_options(hpa_cpu_${set}_f${bits} PRIVATE -O3 -ffp-contract=fast
                                                           -fno-trapping-math -fno-math-errno ${ARGN})
  endforeach()
endfunction()

set(hpa_cpu_sets generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  list(PREPEND hpa_cpu_sets avx512 avx2)
  hpa_add_cpu_set(avx2 -mavx2 -mfma)
  hpa_add_cpu_set(avx512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl
                  -mprefer-vector-width=512)
  set_property(SOURCE core/cpu/dispatch.c APPEND PROPERTY COMPILE_DEFINITIONS HPA_CPU_X86)
endif()
hpa_add_cpu_set(generic)
list(JOIN hpa_cpu_sets " " hpa_cpu_sets)
set_property(SOURCE core/build_info.c core/cpu/dispatch.c
             APPEND PROPERTY COMPILE_DEFINITIONS "HPA_CPU_SETS=\"${hpa_cpu_sets}\"")
