# One source file for each entry of core/cuda/instances.h and each operation, in the build folder.
# Adds them to hpa_cuda_sources.

file(READ ${CMAKE_CURRENT_SOURCE_DIR}/core/cuda/instances.h hpa_instances)
string(REGEX MATCHALL "X\\(HPA_[A-Z0-9]+, [a-z0-9]+, [a-z0-9_]+, [0-9]+\\)" hpa_instances
                      "${hpa_instances}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
                                       ${CMAKE_CURRENT_SOURCE_DIR}/core/cuda/instances.h)
foreach(instance ${hpa_instances})
  string(REGEX MATCH ", ([a-z0-9]+), ([a-z0-9_]+), ([0-9]+)" _ "${instance}")
  set(HPA_NAME ${CMAKE_MATCH_1})
  set(HPA_TYPE ${CMAKE_MATCH_2})
  set(HPA_HEAD_DIM ${CMAKE_MATCH_3})
  foreach(HPA_OPERATION forward backward)
    string(TOUPPER ${HPA_OPERATION} HPA_OPERATION_UPPER)
    set(source
        ${CMAKE_CURRENT_BINARY_DIR}/instances/${HPA_OPERATION}_mma_${HPA_NAME}_${HPA_HEAD_DIM}.cu)
    configure_file(cmake/mma_instance.cu.in ${source} @ONLY)
    list(APPEND hpa_cuda_sources ${source})
  endforeach()
endforeach()
