/* The questions that are asked of a mask row, on the host and on a device alike. */
#ifndef HPA_MASK_INSPECT_RULES_H
#define HPA_MASK_INSPECT_RULES_H

#include "core/mask_layout.h"
#include "mask/rules.h"

/* One existing row: its sequence, mask head, query block, and what it keeps. */
typedef struct row_view {
    const hpa_sequence *sequence;
    int64_t mask_head, query_block, row;
    int64_t length;
    const int32_t *blocks;
} row_view;

HPA_HOST_DEVICE row_view row_at(const hpa_geometry *g, const hpa_mask *m, const hpa_sequence *s,
                                int64_t mask_head, int64_t query_block)
{
    const int64_t row = hpa_row_index(g, s, mask_head, query_block);
    row_view r;
    r.sequence = s;
    r.mask_head = mask_head;
    r.query_block = query_block;
    r.row = row;
    r.length = m->row_length[row];
    r.blocks = m->row_blocks + row * g->capacity;
    return r;
}

HPA_HOST_DEVICE bool row_keeps(const row_view *r, int64_t block)
{
    int64_t low = 0, high = r->length;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (r->blocks[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < r->length && r->blocks[low] == block;
}

/* What is wrong with a row as it comes from outside. */
typedef struct row_problem {
    bool found;
    int64_t number; /* of the kept block that is wrong; -1: the row's length is */
    int32_t value;
    int64_t low, high; /* what was expected of it, or of the length */
} row_problem;

HPA_HOST_DEVICE row_problem find_row_problem(const hpa_geometry *g, const row_view *r)
{
    row_problem problem = {false, -1, 0, 0, g->capacity};
    problem.found = r->length < 0 || r->length > g->capacity;
    int64_t previous = -1;
    for (int64_t n = 0; n < r->length && !problem.found; n++) {
        problem.number = n;
        problem.low = previous + 1;
        problem.high = hpa_visible_blocks(g, r->sequence, r->query_block) - 1;
        problem.value = r->blocks[n];
        problem.found = problem.value < problem.low || problem.value > problem.high;
        previous = problem.value;
    }
    return problem;
}

/* Pairs (i, j) of the block's queries and the keys [key_begin, key_end) that causality allows. */
HPA_HOST_DEVICE int64_t pairs_of_block(const hpa_geometry *g, const hpa_sequence *s,
                                       int64_t query_block, int64_t key_begin, int64_t key_end)
{
    const int64_t first = hpa_block_begin(query_block, g->block_q);
    const int64_t end = hpa_block_end(query_block, g->block_q, s->q_length);
    if (!g->causal || hpa_key_position(s, first) >= key_end - 1)
        return (end - first) * (key_end - key_begin);
    int64_t pairs = 0;
    for (int64_t query = first; query < end; query++)
        pairs += hpa_max(0, hpa_min(key_end, hpa_key_position(s, query) + 1) - key_begin);
    return pairs;
}

/* Pairs of one row when nothing is pruned. */
HPA_HOST_DEVICE int64_t dense_pairs_of_row(const hpa_geometry *g, const hpa_sequence *s,
                                           int64_t query_block)
{
    return pairs_of_block(g, s, query_block, 0, s->kv_length);
}

HPA_HOST_DEVICE int64_t kept_pairs_of_row(const hpa_geometry *g, const row_view *r)
{
    int64_t pairs = 0;
    for (int64_t n = 0; n < r->length; n++)
        pairs += pairs_of_block(g, r->sequence, r->query_block,
                                hpa_block_begin(r->blocks[n], g->block_k),
                                hpa_block_end(r->blocks[n], g->block_k, r->sequence->kv_length));
    return pairs;
}

/* The finaliser of splitmix64: every bit of the input reaches every bit of the output. */
HPA_HOST_DEVICE uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* A sum over kept blocks, so that any backend can add in any order. */
HPA_HOST_DEVICE uint64_t fingerprint_of_row(const row_view *r)
{
    uint64_t key = mix((uint64_t)r->sequence->batch + UINT64_C(0x9e3779b97f4a7c15));
    key = mix(key + (uint64_t)r->mask_head);
    key = mix(key + (uint64_t)r->query_block);
    uint64_t sum = 0;
    for (int64_t n = 0; n < r->length; n++)
        sum += mix(key + (uint64_t)r->blocks[n]);
    return sum;
}

/* S, W, #, . or blank: see hpa_mask_snprint. */
HPA_HOST_DEVICE char character_of(const hpa_row_sets *sets, bool kept, int64_t block)
{
    if (block >= sets->visible)
        return ' ';
    if (!kept)
        return '.';
    if (block < sets->sink_end)
        return 'S';
    return block >= sets->window_begin && block < sets->window_end ? 'W' : '#';
}

#endif
