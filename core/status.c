#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512];

hpa_status hpa_fail(hpa_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

const char *hpa_last_error(void)
{
    return last_error;
}

const char *hpa_status_name(hpa_status status)
{
    switch (status) {
#define STATUS_NAME(name, value, sentence) \
    case name:                             \
        return #name;
        HPA_STATUS_LIST(STATUS_NAME)
#undef STATUS_NAME
    }
    return "HPA_UNKNOWN_STATUS";
}

const char *hpa_status_string(hpa_status status)
{
    switch (status) {
#define STATUS_SENTENCE(name, value, sentence) \
    case name:                                 \
        return sentence;
        HPA_STATUS_LIST(STATUS_SENTENCE)
#undef STATUS_SENTENCE
    }
    return "unknown status";
}
