/* The fast mask: the search that mask_ref.c spells out, one mask row a task, or one span of rows where
 * these share the coarse levels of the search.
 *
 * A row's sampled queries are turned once into a panel. At each level the representative keys of
 * all children are gathered, some tens at a time, and one product scores them against all the
 * queries; the best score of each child is folded out of the tile while it is in a near cache. A
 * row costs 2 head_dim FLOPs for each pair of sampled query and representative key.
 *
 * The best children are told by the lowest score among them, found without sorting; passing over
 * the children in order then keeps them ascending and settles ties by index. */
#include "core/cpu/head_rows.h"
#include "mask/kernels.h"
#include "mask/rules.h"

#include <math.h>
#include <omp.h>

/* Representative keys that are scored by one product. */
#define BATCH_KEYS 64

/* Queries of one mask row that take part in the search, over all heads that share the row. */
static int64_t most_sampled_queries(const hpa_geometry *g)
{
    return g->mask_group * hpa_ceil_div(g->block_q, g->query_stride);
}

/* A range of candidates: the best score of its representative keys in either half, and the score by
 * which it is judged, of those and of the half that it was of the range before. */
typedef struct node {
    int64_t begin, end;
    real half[2];
    real score;
} node;

/* Representative keys that wait for a product, and the half of a child that each stands for: owner
 * 2 c + h. */
typedef struct key_batch {
    real *keys;   /* [BATCH_KEYS, width] */
    real *scores; /* [BATCH_KEYS, stride] */
    int64_t owner[BATCH_KEYS];
    int64_t count;
} key_batch;

typedef struct search {
    const hpa_plan *plan;
    const hpa_tiles *tiles;
    const hpa_inputs *in;
    int64_t width;  /* head_dim, padded */
    int64_t stride; /* of panel and scores */
    /* One row. */
    hpa_sequence sequence;
    int64_t mask_head, query_block;
    hpa_row_sets sets;
    int64_t queries; /* sampled, padded */
    real *rows;      /* [queries, width] */
    real *panel;     /* [head_dim, stride] */
    key_batch batch;
    node *nodes, *children; /* [2 * min(W, key blocks)] each */
    real *ranking;          /* as many */
    /* One span: what its first row found at the levels that it searches for all. */
    int64_t shared_levels;
    int64_t leader_candidates;
    node *shared; /* [shared_count], room for W */
    int64_t shared_count;
} search;

/* Scratch of all threads. */
typedef struct scratch {
    unsigned char *searches;
    size_t search_bytes;
} scratch;

static search take_search(const hpa_plan *plan, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    const int64_t queries = hpa_padded(most_sampled_queries(g));
    const int64_t key_blocks = hpa_ceil_div(g->seq_kv, g->block_k);
    const int64_t nodes = 2 * hpa_min(g->beam_nodes, key_blocks);
    search x = {.plan = plan, .width = hpa_padded(g->head_dim)};
    x.stride = hpa_spread_stride(queries, sizeof(real));
    x.rows = HPA_ARENA_ARRAY(arena, real, queries * x.width);
    x.panel = HPA_ARENA_ARRAY(arena, real, g->head_dim * x.stride);
    x.batch.keys = HPA_ARENA_ARRAY(arena, real, BATCH_KEYS * x.width);
    x.batch.scores = HPA_ARENA_ARRAY(arena, real, BATCH_KEYS * x.stride);
    x.nodes = HPA_ARENA_ARRAY(arena, node, nodes);
    x.children = HPA_ARENA_ARRAY(arena, node, nodes);
    x.ranking = HPA_ARENA_ARRAY(arena, real, nodes);
    x.shared = HPA_ARENA_ARRAY(arena, node, nodes / 2);
    return x;
}

static scratch take_scratch(const hpa_plan *plan, hpa_arena *arena)
{
    hpa_arena counter = {0};
    take_search(plan, &counter);
    scratch all = {.search_bytes = counter.used};
    all.searches = HPA_ARENA_ARRAY(arena, unsigned char, (int64_t)counter.used * plan->num_threads);
    return all;
}

/* The row's sampled queries, of all heads that share it, as a panel. The padding repeats the first
 * query, which changes no maximum. */
