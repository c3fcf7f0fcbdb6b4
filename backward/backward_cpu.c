/* The fast backward pass, the mask held constant.
 *
 * forward:   s_ij = scale * q_i . k_j    p_ij = exp(s_ij - lse_i)    o_i = sum_j p_ij v_j
 * backward:  dp_ij = dO_i . v_j          ds_ij = p_ij (dp_ij - delta_i)
 *            dv_j += p_ij dO_i           dk_j += scale * ds_ij q_i   dq_i += scale * ds_ij k_j
 *
 * One walk over a block of queries makes all five products for a chunk of its kept keys while the
 * two score tiles are in a near cache: 10 head_dim FLOPs a pair. Who may walk where follows from
 * who owns the sums. A lane is one sequence and key/value head.
 *   - Many lanes: each lane is one thread's. It walks the lane's query blocks in order and adds to
 *     dq, dk and dv at once.
 *   - A lane that alone would keep the others waiting is shared by all threads: they first take its
 *     query blocks for dq, each whole, then ranges of its key blocks for dk and dv, each walking
 *     the query blocks in order. s and dp are made twice, 14 head_dim FLOPs a pair. The transpose's
 *     counts cut the key blocks into ranges of equal work.
 * Either way each sum has one owner and takes its terms in the same order, so the bits do not depend
 * on the number of threads. */
#include "backward/kernels.h"
#include "core/cpu/head_rows.h"
#include "core/cpu/span_products.h"

#include <omp.h>

/* Keys that are copied by one task of a shared lane. */
#define COPY_TOKENS 256

/* Products of a pair in a lane of one thread, and in a shared one. */
#define PRODUCTS_ALONE 5
#define PRODUCTS_SHARED 7

/* Some of the key blocks of a sequence. */
typedef struct block_range {
    int64_t begin, end;
} block_range;

/* The gradients that a walk over a block of queries makes. */
typedef struct wanted {
    bool dq, dk, dv;
} wanted;

static wanted all_wanted(const hpa_gradients *grads)
{
    return (wanted){.dq = grads->dq.data, .dk = grads->dk.data, .dv = grads->dv.data};
}

/* A lane is shared when, on one thread, it would take longer than all the work shared. The work of a
 * lane is in proportion to its queries. */
static bool lane_is_shared(const hpa_plan *plan, const hpa_inputs *in, const hpa_sequence *s)
{
    const hpa_geometry *g = &plan->geometry;
    const int64_t queries = g->packed ? in->cu_seqlens_q[g->batch] : g->batch * g->seq_q;
    return PRODUCTS_ALONE * s->q_length * plan->num_threads >
           PRODUCTS_SHARED * queries * g->heads_kv;
}

/* Lanes that are worked on at a time, each with room of its own. */
static int32_t lane_rooms(const hpa_plan *plan)
{
    return (int32_t)hpa_min(plan->num_threads, plan->geometry.batch * plan->geometry.heads_kv);
}

/* Pairs of blocks that the query heads of a key/value head keep in key blocks before key_block. */
static int64_t work_before(const hpa_geometry *g, const hpa_mask *mask, const hpa_sequence *s,
                           int64_t kv_head, int64_t key_block)
{
    const int64_t mask_heads = g->mask_heads / g->heads_kv;
    int64_t work = 0;
    for (int64_t head = kv_head * mask_heads; head < (kv_head + 1) * mask_heads; head++) {
        const int64_t first = hpa_column_index(g, s, head, 0);
        work += mask->column_start[first + key_block] - mask->column_start[first];
    }
    return work;
}

/* The first key block with part / parts of the lane's work before it. */
static int64_t range_boundary(const hpa_geometry *g, const hpa_mask *mask, const hpa_sequence *s,
                              int64_t kv_head, int64_t part, int64_t parts)
{
    const int64_t all = work_before(g, mask, s, kv_head, s->key_blocks);
    int64_t low = 0, high = s->key_blocks;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (work_before(g, mask, s, kv_head, middle) * parts < all * part)
            low = middle + 1;
        else
            high = middle;
    }
    return part == parts ? s->key_blocks : low;
}

/* One thread's room for a block of queries. */
typedef struct worker {
    real *q, *d_out;             /* [block_q, width] */
    real *q_panel, *d_out_panel; /* [head_dim, stride] turned; q times scale, in powers of two */
    real *scores, *d_scores;     /* [HPA_CHUNK_KEYS, stride] */
    real *dq;                    /* [block_q, width] */
    real *lse, *delta;           /* [stride]; lse in powers of two */
} worker;

/* One sequence and key/value head. [seq_kv, width] each. */
typedef struct kv_lane {
    hpa_sequence sequence;
    int64_t kv_head;
    real *keys, *values, *dk, *dv;
} kv_lane;

