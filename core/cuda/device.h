/* What the library asks about a CUDA device. Plain C: no CUDA header in it. */
#ifndef HPA_CORE_CUDA_DEVICE_H
#define HPA_CORE_CUDA_DEVICE_H

#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hpa_cuda_device {
    int32_t id;
    int32_t architecture; /* 10 * major + minor: 90 for Hopper */
    bool sm90a;           /* a Hopper device, and the library has code made for it */
    int32_t multiprocessors;
    int64_t shared_bytes;      /* shared memory that one block can ask for */
    int64_t shared_bytes_each; /* shared memory of one multiprocessor */
    int64_t l2_bytes;
    char name[64];
} hpa_cuda_device;

/* HPA_NO_DEVICE without a driver or a device, HPA_INVALID_DEVICE for an id past the last,
 * HPA_UNSUPPORTED_ARCHITECTURE when this library holds no code that the device can run. */
hpa_status hpa_cuda_device_query(int32_t id, hpa_cuda_device *device);

/* Makes the device current and remembers which one was. Each enter is followed by a leave, which
 * hands status on. */
hpa_status hpa_cuda_enter(int32_t id, int32_t *before);
hpa_status hpa_cuda_leave(int32_t before, hpa_status status);

#ifdef __cplusplus
}
#endif
#endif
