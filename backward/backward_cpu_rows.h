/* The body of backward_cpu.c for one kind of reals; included twice. */
#include "core/cpu/head_rows.h"
#include "core/cpu/real.h"
#include "core/cpu/span_products.h"

/* One thread's room for a block of queries. */
typedef struct NAMED(worker) {
    real *q, *d_out;             /* [block_q, width] */
    real *q_panel, *d_out_panel; /* [head_dim, stride] turned; q times scale, in powers of two */
    real *scores, *d_scores;     /* [HPA_CHUNK_KEYS, stride] */
    real *dq;                    /* [block_q, width] */
    real *lse, *delta;           /* [stride]; lse in powers of two */
} NAMED(worker);

/* One sequence and key/value head. [seq_kv, width] each. */
typedef struct NAMED(lane) {
    hpa_sequence sequence;
    int64_t kv_head;
    real *keys, *values, *dk, *dv;
} NAMED(lane);

typedef struct NAMED(pass) {
    const hpa_plan *plan;
    const NAMED(hpa_tiles) * tiles;
    const hpa_inputs *in;
    const hpa_outputs *out;
    const hpa_gradients *grads;
    hpa_mask mask;
    int64_t width;  /* head_dim, padded */
    int64_t stride; /* of scores */
    unsigned char *workers, *lanes;
    size_t worker_bytes, lane_bytes;
} NAMED(pass);