typedef struct pass {
    const hpa_plan *plan;
    const hpa_tiles *tiles;
    const hpa_inputs *in;
    const hpa_outputs *out;
    const hpa_gradients *grads;
    hpa_mask mask;
    int64_t width;  /* head_dim, padded */
    int64_t stride; /* of scores */
    unsigned char *workers, *lanes;
    size_t worker_bytes, lane_bytes;
} pass;

static worker take_worker(const pass *p, hpa_arena *arena)
{
    const hpa_geometry *g = &p->plan->geometry;
    worker w;
    w.q = HPA_ARENA_ARRAY(arena, real, g->block_q * p->width);
    w.d_out = HPA_ARENA_ARRAY(arena, real, g->block_q * p->width);
    w.q_panel = HPA_ARENA_ARRAY(arena, real, g->head_dim * p->stride);
    w.d_out_panel = HPA_ARENA_ARRAY(arena, real, g->head_dim * p->stride);
    w.scores = HPA_ARENA_ARRAY(arena, real, HPA_CHUNK_KEYS * p->stride);
    w.d_scores = HPA_ARENA_ARRAY(arena, real, HPA_CHUNK_KEYS * p->stride);
    w.dq = HPA_ARENA_ARRAY(arena, real, g->block_q * p->width);
    w.lse = HPA_ARENA_ARRAY(arena, real, p->stride);
    w.delta = HPA_ARENA_ARRAY(arena, real, p->stride);
    return w;
}

static kv_lane take_lane(const pass *p, hpa_arena *arena)
{
    const int64_t n = p->plan->geometry.seq_kv * p->width;
    kv_lane lane = {.kv_head = 0};
    lane.keys = HPA_ARENA_ARRAY(arena, real, n);
    lane.values = HPA_ARENA_ARRAY(arena, real, n);
    lane.dk = HPA_ARENA_ARRAY(arena, real, n);
    lane.dv = HPA_ARENA_ARRAY(arena, real, n);
    return lane;
}

static pass take_scratch(const hpa_plan *plan, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    pass p = {.plan = plan, .width = hpa_padded(g->head_dim)};
    p.stride = hpa_spread_stride(g->block_q, sizeof(real));
    hpa_arena worker_counter = {0}, lane_counter = {0};
    take_worker(&p, &worker_counter);
    take_lane(&p, &lane_counter);
    p.worker_bytes = worker_counter.used;
    p.lane_bytes = lane_counter.used;
    p.workers =
        HPA_ARENA_ARRAY(arena, unsigned char, (int64_t)worker_counter.used * plan->num_threads);
    p.lanes = HPA_ARENA_ARRAY(arena, unsigned char, lane_rooms(plan) * (int64_t)lane_counter.used);
    return p;
}

static worker worker_of_thread(const pass *p)
{
    hpa_arena arena = {.base = p->workers + (size_t)omp_get_thread_num() * p->worker_bytes};
    return take_worker(p, &arena);
}

static kv_lane lane_at(const pass *p, int64_t index, int64_t room)
{
    const hpa_geometry *g = &p->plan->geometry;
    hpa_arena arena = {.base = p->lanes + (size_t)room * p->lane_bytes};
    kv_lane lane = take_lane(p, &arena);
    lane.sequence =
        hpa_sequence_at(g, p->in->cu_seqlens_q, p->in->cu_seqlens_kv, index / g->heads_kv);
    lane.kv_head = index % g->heads_kv;
    return lane;
}

/* A block of queries */

/* delta_i = O_i . dO_i - dLSE_i. Room for O is borrowed from dq. */
static void load_delta(const pass *p, const worker *w, const hpa_sequence *s, int64_t head,
                       int64_t first, int64_t end)
{
    const hpa_geometry *g = &p->plan->geometry;
    hpa_read_head(p->tiles, g, &p->out->out, s->batch, head, s->q_start, first, end, w->dq);
    p->tiles->row_dots(w->delta, w->dq, w->d_out, p->width, end - first, p->width);
    if (!p->grads->d_lse.data)
        return;
    const hpa_strides strides = hpa_strides_of(&p->grads->d_lse, g->packed);
    const real *d_lse = (const real *)p->grads->d_lse.data +
                        hpa_offset(&strides, s->batch, head, s->q_start, first);
    for (int64_t query = 0; query < end - first; query++)
        w->delta[query] -= d_lse[query * strides.token];
}

static void load_lse(const pass *p, const worker *w, const hpa_sequence *s, int64_t head,
                     int64_t first, int64_t end)
{
    const double log2_e = 1.44269504088896340736;
    const hpa_strides strides = hpa_strides_of(&p->out->lse, p->plan->geometry.packed);
    const real *lse =
        (const real *)p->out->lse.data + hpa_offset(&strides, s->batch, head, s->q_start, first);
    for (int64_t query = 0; query < end - first; query++)
        w->lse[query] = (real)((double)lse[query * strides.token] * log2_e);
}

