/* The specification of the mask: which key blocks each block of queries keeps.
 *
 * HiP attention searches a tree. The candidates, which are the visible key blocks that are neither
 * sinks nor in the window, are cut into W ranges of neighbours. Level by level each range is cut
 * in two, each half is scored by a few keys of its own and by those of the range before that lie
 * in it, and the best W halves go on, until the ranges are single blocks and the best M of them
 * are kept. A key that scores high is so found in log2(candidates / W) steps without looking at
 * all the others.
 *
 * While the ranges are long, neighbouring blocks of queries can share them, which is faster and finds
 * less. With search_span above 1 all levels but the last three are searched once for so many of them,
 * with the queries of the first: a later one must not choose for an earlier one. What the later ones
 * see besides, their tail, joins them before the last three levels, which each block of queries
 * searches itself. (Here each does the common levels over again; mask_cpu.c does them once.)
 *
 * mask/rules.h has the index arithmetic. Plain loops in double precision; speed is mask_cpu.c's
 * concern. */
#include "core/tensor.h"
#include "mask/kernels.h"
#include "mask/rules.h"

#include <math.h>

/* Candidates [begin, end). */
typedef struct range {
    int64_t begin, end;
} range;

/* A node of the tree, the one that it was split from, and the score by which it is judged. */
typedef struct node {
    range own, parent;
    double score;
} node;

/* One level of the search: representatives of a child, children to keep, and whether it is the first
 * that this row's queries judge. */
typedef struct level {
    int64_t tokens, keep;
    bool first;
} level;

/* One row's search: whose queries and keys, and room for the tree's nodes. */
typedef struct row_search {
    const hpa_geometry *g;
    const hpa_inputs *in;
    hpa_dtype dtype;
    hpa_sequence sequence;
    int64_t mask_head, query_block;
    hpa_row_sets sets;
    node *nodes, *children; /* [2 * min(W, key blocks)] each */
} row_search;

static double dot_product(const row_search *r, int64_t query_head, int64_t query, int64_t key)
{
    const hpa_strides q = hpa_strides_of(&r->in->q, r->g->packed);
    const hpa_strides k = hpa_strides_of(&r->in->k, r->g->packed);
    const hpa_sequence *s = &r->sequence;
    const int64_t kv_head = query_head / r->g->group;
    const int64_t q_at = hpa_offset(&q, s->batch, query_head, s->q_start, query);
    const int64_t k_at = hpa_offset(&k, s->batch, kv_head, s->kv_start, key);
    double sum = 0;
    for (int64_t d = 0; d < r->g->head_dim; d++)
        sum += hpa_load(r->in->q.data, r->dtype, q_at + d) *
               hpa_load(r->in->k.data, r->dtype, k_at + d);
    return sum;
}

/* The highest score of one key over the row's sampled queries. NaN counts as -inf. */
static double key_score(const row_search *r, int64_t key)
{
    const hpa_geometry *g = r->g;
    const int64_t first = hpa_block_begin(r->query_block, g->block_q);
    const int64_t end = hpa_block_end(r->query_block, g->block_q, r->sequence.q_length);
    double best = -INFINITY;
    for (int64_t member = 0; member < g->mask_group; member++)
        for (int64_t query = first; query < end; query += g->query_stride) {
            const double score = dot_product(r, r->mask_head * g->mask_group + member, query, key);
            if (score > best)
                best = score;
        }
    return best;
}

/* The highest score of those representatives of a node, wanted of them, that lie in `within`. */
static double best_within(const row_search *r, const range *of, int64_t wanted, const range *within)
{
    const int64_t count = hpa_representatives(r->g, of->begin, of->end, wanted);
    double best = -INFINITY;
    for (int64_t n = 0; n < count; n++) {
        const int64_t candidate = hpa_representative_candidate(r->g, of->begin, of->end, count, n);
        if (candidate < within->begin || candidate >= within->end)
            continue;
        const double score = key_score(
            r, hpa_representative_key(r->g, &r->sequence, &r->sets, of->begin, of->end, count, n));
        if (score > best)
            best = score;
    }
    return best;
}

