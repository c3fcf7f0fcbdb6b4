# The CUDA backend, when it is wanted and the toolkit is there. Adds its sources to hpa.

set(HPA_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO (when a toolkit is found)")
set_property(CACHE HPA_CUDA PROPERTY STRINGS ON OFF AUTO)
set(HPA_CUDA_ARCHITECTURES "80;90a-real" CACHE STRING
    "CUDA architectures: by default code for 8.x, for Hopper, and PTX for what comes later")

set(hpa_cuda_sources
    core/cuda/device.cu
    core/cuda/scan.cu
    core/cuda/tma_map.cu
    mask/mask_cuda.cu
    mask/transpose_cuda.cu
    mask/inspect_cuda.cu
    mask/validate_cuda.cu
    mask/csr_cuda.cu
    forward/forward_simt.cu
    forward/forward_sm90.cu
    backward/backward_simt.cu
    backward/backward_sm90.cu)

# Not find_package alone: a toolkit without a host compiler that it accepts cannot build.
set(hpa_has_cuda OFF)
if(HPA_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(hpa_has_cuda ON)
  endif()
elseif(HPA_CUDA)
  set(hpa_has_cuda ON)
endif()
message(STATUS "HPA_CUDA=${HPA_CUDA}: CUDA backend ${hpa_has_cuda}")
if(NOT hpa_has_cuda)
  return()
endif()

include(cmake/instances.cmake)
enable_language(CUDA)
find_package(CUDAToolkit 12.0 REQUIRED)
target_sources(hpa PRIVATE ${hpa_cuda_sources})
target_compile_definitions(hpa PRIVATE HPA_WITH_CUDA)
list(JOIN HPA_CUDA_ARCHITECTURES ", " architectures)
set_property(
  SOURCE core/build_info.c APPEND
  PROPERTY COMPILE_DEFINITIONS
           "HPA_CUDA_BUILD=\", cuda (nvcc ${CMAKE_CUDA_COMPILER_VERSION}\; ${architectures})\"")
if(HPA_CUDA_ARCHITECTURES MATCHES "90a")
  target_compile_definitions(hpa PRIVATE HPA_WITH_SM90A)
endif()
# C++20 for designated initialisers. CUDA_STANDARD 20 is not known to CMake 3.25.
target_compile_options(
  hpa PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20
              -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics
              -Xptxas=-warn-spills --expt-relaxed-constexpr -lineinfo>)
# The library needs no C++ runtime: its .cu files use none, and what CMake links besides is dropped.
target_link_options(hpa PRIVATE -Wl,--as-needed)
target_link_libraries(hpa PRIVATE CUDA::cudart_static)
set_target_properties(
  hpa PROPERTIES CUDA_ARCHITECTURES "${HPA_CUDA_ARCHITECTURES}"
                 CUDA_VISIBILITY_PRESET hidden
                 CUDA_RUNTIME_LIBRARY None
                 LINKER_LANGUAGE C)