static void load_queries(search *x)
{
    const hpa_geometry *g = &x->plan->geometry;
    const hpa_sequence *s = &x->sequence;
    const int64_t first = hpa_block_begin(x->query_block, g->block_q);
    const int64_t end = hpa_block_end(x->query_block, g->block_q, s->q_length);
    int64_t n = 0;
    for (int64_t member = 0; member < g->mask_group; member++)
        for (int64_t query = first; query < end; query += g->query_stride)
            hpa_read_head(x->tiles, g, &x->in->q, s->batch, x->mask_head * g->mask_group + member,
                          s->q_start, query, query + 1, x->rows + n++ * x->width);
    x->queries = hpa_padded(n);
    for (; n < x->queries; n++)
        for (int64_t d = 0; d < x->width; d++)
            x->rows[n * x->width + d] = x->rows[d];
    hpa_make_panel(x->tiles, g, x->rows, x->queries, 1, x->panel, x->stride);
}

/* Scores the keys that wait, and gives each half of a child the best of its own. */
static void score_batch(search *x)
{
    key_batch *batch = &x->batch;
    const hpa_product product = {.m = batch->count,
                                 .n = x->queries,
                                 .k = x->plan->geometry.head_dim,
                                 .a = batch->keys,
                                 .a_stride = x->width,
                                 .b = x->panel,
                                 .b_stride = x->stride,
                                 .c = batch->scores,
                                 .c_stride = x->stride};
    x->tiles->multiply(&product);
    for (int64_t begin = 0, end; begin < batch->count; begin = end) {
        node *child = &x->children[batch->owner[begin] / 2];
        real *half = &child->half[batch->owner[begin] % 2];
        for (end = begin + 1; end < batch->count && batch->owner[end] == batch->owner[begin];)
            end++;
        const hpa_score_tile tile = {.data = batch->scores + begin * x->stride,
                                     .stride = x->stride,
                                     .keys = end - begin,
                                     .queries = x->queries};
        const real score = x->tiles->highest(&tile);
        *half = score > *half ? score : *half;
        child->score = score > child->score ? score : child->score;
    }
    batch->count = 0;
}

static void score_children(search *x, int64_t n_children, int64_t wanted)
{
    const hpa_geometry *g = &x->plan->geometry;
    const hpa_sequence *s = &x->sequence;
    key_batch *batch = &x->batch;
    const int64_t kv_head = x->mask_head * g->mask_group / g->group;
    batch->count = 0;
    for (int64_t c = 0; c < n_children; c++) {
        node *child = &x->children[c];
        const int64_t count = hpa_representatives(g, child->begin, child->end, wanted);
        const int64_t middle = hpa_node_middle(child->begin, child->end);
        for (int64_t n = 0; n < count; n++) {
            const int64_t key =
                hpa_representative_key(g, s, &x->sets, child->begin, child->end, count, n);
            hpa_read_head(x->tiles, g, &x->in->k, s->batch, kv_head, s->kv_start, key, key + 1,
                          batch->keys + batch->count * x->width);
            const int64_t candidate =
                hpa_representative_candidate(g, child->begin, child->end, count, n);
            batch->owner[batch->count++] = 2 * c + (candidate >= middle);
            if (batch->count == BATCH_KEYS)
                score_batch(x);
        }
    }
    if (batch->count > 0)
        score_batch(x);
}

static node new_child(int64_t begin, int64_t end, real inherited)
{
    return (node){begin, end, {-(real)INFINITY, -(real)INFINITY}, inherited};
}

static int64_t split_nodes(const search *x, int64_t n_nodes)
{
    int64_t n_children = 0;
    for (int64_t n = 0; n < n_nodes; n++) {
        const node *parent = &x->nodes[n]; /* all of a single candidate is its first half */
        const int64_t middle = hpa_node_middle(parent->begin, parent->end);
        x->children[n_children++] = new_child(parent->begin, middle, parent->half[0]);
        if (middle < parent->end)
            x->children[n_children++] = new_child(middle, parent->end, parent->half[1]);
    }
    return n_children;
}

/* The rank-th highest of values, which it reorders: Hoare's selection. No value is NaN. */
static real select_rank(real *values, int64_t n, int64_t rank)
{
    int64_t low = 0, high = n - 1;
    while (low < high) {
        const real pivot = values[low + (high - low) / 2];
        int64_t left = low, right = high;
        while (left <= right) {
            while (values[left] > pivot)
                left++;
            while (values[right] < pivot)
                right--;
            if (left > right)
                break;
            const real swapped = values[left];
            values[left++] = values[right];
            values[right--] = swapped;
        }
        if (rank - 1 <= right)
            high = right;
        else if (rank - 1 >= left)
            low = left;
        else
            return pivot;
    }
    return values[low];
}

