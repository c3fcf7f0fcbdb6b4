# Installs the library (static beside shared from the same objects), the programs and their manual
# pages, and what find_package and pkg-config need to find them. Components, which become packages:
# runtime, development, tools.

include(CMakePackageConfigHelpers)

set(hpa_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/hpa)
get_target_property(hpa_type hpa TYPE)
if(hpa_type STREQUAL "SHARED_LIBRARY")
  set(hpa_is_static OFF)
  # $<TARGET_OBJECTS:hpa> leaves out the objects that hpa itself takes from elsewhere.
  get_target_property(objects hpa SOURCES)
  list(FILTER objects INCLUDE REGEX "TARGET_OBJECTS")
  add_library(hpa_static STATIC $<TARGET_OBJECTS:hpa> ${objects})
  target_include_directories(hpa_static PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
  get_target_property(libraries hpa LINK_LIBRARIES)
  target_link_libraries(hpa_static PRIVATE ${libraries})
  set_target_properties(hpa_static PROPERTIES OUTPUT_NAME hpa LINKER_LANGUAGE C)
  install(TARGETS hpa_static EXPORT hpa-static-targets ARCHIVE COMPONENT development
          INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT hpa-static-targets NAMESPACE hpa:: DESTINATION ${hpa_package_dir}
          COMPONENT development)
else()
  set(hpa_is_static ON)
endif()

set(hpa_headers include/hpa/hpa.h include/hpa/hpa.hpp include/hpa/dlpack.h)
set(hpa_libraries hpa)
if(TARGET hpa_gradcheck)
  set_target_properties(hpa_gradcheck PROPERTIES EXPORT_NAME gradcheck)
  list(APPEND hpa_libraries hpa_gradcheck)
  list(APPEND hpa_headers include/hpa/gradcheck.h)
endif()
install(TARGETS ${hpa_libraries} EXPORT hpa-targets
        LIBRARY COMPONENT runtime NAMELINK_COMPONENT development
        ARCHIVE COMPONENT development
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${hpa_headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/hpa COMPONENT development)
install(EXPORT hpa-targets NAMESPACE hpa:: DESTINATION ${hpa_package_dir} COMPONENT development)

# A program's manual page says what the program says of itself with --help.
set(hpa_title_hpa-gradcheck "check gradients of sparse attention against finite differences")
set(hpa_title_hpa-bench "time mask, forward and backward of sparse attention")
set(hpa_title_hpa-finetune "train a small transformer with sparse attention")
function(hpa_install_manual_page target)
  set(page ${PROJECT_BINARY_DIR}/man/${target}.1)
  add_custom_command(
    OUTPUT ${page}
    COMMAND ${PROJECT_SOURCE_DIR}/cmake/manual_page.sh $<TARGET_FILE:${target}>
            "${hpa_title_${target}}" ${PROJECT_VERSION} ${page}
    DEPENDS ${target} ${PROJECT_SOURCE_DIR}/cmake/manual_page.sh
    VERBATIM)
  add_custom_target(${target}-manual-page ALL DEPENDS ${page})
  install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT tools)
endfunction()

# The programs find the library beside them, wherever the prefix is moved to.
file(RELATIVE_PATH hpa_lib_from_bin ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
foreach(target IN ITEMS hpa_gradcheck hpa-gradcheck hpa-bench hpa-finetune)
  if(NOT TARGET ${target})
    continue()
  endif()
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE")
    set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN/${hpa_lib_from_bin}")
    install(TARGETS ${target} COMPONENT tools)
    hpa_install_manual_page(${target})
  else()
    set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN")
  endif()
endforeach()

configure_package_config_file(cmake/hpa-config.cmake.in ${PROJECT_BINARY_DIR}/hpa-config.cmake
                              INSTALL_DESTINATION ${hpa_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/hpa-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/hpa-config.cmake ${PROJECT_BINARY_DIR}/hpa-config-version.cmake
        DESTINATION ${hpa_package_dir} COMPONENT development)

set(hpa_private_libs "${OpenMP_C_FLAGS} -lm")
if(hpa_has_cuda)
  string(APPEND hpa_private_libs " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl -lpthread")
endif()
set(hpa_pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH hpa_prefix_from_pkgconfig ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
     ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" hpa_prefix_from_pkgconfig ${hpa_prefix_from_pkgconfig})
configure_file(cmake/hpa.pc.in ${PROJECT_BINARY_DIR}/hpa.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/hpa.pc DESTINATION ${hpa_pkgconfig_dir} COMPONENT development)

if(PROJECT_IS_TOP_LEVEL)
  include(cmake/package.cmake)
endif()
