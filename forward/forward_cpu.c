/* The fast forward pass.
 *
 * A task is one query head's block of queries. It takes the kept keys of its mask row in chunks:
 * scores by one product, weights by one step of an online softmax, and a second product that adds
 * the weighted values. Scores are laid [key][query], so both products read k and v as they lie and
 * neither needs a transposed copy; only the block's own q is turned, once for all its chunks.
 *
 * The key/value heads are taken in waves. A wave's k and v are first copied to scratch as reals of a
 * padded width, then its tasks run in any order: each owns its rows of out and lse, so the bits do
 * not depend on the number of threads.
 *
 * Per pair of query and key: 4 head_dim FLOPs in products. Per row of 128 queries and chunk of 128
 * keys in f32 at head_dim 64, the scores are 64 KB, the keys and values read 64 KB, the sums 32 KB:
 * a near cache holds them. */
#include "core/cpu/head_rows.h"
#include "core/cpu/span_products.h"
#include "forward/kernels.h"

#include <math.h>
#include <omp.h>

/* Keys that are copied by one task. */
#define COPY_TOKENS 256

/* Key/value heads that are worked on at a time: enough for four tasks a thread. */
static int64_t heads_of_wave(const hpa_plan *plan)
{
    const hpa_geometry *g = &plan->geometry;
    const int64_t tasks_of_head = hpa_max(1, g->group * g->row_slots);
    return hpa_min(g->heads_kv, hpa_ceil_div(4 * (int64_t)plan->num_threads, tasks_of_head));
}

/* One thread's room. */
typedef struct worker {
    real *rows;                    /* [block_q, width] of q */
    real *panel;                   /* [head_dim, stride] q turned, times scale, in powers of two */
    real *scores;                  /* [HPA_CHUNK_KEYS, stride] */
    real *sums;                    /* [block_q, width] of weighted values */
    real *highest, *sum, *rescale; /* [stride] */
} worker;

typedef struct pass {
    const hpa_plan *plan;
    const hpa_tiles *tiles;
    const hpa_inputs *in;
    const hpa_outputs *out;
    hpa_mask mask;
    int64_t width;       /* head_dim, padded */
    int64_t stride;      /* of scores */
    real *keys, *values; /* [heads of the wave, total_kv, width] */
    int64_t first_head;  /* of the wave */
    unsigned char *workers;
    size_t worker_bytes;
} pass;

static worker take_worker(const pass *f, hpa_arena *arena)
{
    const hpa_geometry *g = &f->plan->geometry;
    worker w;
    w.rows = HPA_ARENA_ARRAY(arena, real, g->block_q * f->width);
    w.panel = HPA_ARENA_ARRAY(arena, real, g->head_dim * f->stride);
    w.scores = HPA_ARENA_ARRAY(arena, real, HPA_CHUNK_KEYS * f->stride);
    w.sums = HPA_ARENA_ARRAY(arena, real, g->block_q * f->width);
    w.highest = HPA_ARENA_ARRAY(arena, real, f->stride);
    w.sum = HPA_ARENA_ARRAY(arena, real, f->stride);
    w.rescale = HPA_ARENA_ARRAY(arena, real, f->stride);
    return w;
}

static pass take_scratch(const hpa_plan *plan, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    pass f = {.plan = plan, .width = hpa_padded(g->head_dim)};
    f.stride = hpa_spread_stride(g->block_q, sizeof(real));
    const int64_t rows = heads_of_wave(plan) * g->total_kv;
    f.keys = HPA_ARENA_ARRAY(arena, real, rows * f.width);
    f.values = HPA_ARENA_ARRAY(arena, real, rows * f.width);
    hpa_arena counter = {0};
    take_worker(&f, &counter);
    f.worker_bytes = counter.used;
    f.workers = HPA_ARENA_ARRAY(arena, unsigned char, (int64_t)counter.used * plan->num_threads);
    return f;
}

