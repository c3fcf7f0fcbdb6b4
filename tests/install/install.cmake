# cmake -D BUILD=... -D PREFIX=... -P install.cmake: a fresh prefix, moved once so that nothing in it
# may depend on where it was installed to.
file(REMOVE_RECURSE ${PREFIX} ${PREFIX}-first)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX}-first
                COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${PREFIX}-first ${PREFIX})
