/* What frames the search on CUDA: the mask's header and lengths, and the transpose of its rows.
 *
 * The transpose counts each column, turns the counts into ends, and lets every kept block take a
 * place from its column's end down; which place is a matter of chance, so each list is then sorted.
 * Its entries differ, so the result is not. */
#include "core/cuda/rows.cuh"
#include "core/cuda/scan.h"
#include "mask/kernels_cuda.h"

#define WARPS 4 /* of a block; each has a row or a column of its own */
#define BITMAP_WORDS 1024

/* Lengths */

/* to[b] = the largest of from[0 ... b], within [0, total], and to[0] = 0: what a sound `from` is
 * already. One block. */
static __device__ void copy_lengths(const int32_t *from, int32_t *to, int64_t batch, int64_t total)
{
    __shared__ int32_t of_warp[32];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int32_t before = 0;
    for (int64_t first = 0; first <= batch; first += blockDim.x) {
        const int64_t i = first + threadIdx.x;
        int32_t value = i == 0 || i > batch ? 0 : (int32_t)hpa_max(0, hpa_min(from[i], total));
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int32_t other = __shfl_up_sync(0xffffffffu, value, step);
            value = lane >= step ? max(value, other) : value;
        }
        if (lane == 31)
            of_warp[warp] = value;
        __syncthreads();
        for (int n = 0; n < warp; n++)
            value = max(value, of_warp[n]);
        value = max(value, before);
        for (int n = 0; n < (int)blockDim.x / 32; n++)
            before = max(before, of_warp[n]);
        if (i <= batch)
            to[i] = value;
        __syncthreads();
    }
}

static __global__ void mask_begin_kernel(hpa_geometry g, hpa_mask_header header,
                                         const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                                         hpa_mask m)
{
    if (threadIdx.x == 0)
        *m.header = header;
    if (!g.packed)
        return;
    copy_lengths(cu_seqlens_q, m.cu_seqlens_q, g.batch, g.total_q);
    copy_lengths(cu_seqlens_kv, m.cu_seqlens_kv, g.batch, g.total_kv);
}

hpa_status hpa_mask_begin_cuda(const hpa_geometry *g, const hpa_inputs *in, const hpa_mask *m,
                               cudaStream_t stream)
{
    const int32_t *const cu_seqlens_q = in ? in->cu_seqlens_q : nullptr;
    const int32_t *const cu_seqlens_kv = in ? in->cu_seqlens_kv : nullptr;
    return hpa_cuda_launch("mask_begin_kernel", mask_begin_kernel, 1, g->packed ? 1024 : 32, 0,
                           stream, *g, hpa_mask_header_of(g), cu_seqlens_q, cu_seqlens_kv, *m);
}

/* Transpose */

/* The row of a warp: its list, and the column of key block 0 of its sequence and mask head. */
struct warp_row {
    int64_t first_column, query_block;
    const int32_t *blocks;
    int32_t length;
};

static __device__ __forceinline__ warp_row find_row(const hpa_geometry &g, const hpa_mask &m,
                                                    int64_t row)
{
    warp_row r = {};
    r.length = (int32_t)hpa_min(m.row_length[row], g.capacity);
    if (r.length <= 0)
        return r;
    r.blocks = m.row_blocks + row * g.capacity;
    const hpa_sequence s = sequence_of(g, m, hpa_batch_of_row(&g, m.cu_seqlens_q, row));
    const int64_t local = row - g.mask_heads * s.row_start;
    r.query_block = local % s.row_slots;
    r.first_column = hpa_column_index(&g, &s, local / s.row_slots, 0);
    return r;
}

static __device__ __forceinline__ unsigned long long *counter(int64_t *values, int64_t i)
{
    return reinterpret_cast<unsigned long long *>(values + i);
}

static __global__ void __launch_bounds__(32 * WARPS)
    mask_count_kernel(hpa_geometry g, hpa_mask m, int64_t *counts)
{
    const int64_t warps = (int64_t)gridDim.x * WARPS;
    for (int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; row < g.rows; row += warps) {
        const warp_row r = find_row(g, m, row);
        for (int32_t n = (int32_t)threadIdx.x % 32; n < r.length; n += 32)
            atomicAdd(counter(counts, r.first_column + r.blocks[n]), 1ull);
    }
}

/* column_start[c] comes in as the end of column c and goes out as its start. */
static __global__ void __launch_bounds__(32 * WARPS) mask_fill_kernel(hpa_geometry g, hpa_mask m)
{
    const int64_t warps = (int64_t)gridDim.x * WARPS;
    for (int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; row < g.rows; row += warps) {
        const warp_row r = find_row(g, m, row);
        for (int32_t n = (int32_t)threadIdx.x % 32; n < r.length; n += 32) {
            const unsigned long long end =
                atomicAdd(counter(m.column_start, r.first_column + r.blocks[n]), ~0ull);
            m.column_rows[end - 1] = (int32_t)r.query_block;
        }
    }
}

