# cmake -DNM=... -DLIBRARY=... -DOBJECTS=a;b;... [-DSHARED=ON] -P check_symbols.cmake
# The library's objects import nothing that prints or ends the process, and a shared library exports
# hpa_ symbols alone (and what a sanitizer adds).

cmake_minimum_required(VERSION 3.25)

set(forbidden
    printf vprintf fprintf vfprintf dprintf vdprintf puts fputs putchar putc fputc putchar_unlocked
    fwrite write writev perror psignal syslog vsyslog err errx warn warnx verr verrx vwarn vwarnx
    stdout stderr exit _exit _Exit quick_exit abort raise kill __assert_fail __assert system popen
    signal sigaction longjmp __printf_chk __fprintf_chk __vprintf_chk __vfprintf_chk __dprintf_chk
    __longjmp_chk)

function(read_symbols out)
  execute_process(COMMAND ${NM} ${ARGN} OUTPUT_VARIABLE text RESULT_VARIABLE result ERROR_VARIABLE error)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${NM} ${ARGN} failed: ${error}")
  endif()
  string(REPLACE "\n" ";" ${out} "${text}")
  set(${out} "${${out}}" PARENT_SCOPE)
endfunction()

list(LENGTH OBJECTS count)
if(count LESS 10)
  message(FATAL_ERROR "only ${count} objects to look at: ${OBJECTS}")
endif()
set(imports 0)
foreach(object IN LISTS OBJECTS)
  read_symbols(lines --undefined-only ${object})
  foreach(line IN LISTS lines)
    if(line MATCHES "[UwvV] ([^ @]+)")
      math(EXPR imports "${imports} + 1")
      if(CMAKE_MATCH_1 IN_LIST forbidden)
        message(SEND_ERROR "${object} imports ${CMAKE_MATCH_1}")
      endif()
    endif()
  endforeach()
endforeach()
if(imports LESS 20)
  message(FATAL_ERROR "only ${imports} imports found: has the output of ${NM} another form?")
endif()

if(SHARED)
  read_symbols(lines --dynamic --defined-only ${LIBRARY})
  set(exports 0)
  foreach(line IN LISTS lines)
    if(line MATCHES "^[^ ]* *[A-Za-z] ([^ @]+)")
      math(EXPR exports "${exports} + 1")
      if(NOT CMAKE_MATCH_1 MATCHES "^(hpa_|__odr_asan|__[a-z]+san_)")
        message(SEND_ERROR "${LIBRARY} exports ${CMAKE_MATCH_1}")
      endif()
    endif()
  endforeach()
  if(exports LESS 15)
    message(FATAL_ERROR "only ${exports} exports found")
  endif()
endif()
message(STATUS "${count} objects, ${imports} imports, none forbidden")
