/* Elements one at a time: every dtype, summed in float, or in double for f64. */
#ifndef HPA_CORE_CUDA_SCALAR_CUH
#define HPA_CORE_CUDA_SCALAR_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

template <typename T> using sum_of = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ double to_sum(double x)
{
    return x;
}
__device__ __forceinline__ float to_sum(float x)
{
    return x;
}
__device__ __forceinline__ float to_sum(__half x)
{
    return __half2float(x);
}
__device__ __forceinline__ float to_sum(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

template <typename T> __device__ __forceinline__ T from_sum(sum_of<T> x)
{
    return T(x);
}
template <> __device__ __forceinline__ __half from_sum<__half>(float x)
{
    return __float2half_rn(x);
}
template <> __device__ __forceinline__ __nv_bfloat16 from_sum<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}

#endif
