/* Shared memory by its 32-bit address, as instructions of its own take it: a generic pointer makes the
 * compiler ask at each access which memory it is. */
#ifndef HPA_CORE_CUDA_SHARED_CUH
#define HPA_CORE_CUDA_SHARED_CUH

#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* The same, which the compiler then keeps in a register: left alone it works the address out anew
 * at each use, and that takes a special register's latency. */
__device__ __forceinline__ uint32_t kept_address(const void *pointer)
{
    uint32_t address = shared_address(pointer);
    asm volatile("" : "+r"(address));
    return address;
}

__device__ __forceinline__ uint32_t load_shared(uint32_t address)
{
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t address)
{
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t value)
{
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

/* The greater of what is there and value, whoever else does so. */
__device__ __forceinline__ void raise_shared(uint32_t address, uint32_t value)
{
    asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

#endif
