# cmake -D BUILD=... -D WORK=... -P install.cmake: installs to WORK/prefix. Installed elsewhere first
# and then moved, so that nothing in it may depend on where it was installed to. What an earlier run
# left goes.
file(GLOB earlier ${WORK}/find_package_* ${WORK}/pkg_config_* ${WORK}/prefix*)
if(earlier)
  file(REMOVE_RECURSE ${earlier})
endif()
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix-first
                COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${WORK}/prefix-first ${WORK}/prefix)
