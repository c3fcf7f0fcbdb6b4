/* Memory of a CUDA device, in the order of the default stream, on which the checker also runs the
 * library. A copy that fails leaves NaNs to be found by the comparison. */
#include "buffer.h"

#include <cuda_runtime_api.h>
#include <string.h>

static void *allocate(size_t bytes)
{
    void *data = NULL;
    return cudaMalloc(&data, bytes > 0 ? bytes : 1) == cudaSuccess ? data : NULL;
}

static void release(void *data)
{
    cudaFree(data);
}

static void copy_in(void *to, const void *host, size_t bytes)
{
    if (cudaMemcpy(to, host, bytes, cudaMemcpyHostToDevice) != cudaSuccess)
        cudaMemset(to, 0xff, bytes);
}

static void copy_out(void *host, const void *from, size_t bytes)
{
    if (cudaMemcpy(host, from, bytes, cudaMemcpyDeviceToHost) != cudaSuccess)
        memset(host, 0xff, bytes);
}

static bool wait(void)
{
    return cudaStreamSynchronize(NULL) == cudaSuccess;
}

static int32_t enter(int32_t id)
{
    int before = id;
    cudaGetDevice(&before);
    cudaSetDevice(id);
    return before;
}

extern const struct memory cuda_memory;
const struct memory cuda_memory = {allocate, release, copy_in, copy_out, wait, enter};