/* One task of copying: COPY_TOKENS rows of k and v of one head. */
static void copy_keys(const pass *f, int64_t head_of_wave, int64_t piece)
{
    const hpa_geometry *g = &f->plan->geometry;
    const int64_t pieces = hpa_ceil_div(g->seq_kv, COPY_TOKENS);
    const hpa_sequence s =
        hpa_sequence_at(g, f->in->cu_seqlens_q, f->in->cu_seqlens_kv, piece / pieces);
    const int64_t begin = hpa_min(piece % pieces * COPY_TOKENS, s.kv_length);
    const int64_t end = hpa_min(begin + COPY_TOKENS, s.kv_length);
    const int64_t start = g->packed ? s.kv_start : s.batch * g->seq_kv;
    const int64_t at = (head_of_wave * g->total_kv + start + begin) * f->width;
    const int64_t head = f->first_head + head_of_wave;
    hpa_read_head(f->tiles, g, &f->in->k, s.batch, head, s.kv_start, begin, end, f->keys + at);
    hpa_read_head(f->tiles, g, &f->in->v, s.batch, head, s.kv_start, begin, end, f->values + at);
}

/* One block of queries of one query head. */
typedef struct block {
    hpa_sequence sequence;
    int64_t head, query_block;
    int64_t first_query, queries;
    const real *keys, *values; /* of its sequence and key/value head */
} block;

static void load_queries(const pass *f, const worker *w, const block *b)
{
    const hpa_geometry *g = &f->plan->geometry;
    hpa_read_head(f->tiles, g, &f->in->q, b->sequence.batch, b->head, b->sequence.q_start,
                  b->first_query, b->first_query + b->queries, w->rows);
    const double log2_e = 1.44269504088896340736;
    hpa_make_panel(f->tiles, g, w->rows, b->queries, (real)(g->scale * log2_e), w->panel,
                   f->stride);
    for (int64_t query = 0; query < f->stride; query++) {
        w->highest[query] = -(real)INFINITY;
        w->sum[query] = 0;
    }
}

/* s_ij = q_i . k_j;  p_ij = exp(s_ij - highest_i);  o_i += p_ij v_j */
static void attend_to_chunk(const pass *f, const worker *w, const block *b, const hpa_chunk *chunk)
{
    const hpa_geometry *g = &f->plan->geometry;
    const hpa_score_tile scores = {.data = w->scores,
                                   .stride = f->stride,
                                   .keys = chunk->keys,
                                   .queries = hpa_padded(b->queries)};
    for (int64_t n = 0; n < chunk->n_spans; n++) {
        hpa_multiply_span(f->tiles, g, &chunk->spans[n], b->keys, w->panel, &scores);
        hpa_hide(&chunk->spans[n], &scores, -(real)INFINITY);
    }
    f->tiles->softmax(&scores, w->highest, w->sum, w->rescale);
    f->tiles->scale_rows(w->sums, f->width, b->queries, f->width, w->rescale);
    for (int64_t n = 0; n < chunk->n_spans; n++)
        hpa_gather_span(f->tiles, g, &chunk->spans[n], &scores, b->queries, b->values, w->sums);
}

/* o_i /= sum_i,  lse_i = highest_i + log sum_i; 0 and -inf for a query that sees no key. */
static void finish_rows(const pass *f, const worker *w, const block *b, int64_t n_blind)
{
    const double ln_2 = 0.693147180559945309417;
    const hpa_strides strides = hpa_strides_of(&f->out->lse, f->plan->geometry.packed);
    real *lse = (real *)f->out->lse.data + hpa_offset(&strides, b->sequence.batch, b->head,
                                                      b->sequence.q_start, b->first_query);
    for (int64_t query = 0; query < b->queries; query++) {
        const bool blind = query < n_blind;
        const double sum = w->sum[query] > 0 ? (double)w->sum[query] : (double)NAN;
        w->rescale[query] = blind ? 0 : (real)(1 / sum);
        lse[query * strides.token] =
            blind ? -(real)INFINITY : (real)(((double)w->highest[query] + log2(sum)) * ln_2);
    }
    f->tiles->scale_rows(w->sums, f->width, b->queries, f->width, w->rescale);
    hpa_write_head(f->tiles, &f->plan->geometry, &f->out->out, b->sequence.batch, b->head,
                   b->sequence.q_start, b->first_query, b->first_query + b->queries, w->sums, 1,
                   false);
}