/* At most 32 entries, one a lane. */
static __device__ void sort_in_registers(int32_t *list, int32_t length)
{
    const int lane = (int)threadIdx.x % 32;
    int32_t value = lane < length ? list[lane] : INT32_MAX;
#pragma unroll
    for (int size = 2; size <= 32; size *= 2)
#pragma unroll
        for (int step = size / 2; step > 0; step /= 2) {
            const int32_t other = __shfl_xor_sync(0xffffffffu, value, step);
            const bool ascending = (lane & size) == 0, lower = (lane & step) == 0;
            value = ascending == lower ? min(value, other) : max(value, other);
        }
    if (lane < length)
        list[lane] = value;
}

/* Entries from lowest on, no more than 32 * BITMAP_WORDS of them: marks each, then reads the marks
 * in order. words: of this warp, in shared memory. */
static __device__ void sort_by_bitmap(int32_t *list, int32_t length, int32_t lowest,
                                      int32_t highest, uint32_t *words)
{
    const int lane = (int)threadIdx.x % 32;
    const int used = (highest - lowest) / 32 + 1;
    for (int n = lane; n < used; n += 32)
        words[n] = 0;
    __syncwarp();
    for (int32_t n = lane; n < length; n += 32)
        atomicOr(&words[(list[n] - lowest) / 32], 1u << (list[n] - lowest) % 32);
    __syncwarp();
    int32_t written = 0;
    for (int first = 0; first < used; first += 32) {
        uint32_t word = first + lane < used ? words[first + lane] : 0;
        int32_t through = __popc(word);
        const int32_t mine = through;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int32_t other = __shfl_up_sync(0xffffffffu, through, step);
            through += lane >= step ? other : 0;
        }
        int32_t *to = list + written + through - mine;
        for (; word != 0; word &= word - 1)
            *to++ = lowest + 32 * (first + lane) + __ffs((int)word) - 1;
        written += __shfl_sync(0xffffffffu, through, 31);
    }
    __syncwarp();
}

/* Any list: a bitonic network in place, whose comparisons past the end fall away. */
static __device__ void sort_in_memory(int32_t *list, int32_t length)
{
    for (int64_t size = 2; size / 2 < length; size *= 2)
        for (int64_t step = size / 2; step > 0; step /= 2) {
            const int64_t partner = step == size / 2 ? size - 1 : step;
            for (int64_t n = threadIdx.x % 32; n < length; n += 32) {
                const int64_t other = n ^ partner;
                if (other <= n || other >= length || list[n] <= list[other])
                    continue;
                const int32_t lower = list[other];
                list[other] = list[n];
                list[n] = lower;
            }
            __syncwarp();
        }
}

static __global__ void __launch_bounds__(32 * WARPS) mask_sort_kernel(hpa_geometry g, hpa_mask m)
{
    __shared__ uint32_t bitmap[WARPS][BITMAP_WORDS];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int64_t warps = (int64_t)gridDim.x * WARPS;
    for (int64_t c = (int64_t)blockIdx.x * WARPS + warp; c < g.columns; c += warps) {
        int32_t *list = m.column_rows + m.column_start[c];
        const int32_t length = (int32_t)(m.column_start[c + 1] - m.column_start[c]);
        if (length <= 1)
            continue;
        if (length <= 32) {
            sort_in_registers(list, length);
            continue;
        }
        int32_t lowest = INT32_MAX, highest = 0;
        for (int32_t n = lane; n < length; n += 32) {
            lowest = min(lowest, list[n]);
            highest = max(highest, list[n]);
        }
        lowest = __reduce_min_sync(0xffffffffu, lowest);
        highest = __reduce_max_sync(0xffffffffu, highest);
        if (highest - lowest < 32 * BITMAP_WORDS)
            sort_by_bitmap(list, length, lowest, highest, bitmap[warp]);
        else
            sort_in_memory(list, length);
    }
}

/* Blocks of WARPS warps for so many rows or columns. */
static dim3 blocks_for(int64_t count)
{
    return dim3((unsigned)hpa_min(hpa_ceil_div(count, WARPS), HPA_CUDA_MAX_BLOCKS));
}

hpa_status hpa_mask_count_columns_cuda(const hpa_geometry *g, const hpa_mask *m, int64_t *counts,
                                       cudaStream_t stream)
{
    const size_t bytes = (size_t)(g->columns + 1) * sizeof(int64_t);
    HPA_CUDA_TRY(cudaMemsetAsync(counts, 0, bytes, stream));
    return hpa_cuda_launch("mask_count_kernel", mask_count_kernel, blocks_for(g->rows), 32 * WARPS,
                           0, stream, *g, *m, counts);
}

hpa_status hpa_mask_transpose_cuda(const hpa_geometry *g, const hpa_mask *m, int64_t *scan_scratch,
                                   cudaStream_t stream)
{
    HPA_TRY(hpa_mask_count_columns_cuda(g, m, m->column_start, stream));
    HPA_TRY(hpa_cuda_inclusive_sum(m->column_start, g->columns + 1, scan_scratch, stream));
    HPA_TRY(hpa_cuda_launch("mask_fill_kernel", mask_fill_kernel, blocks_for(g->rows), 32 * WARPS,
                            0, stream, *g, *m));
    return hpa_cuda_launch("mask_sort_kernel", mask_sort_kernel, blocks_for(g->columns), 32 * WARPS,
                           0, stream, *g, *m);
}
