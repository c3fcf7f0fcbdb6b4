#include "device.h"
#include "support.h"

#include <cuda_runtime_api.h>

static void check_cuda(cudaError_t error, const char *call)
{
    assert_that(error == cudaSuccess, "%s: %s", call, cudaGetErrorString(error));
}

#define CHECK_CUDA(call) check_cuda((call), #call)

static cudaStream_t stream(void)
{
    static cudaStream_t created;
    if (!created)
        CHECK_CUDA(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking));
    return created;
}

void *test_device_stream(void)
{
    return stream();
}

void *test_device_allocate(size_t bytes)
{
    void *memory = NULL;
    CHECK_CUDA(cudaMallocAsync(&memory, bytes, stream()));
    return memory;
}

void test_device_free(void *memory)
{
    CHECK_CUDA(cudaFreeAsync(memory, stream()));
}

void test_device_read(void *to, const void *from, size_t bytes)
{
    CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()));
    CHECK_CUDA(cudaStreamSynchronize(stream()));
}

void test_device_write(void *to, const void *from, size_t bytes)
{
    CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()));
    CHECK_CUDA(cudaStreamSynchronize(stream()));
}

void test_device_fill(void *memory, int byte, size_t bytes)
{
    CHECK_CUDA(cudaMemsetAsync(memory, byte, bytes, stream()));
}