static NAMED(worker) NAMED(take_worker)(const NAMED(pass) * p, hpa_arena *arena)
{
    const hpa_geometry *g = &p->plan->geometry;
    NAMED(worker) w;
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

static NAMED(lane) NAMED(take_lane)(const NAMED(pass) * p, hpa_arena *arena)
{
    const int64_t n = p->plan->geometry.seq_kv * p->width;
    NAMED(lane) lane = {.kv_head = 0};
    lane.keys = HPA_ARENA_ARRAY(arena, real, n);
    lane.values = HPA_ARENA_ARRAY(arena, real, n);
    lane.dk = HPA_ARENA_ARRAY(arena, real, n);
    lane.dv = HPA_ARENA_ARRAY(arena, real, n);
    return lane;
}

static NAMED(pass) NAMED(take_scratch)(const hpa_plan *plan, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    NAMED(pass) p = {.plan = plan, .width = hpa_padded(g->head_dim)};
    p.stride = hpa_spread_stride(g->block_q, sizeof(real));
    hpa_arena worker = {0}, lane = {0};
    NAMED(take_worker)(&p, &worker);
    NAMED(take_lane)(&p, &lane);
    p.worker_bytes = worker.used;
    p.lane_bytes = lane.used;
    p.workers = HPA_ARENA_ARRAY(arena, unsigned char, plan->num_threads *(int64_t)worker.used);
    p.lanes = HPA_ARENA_ARRAY(arena, unsigned char, lane_rooms(plan) * (int64_t)lane.used);
    return p;
}

static NAMED(worker) NAMED(worker_of_thread)(const NAMED(pass) * p)
{
    hpa_arena arena = {.base = p->workers + (size_t)omp_get_thread_num() * p->worker_bytes};
    return NAMED(take_worker)(p, &arena);
}

static NAMED(lane) NAMED(lane_at)(const NAMED(pass) * p, int64_t index, int64_t room)
{
    const hpa_geometry *g = &p->plan->geometry;
    hpa_arena arena = {.base = p->lanes + (size_t)room * p->lane_bytes};
    NAMED(lane) lane = NAMED(take_lane)(p, &arena);
    lane.sequence =
        hpa_sequence_at(g, p->in->cu_seqlens_q, p->in->cu_seqlens_kv, index / g->heads_kv);
    lane.kv_head = index % g->heads_kv;
    return lane;
}

/* A block of queries */

/* delta_i = O_i . dO_i - dLSE_i. Room for O is borrowed from dq. */
static void NAMED(load_delta)(const NAMED(pass) * p, const NAMED(worker) * w, const hpa_sequence *s,
                              int64_t head, int64_t first, int64_t end)
{
    const hpa_geometry *g = &p->plan->geometry;
    NAMED(hpa_read_head)(p->tiles, g, &p->out->out, s->batch, head, s->q_start, first, end, w->dq);
    p->tiles->row_dots(w->delta, w->dq, w->d_out, p->width, end - first, p->width);
    if (!p->grads->d_lse.data)
        return;
    const hpa_strides strides = hpa_strides_of(&p->grads->d_lse, g->packed);
    const real *d_lse = (const real *)p->grads->d_lse.data +
                        hpa_offset(&strides, s->batch, head, s->q_start, first);
    for (int64_t query = 0; query < end - first; query++)
        w->delta[query] -= d_lse[query * strides.token];
}

static void NAMED(load_lse)(const NAMED(pass) * p, const NAMED(worker) * w, const hpa_sequence *s,
                            int64_t head, int64_t first, int64_t end)
{
    const double log2_e = 1.44269504088896340736;
    const hpa_strides strides = hpa_strides_of(&p->out->lse, p->plan->geometry.packed);
    const real *lse =
        (const real *)p->out->lse.data + hpa_offset(&strides, s->batch, head, s->q_start, first);
    for (int64_t query = 0; query < end - first; query++)
        w->lse[query] = (real)((double)lse[query * strides.token] * log2_e);
}

static void NAMED(load_queries)(const NAMED(pass) * p, const NAMED(worker) * w,
                                const hpa_sequence *s, int64_t head, int64_t first, int64_t end)
{
    const hpa_geometry *g = &p->plan->geometry;
    const double log2_e = 1.44269504088896340736;
    const int64_t queries = end - first;
    NAMED(hpa_read_head)(p->tiles, g, &p->in->q, s->batch, head, s->q_start, first, end, w->q);
    NAMED(hpa_read_head)
    (p->tiles, g, &p->grads->d_out, s->batch, head, s->q_start, first, end, w->d_out);
    NAMED(hpa_make_panel)
    (p->tiles, g, w->q, queries, (real)(g->scale * log2_e), w->q_panel, p->stride);
    NAMED(hpa_make_panel)(p->tiles, g, w->d_out, queries, 1, w->d_out_panel, p->stride);
    NAMED(load_lse)(p, w, s, head, first, end);
    NAMED(load_delta)(p, w, s, head, first, end);
    for (int64_t query = queries; query < hpa_padded(queries); query++)
        w->lse[query] = w->delta[query] = 0;
    for (int64_t n = 0; n < queries * p->width; n++)
        w->dq[n] = 0;
}

/* p and ds of a chunk, in place of s and dp. */
static void NAMED(score_chunk)(const NAMED(pass) * p, const NAMED(worker) * w,
                               const NAMED(lane) * lane, const hpa_chunk *chunk,
                               const NAMED(hpa_score_tile) * scores,
                               const NAMED(hpa_score_tile) * d_scores, bool needs_ds)
{
    const hpa_geometry *g = &p->plan->geometry;
    for (int64_t n = 0; n < chunk->n_spans; n++) {
        const hpa_span *span = &chunk->spans[n];
        NAMED(hpa_multiply_span)(p->tiles, g, span, lane->keys, w->q_panel, scores);
        if (needs_ds)
            NAMED(hpa_multiply_span)(p->tiles, g, span, lane->values, w->d_out_panel, d_scores);
    }
    p->tiles->softmax_gradient(scores, d_scores->data, w->lse, w->delta);
    for (int64_t n = 0; n < chunk->n_spans; n++) {
        NAMED(hpa_hide)(&chunk->spans[n], scores, 0);
        NAMED(hpa_hide)(&chunk->spans[n], d_scores, 0);
    }
}

static void NAMED(walk_chunk)(const NAMED(pass) * p, const NAMED(worker) * w,
                              const NAMED(lane) * lane, const hpa_chunk *chunk, int64_t queries,
                              wanted want)
{
    const hpa_geometry *g = &p->plan->geometry;
    const NAMED(hpa_score_tile) scores = {.data = w->scores,
                                          .stride = p->stride,
                                          .keys = chunk->keys,
                                          .queries = hpa_padded(queries)};
    NAMED(hpa_score_tile) d_scores = scores;
    d_scores.data = w->d_scores;
    NAMED(score_chunk)(p, w, lane, chunk, &scores, &d_scores, want.dq || want.dk);
    for (int64_t n = 0; n < chunk->n_spans; n++) {
        const hpa_span *span = &chunk->spans[n];
        if (want.dv)
            NAMED(hpa_scatter_span)(p->tiles, g, span, &scores, queries, w->d_out, lane->dv);
        if (want.dk)
            NAMED(hpa_scatter_span)(p->tiles, g, span, &d_scores, queries, w->q, lane->dk);
        if (want.dq)
            NAMED(hpa_gather_span)(p->tiles, g, span, &d_scores, queries, lane->keys, w->dq);
    }
}

/* The kept blocks of a row that lie in a range. */
static hpa_row_cursor NAMED(row_in_range)(const NAMED(pass) * p, const hpa_sequence *s,
                                          int64_t head, int64_t query_block, block_range range)
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
static void NAMED(walk_block)(const NAMED(pass) * p, const NAMED(worker) * w,
                              const NAMED(lane) * lane, int64_t head, int64_t query_block,
                              block_range range, wanted want)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    hpa_row_cursor cursor = NAMED(row_in_range)(p, s, head, query_block, range);
    if (cursor.next == cursor.end && !want.dq)
        return;
    const int64_t first = hpa_block_begin(query_block, g->block_q);
    const int64_t end = hpa_block_end(query_block, g->block_q, s->q_length);
    NAMED(load_queries)(p, w, s, head, first, end);
    hpa_chunk chunk;
    while (hpa_next_chunk(&cursor, &chunk))
        NAMED(walk_chunk)(p, w, lane, &chunk, end - first, want);
    if (want.dq)
        NAMED(hpa_write_head)
        (p->tiles, g, &p->grads->dq, s->batch, head, s->q_start, first, end, w->dq, (real)g->scale,
         p->grads->accumulate);
}

