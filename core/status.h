/* How a function of the library fails: it returns a status and leaves a sentence for the caller. */
#ifndef HPA_CORE_STATUS_H
#define HPA_CORE_STATUS_H

#include "hpa/hpa.h"

#if defined(__GNUC__)
#define HPA_PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#else
#define HPA_PRINTF_LIKE(text, first)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Remembers the sentence for this thread and returns status. */
hpa_status hpa_fail(hpa_status status, const char *format, ...) HPA_PRINTF_LIKE(2, 3);

#define HPA_TRY(call)                             \
    do {                                          \
        const hpa_status hpa_try_status = (call); \
        if (hpa_try_status != HPA_OK)             \
            return hpa_try_status;                \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
