# A user's configuration, without a preset, lets warnings be warnings: another compiler has others.
#   cmake -D SOURCE=… -D FOLDER=… -P plain_configure.cmake
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${FOLDER} RESULT_VARIABLE status OUTPUT_QUIET)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "cmake -S . -B FOLDER fails")
endif()
file(READ ${FOLDER}/compile_commands.json commands)
if(NOT commands MATCHES "-Wall" OR commands MATCHES "-Werror")
  message(FATAL_ERROR "a plain configuration asks for no warnings, or makes them errors")
endif()
