/* What the warps of a Hopper kernel share: rings of stages that a producer fills and warpgroups empty,
 * and products of whole tiles.
 *
 * Tiles lie in shared memory as tma.cuh fetches them: panels of 64 columns, rows of 128 bytes. */
#ifndef HPA_CORE_CUDA_WARPGROUP_CUH
#define HPA_CORE_CUDA_WARPGROUP_CUH

#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/tma.cuh"
#include "core/cuda/wgmma.cuh"

#define GROUP_ROWS 64 /* of a warpgroup's products */

/* Panels are laid out for shared memory that begins at a multiple of 1024 bytes, as declared. */
__device__ __forceinline__ void require_panel_alignment(const void *shared)
{
    if (shared_address(shared) % 1024 != 0)
        __trap();
}

/* Position in a ring of stages. */
template <int stages> struct stage_ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance(int by = 1)
    {
        stage += by;
        if (stage >= stages) {
            stage -= stages;
            phase ^= 1;
        }
    }
};

/* This warp has read what the barrier guards. */
__device__ __forceinline__ void release_stage(uint32_t barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(barrier);
}

__device__ __forceinline__ void release_stage(uint64_t *barrier)
{
    release_stage(shared_address(barrier));
}

/* Barrier `number` of the thread block, for `threads` of its threads. */
__device__ __forceinline__ void named_barrier(int number, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* The same without waiting for the others. */
__device__ __forceinline__ void named_barrier_arrive(int number, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* Does any of those threads say so? */
__device__ __forceinline__ bool named_barrier_or(int number, int threads, bool mine)
{
    int any;
    asm volatile("{\n"
                 ".reg .pred mine, all;\n"
                 "setp.ne.b32 mine, %1, 0;\n"
                 "barrier.cta.red.or.pred all, %2, %3, mine;\n"
                 "selp.b32 %0, 1, 0, all;\n"
                 "}\n"
                 : "=r"(any)
                 : "r"((int)mine), "r"(number), "r"(threads)
                 : "memory");
    return any;
}

/* The value, which is the same in all lanes, where the compiler knows it to be: descriptors made of it
 * stay in uniform registers, and need not be moved there before each product. */
__device__ __forceinline__ uint32_t uniform(uint32_t value)
{
    return __shfl_sync(0xffffffffu, value, 0);
}

/* Two warpgroups begin their products in turns, so that one's arithmetic runs under the other's
 * products: left alone they fall into step, and both wait at once. Group 0 begins; group 1 calls
 * pass_turn once before its first await_turn. Barriers 14 and 15. */
__device__ __forceinline__ void await_turn(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(14 + group) : "memory");
}

__device__ __forceinline__ void pass_turn(int group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(15 - group) : "memory");
}

/* Bytes from column 0 to column 16 step of a tile of that many rows. */
template <int rows> __device__ __forceinline__ constexpr uint32_t column_step(int step)
{
    return (uint32_t)(step / 4 * rows * 128 + step % 4 * 32);
}

/* sums[64, columns] = a[64, D] b[columns, D]^T, a in a tile of 64 rows, b in one of `columns`. */
template <typename T, int D, int n>
__device__ __forceinline__ void multiply_abt(float (&sums)[n], uint32_t a, uint32_t b)
{
    constexpr int columns = 2 * n;
    const uint64_t a_panel = wgmma_panel(a, 0), b_panel = wgmma_panel(b, 0);
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        wgmma_abt<T>(sums, wgmma_panel_at(a_panel, column_step<GROUP_ROWS>(step)),
                     wgmma_panel_at(b_panel, column_step<columns>(step)), step > 0);
}

/* The same with a in registers. */
template <typename T, int D, int n>
__device__ __forceinline__ void multiply_abt(float (&sums)[n], const uint32_t (&a)[D / 16][4],
                                             uint32_t b)
{
    constexpr int columns = 2 * n;
    const uint64_t b_panel = wgmma_panel(b, 0);
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        wgmma_abt<T>(sums, a[step], wgmma_panel_at(b_panel, column_step<columns>(step)), step > 0);
}

/* sums[64, D] += a[64, 16 steps] b[16 steps, D], a in registers, b in a tile of 16 steps rows. */
template <typename T, int n, int steps>
__device__ __forceinline__ void multiply_ab(float (&sums)[n], const uint32_t (&a)[steps][4],
                                            uint32_t b)
{
    const uint64_t b_panel = wgmma_panel(b, steps * 16 * 128);
#pragma unroll
    for (int step = 0; step < steps; step++)
        wgmma_ab<T>(sums, a[step], wgmma_panel_at(b_panel, step * 16 * 128));
}

/* Sums, rounded, as the left operand of the next product. */
template <typename T, int n>
__device__ __forceinline__ void pack_sums(uint32_t (&left)[n / 8][4], const float (&sums)[n])
{
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        left[i / 4][i % 4] = pack<T>(sums[2 * i], sums[2 * i + 1]);
}

/* The four lanes that share a row hold its columns in pairs; afterwards lane t holds the eight columns
 * of word t of the first four: words are exchanged as the rows and columns of a 4 x 4 matrix. */
__device__ __forceinline__ uint4 gather_columns(const uint32_t (&words)[4])
{
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    uint32_t half[4];
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? words[n] : words[n + 1], 1);
        half[n] = odd ? other : words[n];
        half[n + 1] = odd ? words[n + 1] : other;
    }
    uint32_t whole[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? half[n] : half[n + 2], 2);
        whole[n] = upper ? other : half[n];
        whole[n + 2] = upper ? half[n + 2] : other;
    }
    return make_uint4(whole[0], whole[1], whole[2], whole[3]);
}

/* sum + 0 x for two elements each: no longer 0 once an x was not finite. */
template <typename T> __device__ __forceinline__ void add_nothing(uint32_t &sum, uint32_t x);

#define HPA_DEFINE_ADD_NOTHING(type, name)                                                    \
    template <> __device__ __forceinline__ void add_nothing<type>(uint32_t & sum, uint32_t x) \
    {                                                                                         \
        asm("fma.rn." name " %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(0));                  \
    }
HPA_DEFINE_ADD_NOTHING(__half, "f16x2")
HPA_DEFINE_ADD_NOTHING(__nv_bfloat16, "bf16x2")
#undef HPA_DEFINE_ADD_NOTHING

/* Do `bytes` of shared memory hold a 16-bit element that is not finite, as far as this thread of
 * 128 has looked? */
template <typename T, int bytes>
__device__ __forceinline__ bool group_share_is_not_finite(const unsigned char *tile)
{
    uint32_t sums[4] = {};
#pragma unroll
    for (int at = 0; at < bytes; at += 128 * 16) {
        const uint4 chunk = *reinterpret_cast<const uint4 *>(tile + at + threadIdx.x % 128 * 16);
        add_nothing<T>(sums[0], chunk.x);
        add_nothing<T>(sums[1], chunk.y);
        add_nothing<T>(sums[2], chunk.z);
        add_nothing<T>(sums[3], chunk.w);
    }
    return ((sums[0] | sums[1] | sums[2] | sums[3]) & 0x7fff7fff) != 0;
}

#endif