/* How many of the block's first queries see no key at all. */
static int64_t count_blind(const hpa_geometry *g, const block *b, const hpa_row_cursor *row)
{
    if (row->next == row->end)
        return b->queries;
    if (!g->causal)
        return 0;
    const int64_t first_key = hpa_block_begin(*row->next, g->block_k);
    const int64_t position = hpa_key_position(&b->sequence, b->first_query);
    return hpa_max(0, hpa_min(b->queries, first_key - position));
}

static void attend(const pass *f, const worker *w, const block *b)
{
    const hpa_geometry *g = &f->plan->geometry;
    const int64_t row = hpa_row_index(g, &b->sequence, b->head / g->mask_group, b->query_block);
    const int32_t *blocks = f->mask.row_blocks + row * g->capacity;
    hpa_row_cursor cursor = {.g = g,
                             .sequence = &b->sequence,
                             .query_block = b->query_block,
                             .next = blocks,
                             .end = blocks + f->mask.row_length[row]};
    const int64_t blind = count_blind(g, b, &cursor);
    load_queries(f, w, b);
    for (int64_t n = 0; n < b->queries * f->width; n++)
        w->sums[n] = 0;
    hpa_chunk chunk;
    while (hpa_next_chunk(&cursor, &chunk))
        attend_to_chunk(f, w, b, &chunk);
    finish_rows(f, w, b, blind);
}

/* Task number task of the wave. Late blocks see more keys, so they come first. */
static void run_task(const pass *f, int64_t task)
{
    const hpa_geometry *g = &f->plan->geometry;
    const int64_t head_of_wave = task / (g->group * g->row_slots);
    const int64_t member = task / g->row_slots % g->group;
    const int64_t slot = g->row_slots - 1 - task % g->row_slots;
    const int64_t batch = hpa_batch_of_row(g, f->in->cu_seqlens_q, slot * g->mask_heads);
    block b;
    b.sequence = hpa_sequence_at(g, f->in->cu_seqlens_q, f->in->cu_seqlens_kv, batch);
    b.head = (f->first_head + head_of_wave) * g->group + member;
    b.query_block = slot - b.sequence.row_start;
    if (b.query_block >= b.sequence.query_blocks)
        return;
    b.first_query = hpa_block_begin(b.query_block, g->block_q);
    b.queries = hpa_block_end(b.query_block, g->block_q, b.sequence.q_length) - b.first_query;
    const int64_t start = g->packed ? b.sequence.kv_start : batch * g->seq_kv;
    b.keys = f->keys + (head_of_wave * g->total_kv + start) * f->width;
    b.values = f->values + (head_of_wave * g->total_kv + start) * f->width;
    hpa_arena arena = {.base = f->workers + (size_t)omp_get_thread_num() * f->worker_bytes};
    const worker w = take_worker(f, &arena);
    attend(f, &w, &b);
}

static void run_wave(const pass *f, int64_t heads)
{
    const hpa_geometry *g = &f->plan->geometry;
    const int64_t pieces = g->batch * hpa_ceil_div(g->seq_kv, COPY_TOKENS);
    const int64_t tasks = heads * g->group * g->row_slots;
#pragma omp parallel num_threads(f->plan->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < heads * pieces; n++)
            copy_keys(f, n / pieces, n % pieces);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++)
            run_task(f, task);
    }
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    hpa_arena arena = {0};
    take_scratch(plan, &arena);
    return hpa_cpu_scratch_bytes(&arena);
}

static hpa_status forward_cpu(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                              const hpa_outputs *out, const hpa_exec *exec)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_arena arena = hpa_cpu_arena(exec);
    pass f = take_scratch(plan, &arena);
    f.tiles = plan->cpu->OF_REAL(tiles);
    f.in = in;
    f.out = out;
    f.mask = hpa_mask_view_const(g, mask);
    const int64_t wave = heads_of_wave(plan);
    for (f.first_head = 0; f.first_head < g->heads_kv; f.first_head += wave)
        run_wave(&f, hpa_min(wave, g->heads_kv - f.first_head));
    return HPA_OK;
}

const hpa_forward_kernel OF_REAL(hpa_forward_cpu) = {"forward_cpu", scratch_bytes, forward_cpu};