static void load_queries(const pass *p, const worker *w, const hpa_sequence *s, int64_t head,
                         int64_t first, int64_t end)
{
    const hpa_geometry *g = &p->plan->geometry;
    const double log2_e = 1.44269504088896340736;
    const int64_t queries = end - first;
    hpa_read_head(p->tiles, g, &p->in->q, s->batch, head, s->q_start, first, end, w->q);
    hpa_read_head(p->tiles, g, &p->grads->d_out, s->batch, head, s->q_start, first, end, w->d_out);
    hpa_make_panel(p->tiles, g, w->q, queries, (real)(g->scale * log2_e), w->q_panel, p->stride);
    hpa_make_panel(p->tiles, g, w->d_out, queries, 1, w->d_out_panel, p->stride);
    load_lse(p, w, s, head, first, end);
    load_delta(p, w, s, head, first, end);
    for (int64_t query = queries; query < hpa_padded(queries); query++)
        w->lse[query] = w->delta[query] = 0;
    for (int64_t n = 0; n < queries * p->width; n++)
        w->dq[n] = 0;
}

/* p and ds of a chunk, in place of s and dp. What causality hides is left as it comes: the products
 * that follow pass over it. */
static void score_chunk(const pass *p, const worker *w, const kv_lane *lane, const hpa_chunk *chunk,
                        const hpa_score_tile *scores, const hpa_score_tile *d_scores, bool needs_ds)
{
    const hpa_geometry *g = &p->plan->geometry;
    for (int64_t n = 0; n < chunk->n_spans; n++) {
        const hpa_span *span = &chunk->spans[n];
        hpa_multiply_span(p->tiles, g, span, lane->keys, w->q_panel, scores);
        if (needs_ds)
            hpa_multiply_span(p->tiles, g, span, lane->values, w->d_out_panel, d_scores);
    }
    p->tiles->softmax_gradient(scores, d_scores->data, w->lse, w->delta);
}

static void walk_chunk(const pass *p, const worker *w, const kv_lane *lane, const hpa_chunk *chunk,
                       int64_t queries, wanted want)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_score_tile scores = {.data = w->scores,
                                   .stride = p->stride,
                                   .keys = chunk->keys,
                                   .queries = hpa_padded(queries)};
    hpa_score_tile d_scores = scores;
    d_scores.data = w->d_scores;
    score_chunk(p, w, lane, chunk, &scores, &d_scores, want.dq || want.dk);
    for (int64_t n = 0; n < chunk->n_spans; n++) {
        const hpa_span *span = &chunk->spans[n];
        if (want.dv)
            hpa_scatter_span(p->tiles, g, span, &scores, queries, w->d_out, lane->dv);
        if (want.dk)
            hpa_scatter_span(p->tiles, g, span, &d_scores, queries, w->q, lane->dk);
        if (want.dq)
            hpa_gather_span(p->tiles, g, span, &d_scores, queries, lane->keys, w->dq);
    }
}

/* The kept blocks of a row that lie in a range. */
static hpa_row_cursor row_in_range(const pass *p, const hpa_sequence *s, int64_t head,
                                   int64_t query_block, block_range range)
{
    const hpa_geometry *g = &p->plan->geometry;
    const int64_t row = hpa_row_index(g, s, head / g->mask_group, query_block);
    const int32_t *blocks = p->mask.row_blocks + row * g->capacity;
    hpa_row_cursor cursor = {.g = g,
                             .sequence = s,
                             .query_block = query_block,
                             .next = blocks,
                             .end = blocks + p->mask.row_length[row]};
    while (cursor.next < cursor.end && *cursor.next < range.begin)
        cursor.next++;
    while (cursor.next < cursor.end && cursor.end[-1] >= range.end)
        cursor.end--;
    return cursor;
}

/* One query head's block of queries and its kept keys in range. */
static void walk_block(const pass *p, const worker *w, const kv_lane *lane, int64_t head,
                       int64_t query_block, block_range range, wanted want)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    hpa_row_cursor cursor = row_in_range(p, s, head, query_block, range);
    if (cursor.next == cursor.end && !want.dq)
        return;
    const int64_t first = hpa_block_begin(query_block, g->block_q);
    const int64_t end = hpa_block_end(query_block, g->block_q, s->q_length);
    load_queries(p, w, s, head, first, end);
    hpa_chunk chunk;
    while (hpa_next_chunk(&cursor, &chunk))
        walk_chunk(p, w, lane, &chunk, end - first, want);
    if (want.dq)
        hpa_write_head(p->tiles, g, &p->grads->dq, s->batch, head, s->q_start, first, end, w->dq,
                       (real)g->scale, p->grads->accumulate);
}

