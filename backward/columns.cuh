/* The work of dk and dv: each key block of a key/value head gathers from the query blocks that keep
 * it, in all query heads of the group, laid end to end.
 *
 * These lists differ by a factor of a hundred and more: sinks are kept by every query block. A list
 * longer than a chunk is split into pieces, each with sums of its own in scratch, which one more
 * kernel adds up in the order of the pieces. So no sum is shared and the order is always the same;
 * only which scratch a piece gets depends on the run. The number of pieces is bounded by shapes. */
#ifndef HPA_BACKWARD_COLUMNS_CUH
#define HPA_BACKWARD_COLUMNS_CUH

#include "core/arena.h"
#include "core/cuda/launch.h"
#include "core/cuda/rows.cuh"
#include "core/cuda/scalar.cuh"
#include "core/plan.h"

namespace
{

/* A list that is split has more entries than a chunk, so it has at most 2 entries / chunk pieces, and
 * so have all lists together. */
#define MOST_PIECES 2048
#define LEAST_CHUNK_QUERIES 8192

/* A sequence's columns are taken head by head, as neighbours share queries; but the last key blocks
 * of all its heads, about so many columns, come after all others, from the longest lists to the
 * shortest, so that all multiprocessors end together. */
#define LAST_COLUMNS 264

struct piece {
    int64_t column;
    int32_t number, count; /* piece `number` of `count` of that column */
};

struct column_plan {
    int64_t chunk;        /* most entries of a list that is not split */
    int64_t most_pieces;  /* 0: no list can be longer than a chunk */
    int64_t columns;      /* (sequence, key/value head, key block) slots */
    int64_t sums_each;    /* numbers in a piece's sums: dk and dv of block_k keys */
    int32_t *piece_count; /* scratch from here on */
    piece *pieces;        /* [most_pieces] */
    void *sums;           /* [most_pieces][2][block_k][head_dim] */
};

static column_plan column_plan_of(const hpa_geometry *g, size_t sum_size, hpa_arena *arena)
{
    column_plan p = {};
    const int64_t entries = g->heads_q * g->row_slots * g->capacity;
    p.chunk = hpa_max(hpa_ceil_div(LEAST_CHUNK_QUERIES, g->block_q),
                      hpa_ceil_div(2 * entries, MOST_PIECES));
    p.most_pieces = entries > p.chunk ? hpa_ceil_div(2 * entries, p.chunk) : 0;
    p.columns = g->heads_kv * g->column_slots;
    p.sums_each = 2 * g->block_k * g->head_dim;
    p.piece_count = HPA_ARENA_ARRAY(arena, int32_t, 1);
    p.pieces = HPA_ARENA_ARRAY(arena, piece, p.most_pieces);
    p.sums = hpa_arena_take(arena, p.most_pieces * p.sums_each, sum_size);
    return p;
}

/* A key block of a key/value head. */
struct key_column {
    hpa_sequence sequence;
    int64_t kv_head, key_block;
};

__device__ __forceinline__ int64_t batch_of_column(const hpa_geometry &g, const hpa_mask &m,
                                                   int64_t slot)
{
    if (!g.packed)
        return slot / hpa_ceil_div(g.seq_kv, g.block_k);
    int64_t low = 0, high = g.batch - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (m.cu_seqlens_kv[middle] / g.block_k + middle <= slot)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* false where the slot has no keys */
__device__ __forceinline__ bool find_key_column(const hpa_geometry &g, const hpa_mask &m,
                                                int64_t column, key_column *c)
{
    c->sequence = sequence_of(g, m, batch_of_column(g, m, column / g.heads_kv));
    const int64_t local = column - g.heads_kv * c->sequence.column_start;
    if (local < 0 || local >= g.heads_kv * c->sequence.column_slots)
        return false;
    const int64_t slots = c->sequence.column_slots;
    const int64_t early = slots - hpa_min(slots, hpa_ceil_div(LAST_COLUMNS, g.heads_kv));
    const int64_t late = local - g.heads_kv * early;
    c->kv_head = late < 0 ? local / early : late % g.heads_kv;
    c->key_block = late < 0 ? local % early : early + late / g.heads_kv;
    return c->key_block < c->sequence.key_blocks;
}

/* The list of one query head: column_rows[begin] ... column_rows[end - 1]. */
struct column_list {
    int64_t begin, end;
};

__device__ __forceinline__ column_list list_of(const hpa_geometry &g, const hpa_mask &m,
                                               const key_column &c, int64_t head)
{
    const int64_t column = hpa_column_index(&g, &c.sequence, head / g.mask_group, c.key_block);
    const int64_t most = g.rows * g.capacity;
    const int64_t begin = hpa_max(0, hpa_min(m.column_start[column], most));
    return {begin, hpa_max(begin, hpa_min(m.column_start[column + 1], most))};
}

__device__ __forceinline__ int64_t group_entries(const hpa_geometry &g, const hpa_mask &m,
                                                 const key_column &c)
{
    int64_t entries = 0;
    for (int64_t head = c.kv_head * g.group; head < (c.kv_head + 1) * g.group; head++) {
        const column_list list = list_of(g, m, c, head);
        entries += list.end - list.begin;
    }
    return entries;
}

/* What one thread block of the dk/dv kernels adds up. */
struct column_work {
    key_column column;
    int64_t begin, end; /* entries of the group's lists laid end to end */
    int64_t sums;       /* piece whose sums it writes; -1: it writes dk and dv */
};

/* Work number 0 ... most_pieces + columns - 1: first the pieces of long lists, then every column
 * that is not split. */
__device__ __forceinline__ bool find_column_work(const hpa_geometry &g, const hpa_mask &m,
                                                 const column_plan &plan, int64_t number,
                                                 column_work *work)
{
    const bool is_piece = number < plan.most_pieces;
    if (is_piece && number >= *plan.piece_count)
        return false;
    const int64_t column = is_piece ? plan.pieces[number].column : number - plan.most_pieces;
    if (column >= plan.columns || !find_key_column(g, m, column, &work->column))
        return false;
    const int64_t entries = group_entries(g, m, work->column);
    const piece own = is_piece ? plan.pieces[number] : piece{column, 0, 1};
    work->begin = entries * own.number / own.count;
    work->end = entries * (own.number + 1) / own.count;
    work->sums = is_piece ? number : -1;
    return is_piece || plan.most_pieces == 0 || entries <= plan.chunk;
}

struct column_arguments {
    hpa_geometry geometry;
    hpa_mask mask;
    column_plan plan;
    tensor_rows dk, dv;
    bool accumulate;
};

/* One thread a column: those that are too long get pieces. */
__global__ void __launch_bounds__(128)
    split_columns_kernel(const __grid_constant__ column_arguments x)
{
    const int64_t column = work_index() * 128 + threadIdx.x;
    key_column c;
    if (column >= x.plan.columns || !find_key_column(x.geometry, x.mask, column, &c))
        return;
    const int64_t entries = group_entries(x.geometry, x.mask, c);
    if (entries <= x.plan.chunk)
        return;
    const int64_t count = hpa_min(hpa_ceil_div(entries, x.plan.chunk), x.plan.most_pieces);
    const int64_t first = atomicAdd(x.plan.piece_count, (int)count);
    for (int64_t n = 0; n < count && first + n < x.plan.most_pieces; n++)
        x.plan.pieces[first + n] = {column, (int32_t)n, (int32_t)count};
}

#define JOIN_THREADS 512

/* dk and dv of the split columns: each piece's block adds up its share of the rows, over all the
 * column's pieces in their order. */
template <typename T>
__global__ void __launch_bounds__(JOIN_THREADS)
    join_columns_kernel(const __grid_constant__ column_arguments x)
{
    using sum_type = sum_of<T>;
    const hpa_geometry &g = x.geometry;
    const int64_t number = work_index();
    if (number >= hpa_min(*x.plan.piece_count, x.plan.most_pieces))
        return;
    const piece own = x.plan.pieces[number];
    key_column c;
    if (!find_key_column(g, x.mask, own.column, &c))
        return;
    const int64_t first_piece = number - own.number;
    const int64_t pieces = hpa_min(own.count, x.plan.most_pieces - first_piece);
    const int64_t keys = hpa_min(g.block_k, c.sequence.kv_length - c.key_block * g.block_k);
    const int64_t share = hpa_ceil_div(keys * g.head_dim, own.count);
    const auto begin = (uint32_t)(own.number * share), columns = (uint32_t)g.head_dim;
    const auto end = (uint32_t)hpa_min(keys * g.head_dim, (own.number + 1) * share);
    const sum_type *sums =
        static_cast<const sum_type *>(x.plan.sums) + first_piece * x.plan.sums_each;
    for (int is_dv = 0; is_dv < 2; is_dv++) {
        const tensor_rows &rows = is_dv ? x.dv : x.dk;
        if (!rows.data)
            continue;
        T *const first = row_at<T>(rows, c.sequence.batch, c.kv_head, c.sequence.kv_start,
                                   c.key_block * g.block_k);
        for (uint32_t i = begin + threadIdx.x; i < end; i += JOIN_THREADS) {
            sum_type sum = 0;
#pragma unroll 4
            for (int64_t n = 0; n < pieces; n++)
                sum += sums[n * x.plan.sums_each + is_dv * g.block_k * g.head_dim + i];
            T *to = first + i / columns * rows.strides.token + i % columns;
            *to = from_sum<T>(x.accumulate ? to_sum(*to) + sum : sum);
        }
    }
}

hpa_status launch_split_columns(const column_arguments &x, cudaStream_t stream)
{
    if (x.plan.most_pieces == 0)
        return HPA_OK;
    HPA_TRY(hpa_cuda_status(cudaMemsetAsync(x.plan.piece_count, 0, sizeof(int32_t), stream),
                            "backward_split_columns"));
    return hpa_cuda_launch("backward_split_columns", split_columns_kernel,
                           grid_of(hpa_ceil_div(x.plan.columns, 128)), dim3(128), 0, stream, x);
}

template <typename T> hpa_status launch_join_columns(const column_arguments &x, cudaStream_t stream)
{
    return hpa_cuda_launch("backward_join_columns", join_columns_kernel<T>,
                           grid_of(x.plan.most_pieces), dim3(JOIN_THREADS), 0, stream, x);
}

} // namespace
#endif
