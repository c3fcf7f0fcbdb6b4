# The library libhpa: core, mask, forward, backward, plan.

set(hpa_sources
    core/status.c
    core/build_info.c
    core/desc.c
    core/tensor.c
    core/geometry.c
    core/mask_layout.c
    core/check.c
    mask/mask.c
    mask/mask_ref.c
    mask/transpose_cpu.c
    mask/inspect.c
    mask/inspect_cpu.c
    forward/forward.c
    forward/forward_ref.c
    backward/backward.c
    backward/backward_ref.c
    plan/plan.c)

# The commit is a fact of the source tree at configure time; a tarball has none.
find_package(Git QUIET)
set(hpa_commit "unknown")
if(GIT_FOUND)
  execute_process(
    COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=12
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    OUTPUT_VARIABLE hpa_git_commit OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE hpa_git_result ERROR_QUIET)
  if(hpa_git_result EQUAL 0)
    set(hpa_commit ${hpa_git_commit})
  endif()
endif()
set_source_files_properties(
  core/build_info.c PROPERTIES
  COMPILE_DEFINITIONS
  "HPA_COMMIT=\"${hpa_commit}\";HPA_COMPILER=\"${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}\"")

add_library(hpa ${hpa_sources})
add_library(hpa::hpa ALIAS hpa)
target_include_directories(
  hpa
  PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
         $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(hpa PRIVATE $<BUILD_INTERFACE:hpa_options> OpenMP::OpenMP_C m)
set_target_properties(hpa PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})

include(cmake/cpu.cmake)
include(cmake/cuda.cmake)