/* A child is judged by its own representatives and by those of its parent that lie in it, unless the
 * parent was none that these queries judged: at their first level. */
static double child_score(const row_search *r, const node *child, const level *at)
{
    const double own = best_within(r, &child->own, at->tokens, &child->own);
    if (at->first)
        return own;
    const double inherited = best_within(r, &child->parent, r->g->rep_tokens, &child->own);
    return inherited > own ? inherited : own;
}

static int64_t split_nodes(const row_search *r, int64_t n_nodes)
{
    int64_t n_children = 0;
    for (int64_t n = 0; n < n_nodes; n++) {
        const range own = r->nodes[n].own;
        if (own.end - own.begin == 1) {
            r->children[n_children++] = (node){.own = own, .parent = own};
            continue;
        }
        const int64_t middle = hpa_node_middle(own.begin, own.end);
        r->children[n_children++] = (node){.own = {own.begin, middle}, .parent = own};
        r->children[n_children++] = (node){.own = {middle, own.end}, .parent = own};
    }
    return n_children;
}

/* Keeps the best `keep` children in their order. Equal scores: the earlier one is better. */
static int64_t keep_best(const row_search *r, int64_t n_children, int64_t keep)
{
    int64_t kept = 0;
    for (int64_t n = 0; n < n_children; n++) {
        int64_t better = 0;
        for (int64_t other = 0; other < n_children; other++)
            if (r->children[other].score > r->children[n].score ||
                (r->children[other].score == r->children[n].score && other < n))
                better++;
        if (better < keep)
            r->nodes[kept++] = r->children[n];
    }
    return kept;
}

static int64_t first_nodes(const row_search *r)
{
    const int64_t candidates = r->sets.candidates;
    const int64_t n_nodes = hpa_first_nodes(r->g, candidates);
    for (int64_t n = 0; n < n_nodes; n++)
        r->nodes[n].own = (range){hpa_first_node_begin(n, n_nodes, candidates),
                                  hpa_first_node_begin(n + 1, n_nodes, candidates)};
    return n_nodes;
}

static int64_t search_level(const row_search *r, int64_t n_nodes, const level *at)
{
    const int64_t n_children = split_nodes(r, n_nodes);
    for (int64_t n = 0; n < n_children; n++)
        r->children[n].score = child_score(r, &r->children[n], at);
    return keep_best(r, n_children, at->keep);
}

/* The first row of r's span. */
static row_search span_leader(const row_search *r)
{
    row_search leader = *r;
    leader.query_block = hpa_span_leader(r->g, r->query_block);
    leader.sets = hpa_row_sets_of(r->g, &r->sequence, leader.query_block);
    return leader;
}

/* The common levels, as the first row of the span searches them. It leaves room for the tail. */
static int64_t search_shared_levels(const row_search *leader, int64_t levels)
{
    const hpa_geometry *g = leader->g;
    const int64_t room = g->beam_nodes - hpa_span_tail_nodes(g);
    int64_t n_nodes = first_nodes(leader);
    for (int64_t n = 0; n < levels; n++) {
        const int64_t keep = n == levels - 1 ? room : g->beam_nodes;
        const level at = {.tokens = g->rep_tokens, .keep = keep, .first = n == 0};
        n_nodes = search_level(leader, n_nodes, &at);
    }
    return n_nodes;
}

/* The candidates that the first row of the span does not have. */
static int64_t append_tail(const row_search *r, int64_t n_nodes, int64_t leader_candidates)
{
    for (int64_t n = 0;; n++) {
        const int64_t begin = hpa_tail_node_begin(leader_candidates, n);
        const int64_t end = hpa_tail_node_begin(leader_candidates, n + 1);
        if (begin >= r->sets.candidates)
            return n_nodes;
        r->nodes[n_nodes++].own = (range){begin, hpa_min(end, r->sets.candidates)};
    }
}