/* Keeps the best `keep` children in their order. Equal scores: the earlier one is better. */
static int64_t keep_best(const search *x, int64_t n_children, int64_t keep)
{
    real lowest = -(real)INFINITY;
    int64_t ties = n_children; /* how many of those that score just lowest are kept */
    if (n_children > keep) {
        for (int64_t n = 0; n < n_children; n++)
            x->ranking[n] = x->children[n].score;
        lowest = select_rank(x->ranking, n_children, keep);
        ties = keep;
        for (int64_t n = 0; n < n_children; n++)
            ties -= x->children[n].score > lowest;
    }
    int64_t kept = 0;
    for (int64_t n = 0; n < n_children; n++) {
        const bool tied = x->children[n].score == lowest && ties-- > 0;
        if (tied || x->children[n].score > lowest)
            x->nodes[kept++] = x->children[n];
    }
    return kept;
}

static node first_node(int64_t begin, int64_t end)
{
    return new_child(begin, end, -(real)INFINITY);
}

static int64_t first_nodes(search *x)
{
    const int64_t candidates = x->sets.candidates;
    const int64_t n_nodes = hpa_first_nodes(&x->plan->geometry, candidates);
    for (int64_t n = 0; n < n_nodes; n++)
        x->nodes[n] = first_node(hpa_first_node_begin(n, n_nodes, candidates),
                                 hpa_first_node_begin(n + 1, n_nodes, candidates));
    return n_nodes;
}

/* What the first row of the span found, and the candidates that it does not have. */
static int64_t shared_nodes(search *x)
{
    int64_t n_nodes = 0;
    for (; n_nodes < x->shared_count; n_nodes++)
        x->nodes[n_nodes] = first_node(x->shared[n_nodes].begin, x->shared[n_nodes].end);
    for (int64_t n = 0;; n++) {
        const int64_t begin = hpa_tail_node_begin(x->leader_candidates, n);
        const int64_t end = hpa_tail_node_begin(x->leader_candidates, n + 1);
        if (begin >= x->sets.candidates)
            return n_nodes;
        x->nodes[n_nodes++] = first_node(begin, hpa_min(end, x->sets.candidates));
    }
}

static int64_t search_level(search *x, int64_t n_nodes, int64_t tokens, int64_t keep)
{
    const int64_t n_children = split_nodes(x, n_nodes);
    score_children(x, n_children, tokens);
    return keep_best(x, n_children, keep);
}

/* The levels that the first row of a span searches for all. */
static void search_shared_levels(search *x)
{
    const hpa_geometry *g = &x->plan->geometry;
    int64_t n_nodes = first_nodes(x);
    load_queries(x);
    for (int64_t level = 1; level < x->shared_levels; level++)
        n_nodes = search_level(x, n_nodes, g->rep_tokens, g->beam_nodes);
    const int64_t room = g->beam_nodes - hpa_span_tail_nodes(g);
    x->shared_count = search_level(x, n_nodes, g->rep_tokens, room);
    x->leader_candidates = x->sets.candidates;
    for (int64_t n = 0; n < x->shared_count; n++)
        x->shared[n] = x->nodes[n];
}

/* Leaves the chosen candidates in nodes[].begin, ascending, and returns how many there are. */
static int64_t search_tree(search *x)
{
    const hpa_geometry *g = &x->plan->geometry;
    const bool shares = x->shared_levels > 0;
    const int64_t levels =
        shares ? HPA_OWN_LEVELS : hpa_tree_levels(x->sets.candidates, g->beam_nodes);
    int64_t n_nodes = shares ? shared_nodes(x) : first_nodes(x);
    load_queries(x);
    for (int64_t level = 1; level < levels; level++)
        n_nodes = search_level(x, n_nodes, g->rep_tokens, g->beam_nodes);
    return search_level(x, n_nodes, g->leaf_tokens, g->tree_blocks);
}

