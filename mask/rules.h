/* The rules of the mask as arithmetic on indices: what a row sees, what it keeps without a search,
 * and how the search walks its tree. Shared by every backend and by the checks. */
#ifndef HPA_MASK_RULES_H
#define HPA_MASK_RULES_H

#include "core/geometry.h"

/* The key blocks of one mask row: 0 ... visible - 1 can be kept. Sinks are [0, sink_end), the
 * window is [window_begin, window_end), the search chooses among the rest, its candidates. */
typedef struct hpa_row_sets {
    int64_t visible;
    int64_t sink_end;
    int64_t window_begin, window_end; /* both are visible where there is no window */
    int64_t left;                     /* candidates between sinks and window */
    int64_t right_begin;              /* first candidate after the window (not causal) */
    int64_t candidates;
} hpa_row_sets;

/* Blocks that hold a key j with p(f) - window < j and, when not causal, j < p(l) + window, for the
 * first and last query f and l of the block. */
HPA_HOST_DEVICE void hpa_window_blocks(const hpa_geometry *g, const hpa_sequence *s,
                                       int64_t query_block, hpa_row_sets *sets)
{
    const int64_t first = hpa_block_begin(query_block, g->block_q);
    const int64_t last = hpa_block_end(query_block, g->block_q, s->q_length) - 1;
    const int64_t lowest_key = hpa_key_position(s, first) - g->window + 1;
    const int64_t highest_key = hpa_key_position(s, last) + g->window - 1;
    sets->window_begin = hpa_max(0, hpa_floor_div(lowest_key, g->block_k));
    sets->window_end = sets->visible;
    if (!g->causal)
        sets->window_end = hpa_min(sets->visible, hpa_floor_div(highest_key, g->block_k) + 1);
    if (g->window == 0 || sets->window_begin >= sets->window_end)
        sets->window_begin = sets->window_end = sets->visible;
}

HPA_HOST_DEVICE hpa_row_sets hpa_row_sets_of(const hpa_geometry *g, const hpa_sequence *s,
                                             int64_t query_block)
{
    hpa_row_sets sets;
    sets.visible = hpa_visible_blocks(g, s, query_block);
    sets.sink_end = hpa_min(g->sink_blocks, sets.visible);
    hpa_window_blocks(g, s, query_block, &sets);
    sets.left = hpa_max(0, sets.window_begin - sets.sink_end);
    sets.right_begin = hpa_max(sets.window_end, sets.sink_end);
    sets.candidates = sets.left + (sets.visible - sets.right_begin);
    return sets;
}

/* c[index]: the key block of a candidate. */
HPA_HOST_DEVICE int64_t hpa_candidate_block(const hpa_row_sets *sets, int64_t index)
{
    return index < sets->left ? sets->sink_end + index : sets->right_begin + (index - sets->left);
}

/* How many nodes the search starts with; node n is then the candidates
 * [hpa_first_node_begin(n), hpa_first_node_begin(n + 1)). */
HPA_HOST_DEVICE int64_t hpa_first_nodes(const hpa_geometry *g, int64_t candidates)
{
    return hpa_min(candidates, g->beam_nodes);
}

HPA_HOST_DEVICE int64_t hpa_first_node_begin(int64_t node, int64_t nodes, int64_t candidates)
{
    return node * candidates / nodes;
}

/* Where a node of two or more candidates is cut in two. */
HPA_HOST_DEVICE int64_t hpa_node_middle(int64_t begin, int64_t end)
{
    return begin + (end - begin + 1) / 2;
}

/* Neighbouring query blocks can share the coarse levels, where a node is thousands of tokens long. In
 * causal mode the first block of a span searches these for all its blocks; each then searches the
 * last HPA_OWN_LEVELS itself, which tell HPA_NODE_MOST candidates of a node apart.
 * Candidate n is the same key block for all of them: a later query block has the candidates of the
 * first, and a tail of more. */
#define HPA_OWN_LEVELS 3
#define HPA_NODE_MOST (INT64_C(1) << HPA_OWN_LEVELS)

/* The first query block of the span. */
HPA_HOST_DEVICE int64_t hpa_span_leader(const hpa_geometry *g, int64_t query_block)
{
    return query_block - query_block % g->search_span;
}

/* The nodes that cover the tail of the span's last query block, at most. */
HPA_HOST_DEVICE int64_t hpa_span_tail_nodes(const hpa_geometry *g)
{
    const int64_t queries = (g->search_span - 1) * g->block_q;
    return hpa_ceil_div(hpa_ceil_div(queries, g->block_k), HPA_NODE_MOST);
}

/* The first candidate of tail node n, where the first block of the span has leader_candidates. */
HPA_HOST_DEVICE int64_t hpa_tail_node_begin(int64_t leader_candidates, int64_t n)
{
    return leader_candidates + n * HPA_NODE_MOST;
}

/* How many levels the first query block of a span does for all: 0 where each searches for itself,
 * because there are few levels or the tail would take more than half of the nodes. */
HPA_HOST_DEVICE int64_t hpa_shared_levels(const hpa_geometry *g, int64_t leader_candidates)
{
    if (!g->causal || g->search_span == 1 || g->tree_blocks == 0 ||
        2 * hpa_span_tail_nodes(g) > g->beam_nodes)
        return 0;
    return hpa_max(0, hpa_tree_levels(leader_candidates, g->beam_nodes) - HPA_OWN_LEVELS);
}

/* How many keys stand for a node: wanted of them, or all that it has. */
HPA_HOST_DEVICE int64_t hpa_representatives(const hpa_geometry *g, int64_t begin, int64_t end,
                                            int64_t wanted)
{
    return hpa_min(wanted, (end - begin) * g->block_k);
}

/* Representative n of count of the node [begin, end): the token in the middle of the n-th of count
 * equal parts of its candidates' tokens laid end to end. */
HPA_HOST_DEVICE int64_t hpa_representative_token(const hpa_geometry *g, int64_t begin, int64_t end,
                                                 int64_t count, int64_t n)
{
    return (2 * n + 1) * (end - begin) * g->block_k / (2 * count);
}

/* The candidate that it lies in ... */
HPA_HOST_DEVICE int64_t hpa_representative_candidate(const hpa_geometry *g, int64_t begin,
                                                     int64_t end, int64_t count, int64_t n)
{
    return begin + hpa_representative_token(g, begin, end, count, n) / g->block_k;
}

/* ... and its key. */
HPA_HOST_DEVICE int64_t hpa_representative_key(const hpa_geometry *g, const hpa_sequence *s,
                                               const hpa_row_sets *sets, int64_t begin, int64_t end,
                                               int64_t count, int64_t n)
{
    const int64_t token = hpa_representative_token(g, begin, end, count, n);
    const int64_t block = hpa_candidate_block(sets, begin + token / g->block_k);
    return hpa_min(block * g->block_k + token % g->block_k, s->kv_length - 1);
}

#endif
