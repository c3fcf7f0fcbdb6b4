# The fast CPU path. Adds its sources to hpa: the algorithms once, and the tile operations once for
# each instruction set, of which the plan picks one when it is made.

target_sources(hpa PRIVATE core/cpu/dispatch.c mask/mask_cpu.c forward/forward_cpu.c
                           backward/backward_cpu.c)

# The tile operations are always optimised: without it they are no use in any build. They need the
# freedom to fuse a product with a sum, and to compute both sides of a choice; neither changes what
# is done with NaN, infinity or -0.
function(hpa_add_cpu_set name)
  add_library(hpa_cpu_${name} OBJECT core/cpu/tile_kernels.c)
  target_include_directories(hpa_cpu_${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}
                                                     ${CMAKE_CURRENT_SOURCE_DIR}/include)
  target_compile_definitions(hpa_cpu_${name} PRIVATE HPA_CPU_SET=${name})
  target_compile_options(hpa_cpu_${name} PRIVATE -O3 -ffp-contract=fast -fno-trapping-math
                                                 -fno-math-errno ${ARGN})
  target_link_libraries(hpa_cpu_${name} PRIVATE hpa_options)
  target_sources(hpa PRIVATE $<TARGET_OBJECTS:hpa_cpu_${name}>)
endfunction()

hpa_add_cpu_set(generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  hpa_add_cpu_set(avx2 -mavx2 -mfma)
  hpa_add_cpu_set(avx512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl
                  -mprefer-vector-width=512)
  set_source_files_properties(core/cpu/dispatch.c PROPERTIES COMPILE_DEFINITIONS HPA_CPU_X86)
endif()
