/* CUDA calls and launches as hpa_status: a failure names the kernel or the call. For .cu files. */
#ifndef HPA_CORE_CUDA_LAUNCH_H
#define HPA_CORE_CUDA_LAUNCH_H

#include "core/cuda/device.h"

#include <cuda_runtime.h>
#include <utility>

/* HPA_OK, or HPA_CUDA_ERROR (HPA_NO_DEVICE when there is none) with "what: CUDA's own words". Clears
 * the error, so that the caller's next CUDA call does not meet it. */
hpa_status hpa_cuda_status(cudaError_t error, const char *what);

#define HPA_CUDA_TRY(call) HPA_TRY(hpa_cuda_status((call), #call))

static inline cudaStream_t hpa_cuda_stream(const hpa_exec *exec)
{
    return exec ? (cudaStream_t)exec->stream : nullptr;
}

/* Most blocks that a launch of one-dimensional grids asks for; kernels stride over the rest. */
#define HPA_CUDA_MAX_BLOCKS INT64_C(0x7fffffff)

/* Lets a kernel have as much dynamic shared memory as the device has to give, so that launches of it
 * from several threads do not depend on each other. Does nothing where what it may have will do. */
hpa_status hpa_cuda_allow_shared(const char *name, const void *kernel, size_t shared_bytes);

/* kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...), or nothing when blocks is 0. */
template <typename... Parameters, typename... Arguments>
hpa_status hpa_cuda_launch(const char *name, void (*kernel)(Parameters...), dim3 blocks,
                           dim3 threads, size_t shared_bytes, cudaStream_t stream,
                           Arguments &&...arguments)
{
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0)
        return HPA_OK;
    if (shared_bytes > 0)
        HPA_TRY(hpa_cuda_allow_shared(name, (const void *)kernel, shared_bytes));
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return hpa_cuda_status(
        cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

#endif
