/* Spans on CUDA: neighbouring query blocks whose first searches the coarse levels for all of them.
 *
 * A first launch does the shared levels of every span and leaves a list of the children that come
 * after them; the rows, in a second one, begin with these and with their tail. A list is the number
 * of its children, 0 where the span shares nothing, the candidates of the span's first block, and
 * the children, packed. As with rows, only the device knows packed lengths: the lists of sequence b
 * start at slot floor(row_start / search_span) + b, so that the ranges never meet. */
#ifndef HPA_MASK_SPAN_CUDA_CUH
#define HPA_MASK_SPAN_CUDA_CUH

#include "mask/tree_cuda.cuh"

#define SPAN_LIST_HEADER 2 /* words before the children */

static inline int64_t span_slots_of(const hpa_geometry *g)
{
    return g->row_slots / g->search_span + g->batch;
}

/* The last sequence whose lists start at or before a slot. */
__device__ __forceinline__ hpa_sequence find_sequence_of_span(const mask_search &search,
                                                              int64_t slot)
{
    int64_t low = 0, high = search.g.batch - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (first_span_slot(search.g, sequence_of(search.g, search.mask, middle)) <= slot)
            low = middle;
        else
            high = middle - 1;
    }
    return sequence_of(search.g, search.mask, low);
}

/* The first block of span number `index`, counting slots that no sequence fills. Query heads that
 * read the same keys take turns here, too. */
__device__ __forceinline__ mask_row find_leader(const mask_search &search, int64_t index)
{
    const hpa_geometry &g = search.g;
    mask_row row = {};
    const int64_t heads = g.group / g.mask_group, lists = heads * search.span_slots;
    const int64_t slot = index % lists / heads;
    const hpa_sequence s = find_sequence_of_span(search, slot);
    const int64_t mask_head = index / lists * heads + index % heads;
    const int64_t query_block = (slot - first_span_slot(g, s)) * g.search_span;
    row.exists = query_block < s.query_blocks;
    if (!row.exists)
        return row;
    describe_row(search, s, mask_head, query_block, row);
    row.searches = hpa_shared_levels(&g, row.sets.candidates) > 0;
    row.span_list = span_list_of(search, s, mask_head, query_block);
    return row;
}

__device__ __forceinline__ void write_span_list(const mask_row &row, const int32_t *begin,
                                                const int32_t *size, int32_t n_children)
{
    uint32_t *list = row.span_list;
    if (threadIdx.x == 0) {
        list[0] = (uint32_t)n_children;
        list[1] = (uint32_t)row.sets.candidates;
    }
    for (int32_t n = (int32_t)threadIdx.x; n < n_children; n += (int32_t)blockDim.x)
        list[SPAN_LIST_HEADER + n] =
            (uint32_t)begin[n] * (HPA_NODE_MOST / 2) + (uint32_t)(size[n] - 1);
}

/* Writes the children that a row of a span begins with, the shared ones and those of its tail, and
 * returns their number: 0 where the span shares none. */
__device__ __forceinline__ int32_t begin_with_shared(const mask_row &row, int32_t *begin,
                                                     int32_t *size)
{
    const uint32_t most = HPA_NODE_MOST / 2;
    const uint32_t *list = row.span_list;
    const int32_t n_shared = (int32_t)list[0], tail = (int32_t)list[1];
    if (n_shared == 0)
        return 0;
    for (int32_t n = (int32_t)threadIdx.x; n < n_shared; n += (int32_t)blockDim.x) {
        const uint32_t child = list[SPAN_LIST_HEADER + n];
        begin[n] = (int32_t)(child / most);
        size[n] = (int32_t)(child % most) + 1;
    }
    const int32_t end = (int32_t)row.sets.candidates;
    const int32_t nodes = (end - tail + HPA_NODE_MOST - 1) / HPA_NODE_MOST;
    for (int32_t n = (int32_t)threadIdx.x; n < nodes; n += (int32_t)blockDim.x) {
        const int32_t from = (int32_t)hpa_tail_node_begin(tail, n);
        const int32_t to = (int32_t)hpa_min(end, hpa_tail_node_begin(tail, n + 1));
        const int32_t middle = (int32_t)hpa_node_middle(from, to);
        int32_t at = n_shared + 2 * n;
        begin[at] = from;
        size[at] = middle - from;
        if (middle == to)
            continue;
        begin[at + 1] = middle;
        size[at + 1] = to - middle;
    }
    const bool last_is_single = (end - tail) % HPA_NODE_MOST == 1;
    return n_shared + 2 * nodes - last_is_single;
}

#endif