/* Leaves the chosen candidates in nodes[].begin, ascending, and returns how many there are. */
static int64_t search_tree(const row_search *r)
{
    const hpa_geometry *g = r->g;
    const row_search leader = span_leader(r);
    const int64_t shared = hpa_shared_levels(g, leader.sets.candidates);
    int64_t levels = hpa_tree_levels(r->sets.candidates, g->beam_nodes);
    int64_t n_nodes;
    if (shared > 0) {
        levels = HPA_OWN_LEVELS;
        n_nodes = search_shared_levels(&leader, shared);
        n_nodes = append_tail(r, n_nodes, leader.sets.candidates);
    } else {
        n_nodes = first_nodes(r);
    }
    for (int64_t n = 0; n < levels; n++) {
        const bool last = n == levels - 1;
        const level at = {.tokens = last ? g->leaf_tokens : g->rep_tokens,
                          .keep = last ? g->tree_blocks : g->beam_nodes,
                          .first = n == 0};
        n_nodes = search_level(r, n_nodes, &at);
    }
    return n_nodes;
}

/* Writes the kept blocks of a row, ascending, and returns how many there are. */
static int32_t build_row(const row_search *r, int32_t *blocks)
{
    const hpa_row_sets *sets = &r->sets;
    const bool keep_all = sets->candidates <= r->g->tree_blocks;
    const bool no_tree = r->g->tree_blocks == 0;
    const int64_t n_chosen = keep_all || no_tree ? 0 : search_tree(r);
    int64_t candidate = 0, chosen = 0;
    int32_t kept = 0;
    for (int64_t block = 0; block < sets->visible; block++) {
        bool keep =
            block < sets->sink_end || (block >= sets->window_begin && block < sets->window_end);
        if (!keep) {
            const bool found = chosen < n_chosen && r->nodes[chosen].own.begin == candidate;
            keep = keep_all || found;
            chosen += found;
            candidate++;
        }
        if (keep)
            blocks[kept++] = (int32_t)block;
    }
    return kept;
}

static row_search take_scratch(const hpa_plan *plan, hpa_arena *arena)
{
    const hpa_geometry *g = &plan->geometry;
    const int64_t key_blocks = hpa_ceil_div(g->seq_kv, g->block_k);
    const int64_t room = 2 * hpa_min(g->beam_nodes, key_blocks);
    row_search r = {.g = g, .dtype = plan->desc.dtype};
    r.nodes = HPA_ARENA_ARRAY(arena, node, room);
    r.children = HPA_ARENA_ARRAY(arena, node, room);
    return r;
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    hpa_arena arena = {0};
    take_scratch(plan, &arena);
    return arena.used;
}

static hpa_status mask_build_ref(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                 const hpa_exec *exec)
{
    const hpa_geometry *g = &plan->geometry;
    hpa_mask m = hpa_mask_at(g, mask);
    hpa_arena arena = {.base = exec ? exec->scratch : NULL};
    row_search r = take_scratch(plan, &arena);
    r.in = in;
    hpa_mask_begin(g, in, &m);
    for (int64_t row = 0; row < g->rows; row++)
        m.row_length[row] = 0;
    for (int64_t b = 0; b < g->batch; b++) {
        r.sequence = hpa_sequence_at(g, in->cu_seqlens_q, in->cu_seqlens_kv, b);
        for (r.mask_head = 0; r.mask_head < g->mask_heads; r.mask_head++)
            for (r.query_block = 0; r.query_block < r.sequence.query_blocks; r.query_block++) {
                const int64_t row = hpa_row_index(g, &r.sequence, r.mask_head, r.query_block);
                r.sets = hpa_row_sets_of(g, &r.sequence, r.query_block);
                m.row_length[row] = build_row(&r, m.row_blocks + row * g->capacity);
            }
    }
    if (g->training)
        hpa_mask_transpose_cpu(g, &m, 1);
    return HPA_OK;
}

const hpa_mask_kernel hpa_mask_ref = {"mask_ref", scratch_bytes, mask_build_ref};