/* A lane */

static void copy_keys(const pass *p, const kv_lane *lane, int64_t begin, int64_t end)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    hpa_read_head(p->tiles, g, &p->in->k, s->batch, lane->kv_head, s->kv_start, begin, end,
                  lane->keys + begin * p->width);
    hpa_read_head(p->tiles, g, &p->in->v, s->batch, lane->kv_head, s->kv_start, begin, end,
                  lane->values + begin * p->width);
}

/* dk and dv, whichever are wanted, of the keys in a range: all query blocks of the group, in
 * order. With want.dq the range must be all there is. */
static void walk_range(const pass *p, const worker *w, const kv_lane *lane, block_range range,
                       wanted want)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    const hpa_gradients *grads = p->grads;
    const int64_t begin = hpa_min(range.begin * g->block_k, s->kv_length);
    const int64_t end = hpa_min(range.end * g->block_k, s->kv_length);
    for (int64_t n = begin * p->width; n < end * p->width; n++)
        lane->dk[n] = lane->dv[n] = 0;
    for (int64_t head = lane->kv_head * g->group; head < (lane->kv_head + 1) * g->group; head++)
        for (int64_t query_block = 0; query_block < s->query_blocks; query_block++)
            walk_block(p, w, lane, head, query_block, range, want);
    if (want.dk)
        hpa_write_head(p->tiles, g, &grads->dk, s->batch, lane->kv_head, s->kv_start, begin, end,
                       lane->dk + begin * p->width, (real)g->scale, grads->accumulate);
    if (want.dv)
        hpa_write_head(p->tiles, g, &grads->dv, s->batch, lane->kv_head, s->kv_start, begin, end,
                       lane->dv + begin * p->width, 1, grads->accumulate);
}

static void run_lane_alone(const pass *p, int64_t index)
{
    const worker w = worker_of_thread(p);
    const kv_lane lane = lane_at(p, index, omp_get_thread_num());
    if (lane_is_shared(p->plan, p->in, &lane.sequence))
        return;
    copy_keys(p, &lane, 0, lane.sequence.kv_length);
    const block_range all = {0, lane.sequence.key_blocks};
    walk_range(p, &w, &lane, all, all_wanted(p->grads));
}

/* Every thread of the team calls this. */
static void run_lane_shared(const pass *p, const kv_lane *lane)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    const worker w = worker_of_thread(p);
    const wanted want = all_wanted(p->grads);
    const int64_t parts = p->plan->num_threads;
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < s->kv_length; begin += COPY_TOKENS)
        copy_keys(p, lane, begin, hpa_min(begin + COPY_TOKENS, s->kv_length));
#pragma omp for schedule(dynamic)
    for (int64_t task = want.dq ? g->group * s->query_blocks - 1 : -1; task >= 0; task--)
        walk_block(p, &w, lane, lane->kv_head * g->group + task / s->query_blocks,
                   task % s->query_blocks, (block_range){0, s->key_blocks}, (wanted){.dq = true});
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < (want.dk || want.dv ? parts : 0); part++) {
        const block_range range = {range_boundary(g, &p->mask, s, lane->kv_head, part, parts),
                                   range_boundary(g, &p->mask, s, lane->kv_head, part + 1, parts)};
        walk_range(p, &w, lane, range, (wanted){.dk = want.dk, .dv = want.dv});
    }
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    hpa_arena arena = {0};
    take_scratch(plan, &arena);
    return hpa_cpu_scratch_bytes(&arena);
}

static hpa_status backward_cpu(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_gradients *grads,
                               const hpa_exec *exec)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_arena arena = hpa_cpu_arena(exec);
    pass p = take_scratch(plan, &arena);
    p.tiles = plan->cpu->OF_REAL(tiles);
    p.in = in;
    p.out = out;
    p.grads = grads;
    p.mask = hpa_mask_view_const(g, mask);
    const int64_t lanes = g->batch * g->heads_kv;
#pragma omp parallel for num_threads(lane_rooms(plan)) schedule(dynamic)
    for (int64_t index = 0; index < lanes; index++)
        run_lane_alone(&p, index);
    for (int64_t index = 0; index < lanes; index++) {
        const kv_lane lane = lane_at(&p, index, 0);
        if (!lane_is_shared(plan, in, &lane.sequence))
            continue;
#pragma omp parallel num_threads(plan->num_threads)
        run_lane_shared(&p, &lane);
    }
    return HPA_OK;
}

const hpa_backward_kernel OF_REAL(hpa_backward_cpu) = {"backward_cpu", scratch_bytes, backward_cpu};
