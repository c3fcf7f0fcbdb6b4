/* The bulk tensor copy engine of sm_90 and the barriers that it completes on.
 *
 * A tensor map describes a whole q, k or v in global memory; a box of it (64 head-dim columns by some
 * tokens, or all columns as panels of 64, one after another) is fetched by one instruction into shared
 * memory, rows of 128 bytes in the 128-byte swizzle that wgmma reads. Boxes must start at multiples of
 * 1024 bytes of shared memory. */
#ifndef HPA_CORE_CUDA_TMA_CUH
#define HPA_CORE_CUDA_TMA_CUH

#include <cuda.h>

#include "core/cuda/shared.cuh"

#define HPA_TMA_COLUMNS 64 /* 16-bit elements in the 128 bytes of a swizzled row */

__device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals));
}

/* Makes initialised barriers visible to the copy engine; then synchronise the block. */
__device__ __forceinline__ void barrier_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* barrier: its address in shared memory. */
__device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    barrier_arrive(shared_address(barrier));
}

/* Makes the phase wait for that many bytes of copies. */
__device__ __forceinline__ void barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

/* Arrives, and makes the phase wait for that many bytes of copies as well. */
__device__ __forceinline__ void barrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

/* Waits for the end of the phase with that parity: a fresh barrier is in phase 0, and waiting for
 * parity 1 of it returns at once. */
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "wait:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra.uni finished;\n"
                 "bra.uni wait;\n"
                 "finished:\n"
                 "}\n" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    barrier_wait(shared_address(barrier), parity);
}

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Fetches the map's box that begins at (column, token, head, batch). */
__device__ __forceinline__ void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier,
                                         int32_t column, int32_t token, int32_t head, int32_t batch)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(token), "r"(head),
                 "r"(batch)
                 : "memory");
}

/* Fetches whole rows from a map of rows: its box begins at (token, head, batch). */
__device__ __forceinline__ void tma_load_rows(void *shared, const CUtensorMap *map,
                                              uint64_t *barrier, int32_t token, int32_t head,
                                              int32_t batch)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %3, %5, %6}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(token), "r"(head), "r"(batch)
                 : "memory");
}

/* Fetches consecutive bytes: 16-byte aligned at both ends, and a multiple of 16 of them. */
__device__ __forceinline__ void bulk_load(void *shared, const void *global, uint32_t bytes,
                                          uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

#endif
