#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool fail(failure *why, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why->text, sizeof why->text, format, arguments);
    va_end(arguments);
    return false;
}

bool fail_to_write(failure *why, const char *path, int error)
{
    return fail(why, "cannot write %s: %s, expected a place for a file and room for it", path,
                strerror(error));
}