/* A lane */

static void NAMED(copy_keys)(const NAMED(pass) * p, const NAMED(lane) * lane, int64_t begin,
                             int64_t end)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    NAMED(hpa_read_head)
    (p->tiles, g, &p->in->k, s->batch, lane->kv_head, s->kv_start, begin, end,
     lane->keys + begin * p->width);
    NAMED(hpa_read_head)
    (p->tiles, g, &p->in->v, s->batch, lane->kv_head, s->kv_start, begin, end,
     lane->values + begin * p->width);
}

/* dk and dv, whichever are wanted, of the keys in a range: all query blocks of the group, in
 * order. With want.dq the range must be all there is. */
static void NAMED(walk_range)(const NAMED(pass) * p, const NAMED(worker) * w,
                              const NAMED(lane) * lane, block_range range, wanted want)
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
            NAMED(walk_block)(p, w, lane, head, query_block, range, want);
    if (want.dk)
        NAMED(hpa_write_head)
        (p->tiles, g, &grads->dk, s->batch, lane->kv_head, s->kv_start, begin, end,
         lane->dk + begin * p->width, (real)g->scale, grads->accumulate);
    if (want.dv)
        NAMED(hpa_write_head)
        (p->tiles, g, &grads->dv, s->batch, lane->kv_head, s->kv_start, begin, end,
         lane->dv + begin * p->width, 1, grads->accumulate);
}

static void NAMED(run_lane_alone)(const NAMED(pass) * p, int64_t index)
{
    const NAMED(worker) w = NAMED(worker_of_thread)(p);
    const NAMED(lane) lane = NAMED(lane_at)(p, index, omp_get_thread_num());
    if (lane_is_shared(p->plan, p->in, &lane.sequence))
        return;
    NAMED(copy_keys)(p, &lane, 0, lane.sequence.kv_length);
    const block_range all = {0, lane.sequence.key_blocks};
    NAMED(walk_range)(p, &w, &lane, all, all_wanted(p->grads));
}

/* Every thread of the team calls this. */
static void NAMED(run_lane_shared)(const NAMED(pass) * p, const NAMED(lane) * lane)
{
    const hpa_geometry *g = &p->plan->geometry;
    const hpa_sequence *s = &lane->sequence;
    const NAMED(worker) w = NAMED(worker_of_thread)(p);
    const wanted want = all_wanted(p->grads);
    const int64_t parts = p->plan->num_threads;
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < s->kv_length; begin += COPY_TOKENS)
        NAMED(copy_keys)(p, lane, begin, hpa_min(begin + COPY_TOKENS, s->kv_length));
#pragma omp for schedule(dynamic)
    for (int64_t task = want.dq ? g->group * s->query_blocks - 1 : -1; task >= 0; task--)
        NAMED(walk_block)
        (p, &w, lane, lane->kv_head * g->group + task / s->query_blocks, task % s->query_blocks,
         (block_range){0, s->key_blocks}, (wanted){.dq = true});
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < (want.dk || want.dv ? parts : 0); part++) {
        const block_range range = {range_boundary(g, &p->mask, s, lane->kv_head, part, parts),
                                   range_boundary(g, &p->mask, s, lane->kv_head, part + 1, parts)};
        NAMED(walk_range)(p, &w, lane, range, (wanted){.dk = want.dk, .dv = want.dv});
    }
}

static void NAMED(backward)(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                            const hpa_outputs *out, const hpa_gradients *grads, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    NAMED(pass) p = NAMED(take_scratch)(plan, arena);
    p.tiles = &plan->cpu->NAMED(tiles);
    p.in = in;
    p.out = out;
    p.grads = grads;
    p.mask = hpa_mask_view_const(g, mask);
    const int64_t lanes = g->batch * g->heads_kv;
#pragma omp parallel for num_threads(lane_rooms(plan)) schedule(dynamic)
    for (int64_t index = 0; index < lanes; index++)
        NAMED(run_lane_alone)(&p, index);
    for (int64_t index = 0; index < lanes; index++) {
        const NAMED(lane) lane = NAMED(lane_at)(&p, index, 0);
        if (!lane_is_shared(plan, in, &lane.sequence))
            continue;
#pragma omp parallel num_threads(plan->num_threads)
        NAMED(run_lane_shared)(&p, &lane);
    }
}
