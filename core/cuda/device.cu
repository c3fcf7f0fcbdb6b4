#include "core/cuda/launch.h"

#include <stdio.h>
#include <string.h>

/* Never run: whether the device has code for it says whether it has code for the library. */
__global__ void hpa_cuda_probe_kernel()
{
}

static bool is_no_device(cudaError_t error)
{
    if (error == cudaErrorNoDevice || error == cudaErrorStubLibrary)
        return true;
    int driver = 0; /* an old driver has a version, an absent one has none */
    return error == cudaErrorInsufficientDriver &&
           (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0);
}

hpa_status hpa_cuda_status(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return HPA_OK;
    cudaGetLastError();
    if (is_no_device(error))
        return hpa_fail(HPA_NO_DEVICE, "the machine has no CUDA device, or no driver for it (%s)",
                        cudaGetErrorName(error));
    return hpa_fail(HPA_CUDA_ERROR, "%s: %s (%s)", what, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

hpa_status hpa_cuda_allow_shared(const char *name, const void *kernel, size_t shared_bytes)
{
    cudaFuncAttributes now;
    HPA_TRY(hpa_cuda_status(cudaFuncGetAttributes(&now, kernel), name));
    if (shared_bytes <= (size_t)now.maxDynamicSharedSizeBytes)
        return HPA_OK;
    int device = 0, most = 0;
    HPA_CUDA_TRY(cudaGetDevice(&device));
    HPA_CUDA_TRY(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return hpa_cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                most - (int)now.sharedSizeBytes),
                           name);
}

hpa_status hpa_cuda_enter(int32_t id, int32_t *before)
{
    HPA_CUDA_TRY(cudaGetDevice(before));
    if (*before != id)
        HPA_CUDA_TRY(cudaSetDevice(id));
    return HPA_OK;
}

hpa_status hpa_cuda_leave(int32_t before, hpa_status status)
{
    int now = before;
    cudaGetDevice(&now);
    if (now != before)
        cudaSetDevice(before);
    return status;
}

static hpa_status query_attribute(const hpa_cuda_device *device, cudaDeviceAttr attribute,
                                  int64_t *value)
{
    int number = 0;
    HPA_CUDA_TRY(cudaDeviceGetAttribute(&number, attribute, device->id));
    *value = number;
    return HPA_OK;
}

static hpa_status query_attributes(hpa_cuda_device *device)
{
    int64_t major, minor, multiprocessors;
    HPA_TRY(query_attribute(device, cudaDevAttrComputeCapabilityMajor, &major));
    HPA_TRY(query_attribute(device, cudaDevAttrComputeCapabilityMinor, &minor));
    HPA_TRY(query_attribute(device, cudaDevAttrMultiProcessorCount, &multiprocessors));
    HPA_TRY(
        query_attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin, &device->shared_bytes));
    HPA_TRY(query_attribute(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                            &device->shared_bytes_each));
    HPA_TRY(query_attribute(device, cudaDevAttrL2CacheSize, &device->l2_bytes));
    device->architecture = (int32_t)(10 * major + minor);
#ifdef HPA_WITH_SM90A
    device->sm90a = device->architecture == 90;
#endif
    device->multiprocessors = (int32_t)multiprocessors;
    cudaDeviceProp properties;
    HPA_CUDA_TRY(cudaGetDeviceProperties(&properties, device->id));
    snprintf(device->name, sizeof device->name, "%.63s", properties.name);
    return HPA_OK;
}

static hpa_status check_code(const hpa_cuda_device *device)
{
    cudaFuncAttributes attributes;
    const cudaError_t error =
        cudaFuncGetAttributes(&attributes, (const void *)hpa_cuda_probe_kernel);
    if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction)
        return hpa_cuda_status(error, "cudaFuncGetAttributes");
    cudaGetLastError();
    return hpa_fail(HPA_UNSUPPORTED_ARCHITECTURE,
                    "device %d, %s, has compute capability %d.%d, for which this library was not "
                    "built",
                    device->id, device->name, device->architecture / 10, device->architecture % 10);
}

hpa_status hpa_cuda_device_query(int32_t id, hpa_cuda_device *device)
{
    int count = 0;
    HPA_CUDA_TRY(cudaGetDeviceCount(&count));
    if (count == 0)
        return hpa_fail(HPA_NO_DEVICE, "the machine has no CUDA device");
    if (id >= count)
        return hpa_fail(HPA_INVALID_DEVICE, "desc.device_id is %d, expected 0 to %d", id,
                        count - 1);
    memset(device, 0, sizeof *device);
    device->id = id;
    HPA_TRY(query_attributes(device));
    int32_t before;
    HPA_TRY(hpa_cuda_enter(id, &before));
    return hpa_cuda_leave(before, check_code(device));
}