/* Writes the kept blocks of a row, ascending, and returns how many there are. */
static int32_t build_row(search *x, int32_t *blocks)
{
    const hpa_geometry *g = &x->plan->geometry;
    const hpa_row_sets *sets = &x->sets;
    const bool keep_all = sets->candidates <= g->tree_blocks;
    const bool searches = !keep_all && g->tree_blocks > 0;
    const int64_t n_chosen = keep_all ? sets->candidates : searches ? search_tree(x) : 0;
    int32_t kept = 0;
    int64_t chosen = 0;
    for (int64_t block = 0; block < sets->sink_end; block++)
        blocks[kept++] = (int32_t)block;
    for (; chosen < n_chosen; chosen++) {
        const int64_t candidate = keep_all ? chosen : x->nodes[chosen].begin;
        if (candidate >= sets->left)
            break;
        blocks[kept++] = (int32_t)hpa_candidate_block(sets, candidate);
    }
    for (int64_t block = hpa_max(sets->window_begin, sets->sink_end); block < sets->window_end;
         block++)
        blocks[kept++] = (int32_t)block;
    for (; chosen < n_chosen; chosen++)
        blocks[kept++] =
            (int32_t)hpa_candidate_block(sets, keep_all ? chosen : x->nodes[chosen].begin);
    return kept;
}

static void go_to_row(search *x, int64_t query_block)
{
    x->query_block = query_block;
    x->sets = hpa_row_sets_of(&x->plan->geometry, &x->sequence, query_block);
}

static void run_row(search *x, int64_t query_block, hpa_mask *m)
{
    const hpa_geometry *g = &x->plan->geometry;
    const int64_t row = hpa_row_index(g, &x->sequence, x->mask_head, query_block);
    go_to_row(x, query_block);
    m->row_length[row] = build_row(x, m->row_blocks + row * g->capacity);
}

/* The whole span where its rows share levels; else this row. */
static void run_span_or_row(search *x, int64_t query_block, hpa_mask *m)
{
    const hpa_geometry *g = &x->plan->geometry;
    const int64_t leader = hpa_span_leader(g, query_block);
    go_to_row(x, leader);
    x->shared_levels = hpa_shared_levels(g, x->sets.candidates);
    if (x->shared_levels == 0) {
        run_row(x, query_block, m);
        return;
    }
    if (query_block != leader)
        return;
    search_shared_levels(x);
    const int64_t end = hpa_min(leader + g->search_span, x->sequence.query_blocks);
    for (int64_t block = leader; block < end; block++)
        run_row(x, block, m);
}

/* Row number row of the mask, which may be a slot that no sequence uses. */
static void run_task(search *x, int64_t row, hpa_mask *m)
{
    const hpa_geometry *g = &x->plan->geometry;
    const hpa_inputs *in = x->in;
    x->sequence = hpa_sequence_at(g, in->cu_seqlens_q, in->cu_seqlens_kv,
                                  hpa_batch_of_row(g, in->cu_seqlens_q, row));
    const int64_t slot = row - g->mask_heads * x->sequence.row_start;
    const int64_t query_block = slot % x->sequence.row_slots;
    x->mask_head = slot / x->sequence.row_slots;
    if (x->mask_head < g->mask_heads && query_block < x->sequence.query_blocks)
        run_span_or_row(x, query_block, m);
    else
        m->row_length[row] = 0;
}

static void build_rows(const hpa_plan *plan, const hpa_inputs *in, hpa_mask *m, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    const scratch all = take_scratch(plan, arena);
#pragma omp parallel num_threads(plan->num_threads)
    {
        hpa_arena own = {.base = all.searches + (size_t)omp_get_thread_num() * all.search_bytes};
        search x = take_search(plan, &own);
        x.tiles = plan->cpu->OF_REAL(tiles);
        x.in = in;
#pragma omp for schedule(dynamic)
        for (int64_t row = g->rows - 1; row >= 0; row--)
            run_task(&x, row, m);
    }
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    hpa_arena arena = {0};
    take_scratch(plan, &arena);
    return hpa_cpu_scratch_bytes(&arena);
}

static hpa_status mask_build_cpu(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                 const hpa_exec *exec)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_mask m = hpa_mask_at(g, mask);
    hpa_arena arena = hpa_cpu_arena(exec);
    hpa_mask_begin(g, in, &m);
    build_rows(plan, in, &m, &arena);
    if (g->training)
        hpa_mask_transpose_cpu(g, &m, plan->num_threads);
    return HPA_OK;
}

const hpa_mask_kernel OF_REAL(hpa_mask_cpu) = {"mask_cpu", scratch_bytes, mask_build_cpu};
