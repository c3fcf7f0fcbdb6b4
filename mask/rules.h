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
