/* Running sums of arrays on the device. */
#ifndef HPA_CORE_CUDA_SCAN_H
#define HPA_CORE_CUDA_SCAN_H

#include "core/cuda/launch.h"

/* Elements of scratch that a scan of n values needs. */
int64_t hpa_cuda_scan_scratch(int64_t n);

/* values[i] becomes values[0] + ... + values[i]. A number of launches that n does not change. */
hpa_status hpa_cuda_inclusive_sum(int64_t *values, int64_t n, int64_t *scratch,
                                  cudaStream_t stream);

#endif
