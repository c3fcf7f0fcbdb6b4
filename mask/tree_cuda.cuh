/* The tree of one mask row, searched by one block of threads: nodes, their split, the choice of the
 * best, and the row that comes out. mask_ref.c says the same in plain loops. How children are
 * scored is for score_*.cuh. */
#ifndef HPA_MASK_TREE_CUDA_CUH
#define HPA_MASK_TREE_CUDA_CUH

#include "core/cuda/rows.cuh"
#include "core/cuda/shared.cuh"
#include "mask/rules.h"

/* What every row needs; passed by value to the kernel. */
struct mask_search {
    hpa_geometry g;
    hpa_mask mask;
    tensor_rows q, k;
    bool by_16_bytes;     /* rows of q and k begin at multiples of 16 bytes; and then, ... */
    uint32_t k_row_bytes; /* ... with 16-bit elements, from one token of k to the next */
    int32_t block_k_log2;
    int32_t list_room;        /* children that a row can have */
    int32_t query_room;       /* queries that shared memory holds at a time */
    int32_t keys_offset;      /* bytes of shared memory before the tile of keys */
    int32_t lists_offset;     /* bytes of shared memory before the lists, unless they are in ... */
    unsigned char *far_lists; /* ... scratch: far_lists_bytes for each block */
    int64_t far_lists_bytes;
    uint32_t *span_lists; /* [mask_heads, span_slots, span_words], see span_cuda.cuh; null: no query
                             blocks share levels */
    int64_t span_slots;
    int32_t span_words;
    int32_t shared_nodes;  /* kept at the last shared level, which leaves room for the tail's */
    bool leaders;          /* work is the shared levels of every span, else it is the rows */
    struct mask_row *rows; /* of work */
    int64_t work;
};

/* Lists of children that the rows of a span begin with, see span_cuda.cuh. */
__device__ __forceinline__ int64_t first_span_slot(const hpa_geometry &g, const hpa_sequence &s)
{
    return s.row_start / g.search_span + s.batch;
}

__device__ __forceinline__ uint32_t *span_list_of(const mask_search &search, const hpa_sequence &s,
                                                  int64_t mask_head, int64_t query_block)
{
    const int64_t slot = first_span_slot(search.g, s) + query_block / search.g.search_span;
    return search.span_lists + (mask_head * search.span_slots + slot) * (int64_t)search.span_words;
}

/* The row that a block of threads works on. */
struct mask_row {
    hpa_row_sets sets;
    int64_t index;
    int64_t first_query, first_key; /* of its first head: elements of q and k before them */
    int32_t sampled;                /* queries of one head that take part */
    int32_t queries;                /* of all heads that share the row */
    int32_t nodes, widest; /* that the search starts with, and how many candidates the widest has */
    /* hpa_candidate_block in 32 bits: candidate c is block shift + c, and gap more from left on. */
    int32_t shift, left, gap;
    int32_t last_key;
    uint32_t *span_list; /* of the row's span, null where there are none */
    bool exists;
    bool searches; /* else it keeps all of its candidates or none, or its span shares no level */
};

/* What follows from the row's sequence, mask head and query block. */
__device__ __forceinline__ void describe_row(const mask_search &search, const hpa_sequence &s,
                                             int64_t mask_head, int64_t query_block, mask_row &row)
{
    const hpa_geometry &g = search.g;
    row.sets = hpa_row_sets_of(&g, &s, query_block);
    const int64_t begin = hpa_block_begin(query_block, g.block_q);
    const int64_t queries = hpa_block_end(query_block, g.block_q, s.q_length) - begin;
    const int64_t head = mask_head * g.mask_group;
    row.first_query = hpa_offset(&search.q.strides, s.batch, head, s.q_start, begin);
    row.first_key = hpa_offset(&search.k.strides, s.batch, head / g.group, s.kv_start, 0);
    row.sampled = (int32_t)hpa_ceil_div(queries, g.query_stride);
    row.queries = row.sampled * (int32_t)g.mask_group;
    row.shift = (int32_t)row.sets.sink_end;
    row.left = (int32_t)row.sets.left;
    row.gap = (int32_t)(row.sets.right_begin - row.sets.left - row.sets.sink_end);
    row.last_key = (int32_t)s.kv_length - 1;
    row.searches = g.tree_blocks > 0 && row.sets.candidates > g.tree_blocks;
    if (!row.searches)
        return;
    row.nodes = (int32_t)hpa_first_nodes(&g, row.sets.candidates);
    row.widest = (int32_t)hpa_ceil_div(row.sets.candidates, row.nodes);
}

/* The row that is searched as number `index` of the mask, counting slots that no sequence fills.
 * Query heads that read the same keys take turns, so that they find them in near caches. */
__device__ __forceinline__ mask_row find_mask_row(const mask_search &search, int64_t index)
{
    const hpa_geometry &g = search.g;
    mask_row row = {};
    row.index = index;
    const int64_t batch = hpa_batch_of_row(&g, search.mask.cu_seqlens_q, index);
    const hpa_sequence s = sequence_of(g, search.mask, batch);
    const int64_t local = index - g.mask_heads * s.row_start;
    const int64_t heads = g.group / g.mask_group, rows = heads * s.row_slots; /* of one k and v */
    const int64_t mask_head = local / rows * heads + local % heads;
    const int64_t query_block = local % rows / heads;
    if (mask_head >= g.mask_heads)
        return row;
    row.index = hpa_row_index(&g, &s, mask_head, query_block);
    row.exists = query_block < s.query_blocks;
    if (!row.exists)
        return row;
    describe_row(search, s, mask_head, query_block, row);
    if (search.span_lists && row.searches)
        row.span_list = span_list_of(search, s, mask_head, query_block);
    return row;
}

/* Scores as unsigned numbers in the same order, -0 being +0. All are above 0, the score of a child
 * that nothing was compared with. */
__device__ __forceinline__ uint32_t ordered_bits(float score)
{
    const uint32_t bits = __float_as_uint(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ unsigned long long ordered_bits(double score)
{
    const unsigned long long bits = (unsigned long long)__double_as_longlong(score + 0.0);
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

/* Children of one level, ascending: candidates [begin, begin + size), and what is known of their
 * scores. Two levels take turns, since the next is written while this one is read. */
template <typename Score> struct node_lists {
    Score *halves;   /* [child][half]: the best of a child's representatives in either half */
    Score *score[2]; /* the parent's best in the child; then the best of all, for the choice */
    int32_t *begin[2], *size[2];
};

template <typename Score> __host__ __device__ constexpr int64_t node_bytes()
{
    return 4 * (sizeof(Score) + sizeof(int32_t));
}

template <typename Score>
__device__ __forceinline__ node_lists<Score> take_lists(unsigned char *memory, int32_t room)
{
    node_lists<Score> lists;
    lists.halves = reinterpret_cast<Score *>(memory);
    lists.score[0] = lists.halves + 2 * room;
    lists.score[1] = lists.score[0] + room;
    lists.begin[0] = reinterpret_cast<int32_t *>(lists.score[1] + room);
    lists.begin[1] = lists.begin[0] + room;
    lists.size[0] = lists.begin[1] + room;
    lists.size[1] = lists.size[0] + room;
    return lists;
}

/* The keys of a plain level, as a thread reads them from shared memory. */
struct alignas(16) plain_keys {
    uint32_t begin, size; /* addresses of the level's lists */
    uint32_t last;        /* number of the last representative */
    uint32_t tokens_log2;
    uint32_t odd_mask; /* 2 tokens - 1 */
    uint32_t shift;    /* block_k / (2 tokens) is 1 << shift */
    uint32_t first_key, last_key;
};

/* One level as the scoring sees it. */
template <typename Score> struct tree_level {
    const int32_t *begin, *size;
    Score *halves; /* in: 0; out: ordered_bits of the best product of each half of each child */
    Score *score;  /* the same of the parent's representatives in the child */
    int32_t n_children;
    uint32_t tokens;     /* representatives of the widest child; others repeat their last */
    int32_t tokens_log2; /* -1 where it is no power of two */
    int32_t wanted;      /* rep_tokens or leaf_tokens */
    int32_t kept;        /* children that go on, at most */
    bool last;           /* every child is one candidate, and its first half */
    bool done;           /* the search ends with it */
    bool fours;          /* and then, four representatives in a row are of one child */
    /* Are all children of as many representatives, a power of two of 2 to block_k / 2, the lists in
     * shared memory, and candidates neighbouring blocks? */
    bool plain;
    /* And then, are numbers 2 n and 2 n + 1 of one half, so that the first half of a child's can
     * stand for its first half? (A child of one candidate has either half in the first.) */
    bool whole;
    plain_keys keys; /* of a plain level */
};

template <typename Score>
__device__ __forceinline__ void describe_plain(const mask_search &search, const mask_row &row,
                                               tree_level<Score> &level)
{
    level.plain = level.tokens_log2 > 0 && 2 * level.tokens <= search.g.block_k &&
                  !search.far_lists && row.sets.candidates <= row.sets.left;
    if (!level.plain)
        return;
    level.keys.begin = shared_address(level.begin);
    level.keys.size = shared_address(level.size);
    level.keys.tokens_log2 = (uint32_t)level.tokens_log2;
    level.keys.odd_mask = 2 * level.tokens - 1;
    level.keys.shift = (uint32_t)(search.block_k_log2 - level.tokens_log2 - 1);
    level.keys.first_key = (uint32_t)row.shift << search.block_k_log2;
    level.keys.last_key = (uint32_t)row.last_key;
}

/* Where the next level goes. */
template <typename Score> struct next_level {
    int32_t *begin, *size;
    Score *score;
};

template <typename Score> __device__ __forceinline__ void clear_scores(Score *score, int32_t count)
{
    for (int32_t n = (int32_t)threadIdx.x; n < count; n += (int32_t)blockDim.x)
        score[n] = 0;
}

/* Writes the children of the nodes that the search starts with, and returns their number. Sizes of
 * nodes differ by one at most, so that either all are split or every child is one candidate. */
__device__ __forceinline__ int32_t first_children(const mask_row &row, int32_t *begin,
                                                  int32_t *size)
{
    const int64_t candidates = row.sets.candidates, nodes = row.nodes;
    const bool all_single = candidates < 2 * nodes;
    const int32_t count = (int32_t)(all_single ? candidates : nodes);
    for (int32_t n = (int32_t)threadIdx.x; n < count; n += (int32_t)blockDim.x) {
        if (all_single) {
            begin[n] = n;
            size[n] = 1;
            continue;
        }
        const int64_t from = hpa_first_node_begin(n, nodes, candidates);
        const int64_t to = hpa_first_node_begin(n + 1, nodes, candidates);
        const int64_t middle = hpa_node_middle(from, to);
        begin[2 * n] = (int32_t)from;
        size[2 * n] = (int32_t)(middle - from);
        begin[2 * n + 1] = (int32_t)middle;
        size[2 * n + 1] = (int32_t)(to - middle);
    }
    return all_single ? count : 2 * count;
}

/* hpa_representative_token of a child of length tokens, with a division only where count is none of
 * the level's powers of two. */
template <typename Score>
__device__ __forceinline__ uint32_t find_token(const tree_level<Score> &level, uint32_t length,
                                               uint32_t count, uint32_t n)
{
    const uint64_t dividend = (2 * (uint64_t)n + 1) * length;
    if (level.tokens_log2 >= 0 && count == level.tokens)
        return (uint32_t)(dividend >> (level.tokens_log2 + 1));
    return (uint32_t)(dividend / (2 * (uint64_t)count));
}

template <typename Score>
__device__ __forceinline__ uint32_t child_of(const tree_level<Score> &level, uint32_t number)
{
    return level.tokens_log2 >= 0 ? number >> level.tokens_log2 : number / level.tokens;
}

/* Half of a child (a place in level.halves) and key of representative number `number` of a level,
 * children laid end to end with level.tokens each. */
template <typename Score>
__device__ __forceinline__ void find_representative(const mask_search &search, const mask_row &row,
                                                    const tree_level<Score> &level, uint32_t number,
                                                    int32_t *half, int32_t *key)
{
    const uint32_t child = child_of(level, number), in_child = number - child * level.tokens;
    const int32_t begin = level.begin[child], size = level.size[child];
    const uint32_t length = (uint32_t)size << search.block_k_log2;
    const uint32_t count = min((uint32_t)level.wanted, length);
    const uint32_t token = find_token(level, length, count, min(in_child, count - 1));
    const int32_t in_order = (int32_t)(token >> search.block_k_log2), candidate = begin + in_order;
    *half = (int32_t)(2 * child) + (in_order >= (size + 1) / 2); /* hpa_node_middle */
    const int32_t block = row.shift + candidate + (candidate < row.left ? 0 : row.gap);
    const int32_t in_block = (int32_t)(token & ((1u << search.block_k_log2) - 1));
    *key = min((block << search.block_k_log2) + in_block, row.last_key);
}

#define MOST_WARPS 16    /* of a block */
#define FEW_CHILDREN 128 /* as many as a block has threads, mostly */

/* Shared by the threads that choose. */
struct choice {
    union {
        int32_t histogram[256];
        alignas(16) uint32_t score[FEW_CHILDREN];
    };
    int32_t digit, above, equal; /* the digit of the last child kept, children above it and at it */
    int32_t kept, children;
    int32_t of_warp[MOST_WARPS];
    uint32_t lowest[MOST_WARPS], highest[MOST_WARPS]; /* scores of each warp */
    alignas(16) int32_t of_few_warps[FEW_CHILDREN / 32];
    uint32_t limit_lowest;
    int32_t limit_ties;
};

/* Which children are kept: those above `lowest`, and the first `ties` of those equal to it. */
template <typename Score> struct cut {
    Score lowest;
    int32_t ties;
};

/* Finds the digit at which the count of children, from the highest digit down, reaches `wanted`.
 * One warp; lane l looks at digits 255 - 8 l ... 248 - 8 l. */
__device__ __forceinline__ void find_digit(choice *shared, int32_t wanted)
{
    const int lane = (int)threadIdx.x % 32;
    const int32_t *mine = shared->histogram + 248 - 8 * lane;
    int32_t sum = 0;
#pragma unroll
    for (int n = 0; n < 8; n++)
        sum += mine[n];
    int32_t through = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int32_t other = __shfl_up_sync(0xffffffffu, through, step);
        through += lane >= step ? other : 0;
    }
    int32_t above = through - sum;
    if (above >= wanted || through < wanted)
        return;
    int n = 7;
    for (; above + mine[n] < wanted; n--)
        above += mine[n];
    shared->digit = 248 - 8 * lane + n;
    shared->above = above;
    shared->equal = mine[n];
}

/* The best `keep` of n: a radix selection, 8 bits of the score at a time from the highest. */
template <typename Score>
__device__ __forceinline__ cut<Score> find_cut(const Score *score, int32_t n, int32_t keep,
                                               choice *shared)
{
    if (n <= keep)
        return {0, INT32_MAX};
    Score prefix = 0, known = 0; /* digits found, and the bits that they cover */
    for (int shift = 8 * (int)sizeof(Score) - 8; shift >= 0; shift -= 8) {
        for (int i = (int)threadIdx.x; i < 256; i += (int)blockDim.x)
            shared->histogram[i] = 0;
        __syncthreads();
        for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x)
            if ((score[i] & known) == prefix)
                atomicAdd(&shared->histogram[score[i] >> shift & 255], 1);
        __syncthreads();
        if (threadIdx.x < 32)
            find_digit(shared, keep);
        __syncthreads();
        prefix |= (Score)shared->digit << shift;
        known |= (Score)255 << shift;
        keep -= shared->above;
        if (keep == shared->equal) /* all with these digits are kept, whatever the others */
            return prefix == 0 ? cut<Score>{0, INT32_MAX} : cut<Score>{prefix - 1, 0};
        __syncthreads();
    }
    return {prefix, keep};
}

/* A child that is kept goes on: split, unless it is one candidate. */
template <typename Score>
__device__ __forceinline__ void put_child(const next_level<Score> &next, int32_t at, int32_t begin,
                                          int32_t size, Score left, Score right)
{
    const bool split = size > 1;
    const int32_t half = (int32_t)hpa_node_middle(begin, begin + size) - begin;
    next.begin[at] = begin;
    next.size[at] = split ? half : size;
    next.score[at] = split ? left : max(left, right);
    if (split) {
        next.begin[at + 1] = begin + half;
        next.size[at + 1] = size - half;
        next.score[at + 1] = right;
    }
}

/* Every child's score, of all that is known of it. */
template <typename Score> __device__ __forceinline__ void add_up(const tree_level<Score> &level)
{
    for (int32_t n = (int32_t)threadIdx.x; n < level.n_children; n += (int32_t)blockDim.x)
        level.score[n] = max(level.score[n], max(level.halves[2 * n], level.halves[2 * n + 1]));
    __syncthreads();
}

/* Writes the children of those that are kept, in their order. One warp; their number is left in
 * *shared. */
template <typename Score>
__device__ __forceinline__ void keep_and_split(const tree_level<Score> &level, cut<Score> limit,
                                               const next_level<Score> &next, choice *shared)
{
    const uint32_t lane = threadIdx.x % 32, before = (1u << lane) - 1;
    int32_t ties = 0, written = 0;
    for (int32_t first = 0; first < level.n_children; first += 32) {
        const int32_t i = first + (int32_t)lane;
        const bool exists = i < level.n_children;
        const Score score = exists ? level.score[i] : 0;
        const int32_t begin = exists ? level.begin[i] : 0, size = exists ? level.size[i] : 0;
        const uint32_t tied = __ballot_sync(0xffffffffu, exists && score == limit.lowest);
        const bool keep =
            exists && (score > limit.lowest ||
                       (score == limit.lowest && ties + __popc(tied & before) < limit.ties));
        const uint32_t kept = __ballot_sync(0xffffffffu, keep);
        const uint32_t twice = __ballot_sync(0xffffffffu, keep && size > 1);
        if (keep)
            put_child(next, written + __popc(kept & before) + __popc(twice & before), begin, size,
                      level.halves[2 * i], level.halves[2 * i + 1]);
        ties += __popc(tied);
        written += __popc(kept) + __popc(twice);
    }
    if (lane == 0)
        shared->children = written;
}

/* One number from each warp of the block; every thread gets the sum of those before its own warp,
 * and *total of all. */
__device__ __forceinline__ int32_t sum_of_warps(int32_t of_this_warp, int32_t *total,
                                                choice *shared)
{
    const int warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    if (threadIdx.x % 32 == 0)
        shared->of_warp[warp] = of_this_warp;
    __syncthreads();
    int32_t before = 0;
    *total = 0;
#pragma unroll 1
    for (int n = 0; n < warps; n++) {
        before += n < warp ? shared->of_warp[n] : 0;
        *total += shared->of_warp[n];
    }
    return before;
}

/* The best `keep` of n, where each thread has the score of one: by bisection. */
__device__ __forceinline__ cut<uint32_t> bisect_cut(uint32_t mine, bool exists, int32_t n,
                                                    int32_t keep, choice *shared)
{
    if (n <= keep)
        return {0, INT32_MAX};
    const uint32_t lowest = __reduce_min_sync(0xffffffffu, exists ? mine : UINT32_MAX);
    const uint32_t highest = __reduce_max_sync(0xffffffffu, exists ? mine : 0);
    if (threadIdx.x % 32 == 0) {
        shared->lowest[threadIdx.x / 32] = lowest;
        shared->highest[threadIdx.x / 32] = highest;
    }
    __syncthreads();
    uint32_t low = UINT32_MAX, high = 0; /* the keep-th best is one of low ... high */
#pragma unroll 1
    for (uint32_t warp = 0; warp < blockDim.x / 32; warp++) {
        low = min(low, shared->lowest[warp]);
        high = max(high, shared->highest[warp]);
    }
    int32_t above_high = 0;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const int32_t above = __syncthreads_count(exists && mine > middle);
        if (above == keep)
            return {middle, 0};
        if (above > keep) {
            low = middle + 1;
        } else {
            high = middle;
            above_high = above;
        }
    }
    return {low, keep - above_high};
}

/* Is the thread's child one of the first limit.ties of those that score limit.lowest? */
__device__ __forceinline__ bool is_early_tie(bool tied, cut<uint32_t> limit, choice *shared)
{
    const uint32_t ties = __ballot_sync(0xffffffffu, tied);
    int32_t total;
    const int32_t in_warps = sum_of_warps(__popc(ties), &total, shared);
    __syncthreads();
    return tied && in_warps + __popc(ties & ((1u << threadIdx.x % 32) - 1)) < limit.ties;
}

/* add_up, find_cut and keep_and_split for at most as many children as the block has threads. Leaves
 * zeros for the halves of the next level, and returns its number of children. */
__device__ __forceinline__ int32_t choose_at_once(const tree_level<uint32_t> &level, int32_t wanted,
                                                  const next_level<uint32_t> &next,
                                                  int32_t list_room, choice *shared)
{
    const int32_t i = (int32_t)threadIdx.x, n_children = level.n_children;
    const bool exists = i < n_children;
    uint32_t *const halves = level.halves; /* level is the next one's once all have come past */
    const uint32_t left = exists ? halves[2 * i] : 0, right = exists ? halves[2 * i + 1] : 0;
    const uint32_t mine = exists ? max(level.score[i], max(left, right)) : 0;
    const int32_t begin = exists ? level.begin[i] : 0, size = exists ? level.size[i] : 0;
    const cut<uint32_t> limit = bisect_cut(mine, exists, n_children, wanted, shared);
    bool keep = exists && mine > limit.lowest;
    if (n_children > wanted && limit.ties > 0)
        keep |= is_early_tie(exists && mine == limit.lowest, limit, shared);
    const uint32_t before = (1u << threadIdx.x % 32) - 1;
    const uint32_t kept = __ballot_sync(0xffffffffu, keep);
    const uint32_t twice = __ballot_sync(0xffffffffu, keep && size > 1);
    int32_t total;
    const int32_t at = sum_of_warps(__popc(kept) + (__popc(twice) << 16), &total, shared);
    if (keep)
        put_child(next, (at & 0xffff) + (at >> 16) + __popc(kept & before) + __popc(twice & before),
                  begin, size, left, right);
    clear_scores(halves, 2 * list_room);
    return (total & 0xffff) + (total >> 16);
}

/* Leaves in *shared which are the best `keep` of shared->score, where children that do not exist
 * have 0: by bisection, by one warp. */
__device__ __forceinline__ void find_limit(int32_t keep, choice *shared)
{
    const uint32_t lane = threadIdx.x % 32;
    const uint4 score = *reinterpret_cast<const uint4 *>(shared->score + 4 * lane);
    uint32_t low = min(min(score.x - 1, score.y - 1), min(score.z - 1, score.w - 1));
    uint32_t high = max(max(score.x, score.y), max(score.z, score.w));
    low = __reduce_min_sync(0xffffffffu, low) + 1; /* the keep-th best is one of low ... high */
    high = __reduce_max_sync(0xffffffffu, high);
    int32_t above_high = 0, above = 0;
    uint32_t middle = low;
    while (low < high) {
        middle = low + (high - low) / 2;
        above = __popc(__ballot_sync(0xffffffffu, score.x > middle)) +
                __popc(__ballot_sync(0xffffffffu, score.y > middle)) +
                __popc(__ballot_sync(0xffffffffu, score.z > middle)) +
                __popc(__ballot_sync(0xffffffffu, score.w > middle));
        if (above == keep)
            break;
        if (above > keep) {
            low = middle + 1;
        } else {
            high = middle;
            above_high = above;
        }
    }
    if (lane == 0) {
        shared->limit_lowest = low < high ? middle : low;
        shared->limit_ties = low < high ? 0 : keep - above_high;
    }
}

/* Of FEW_CHILDREN threads: a number from each warp; *total: of all, result: of those before. */
__device__ __forceinline__ int32_t sum_of_few_warps(int32_t of_this_warp, int32_t *total,
                                                    choice *shared)
{
    static_assert(FEW_CHILDREN == 128, "four warps");
    const uint32_t warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0)
        shared->of_few_warps[warp] = of_this_warp;
    __syncthreads();
    const int4 of_warp = *reinterpret_cast<const int4 *>(shared->of_few_warps);
    *total = of_warp.x + of_warp.y + of_warp.z + of_warp.w;
    return (warp > 0 ? of_warp.x : 0) + (warp > 1 ? of_warp.y : 0) + (warp > 2 ? of_warp.z : 0);
}

/* As choose_at_once, for FEW_CHILDREN threads and lists in shared memory. A thread that would wait
 * calls `meanwhile`. */
template <typename F>
__device__ __forceinline__ int32_t choose_among_few(const tree_level<uint32_t> &level,
                                                    const next_level<uint32_t> &next,
                                                    choice *shared, const F &meanwhile)
{
    const int32_t i = (int32_t)threadIdx.x, n_children = level.n_children;
    const bool exists = i < n_children;
    const uint32_t halves = shared_address(level.halves) + 8 * i;
    uint32_t left = 0, right = 0, mine = 0;
    int32_t begin = 0, size = 0;
    if (exists) {
        left = load_shared(halves);
        right = load_shared(halves + 4);
        mine = max(load_shared(shared_address(level.score) + 4 * i), max(left, right));
        begin = (int32_t)load_shared(shared_address(level.begin) + 4 * i);
        size = (int32_t)load_shared(shared_address(level.size) + 4 * i);
        store_shared(halves, 0);
        store_shared(halves + 4, 0);
    }
    shared->score[i] = mine;
    __syncthreads();
    if (i < 32 && n_children > level.kept)
        find_limit(level.kept, shared);
    if (i == 32)
        meanwhile();
    __syncthreads();
    bool keep = exists;
    if (n_children > level.kept) {
        keep = mine > shared->limit_lowest;
        if (shared->limit_ties > 0) {
            const bool tied = exists && mine == shared->limit_lowest;
            const uint32_t ties = __ballot_sync(0xffffffffu, tied);
            int32_t total;
            const int32_t before = sum_of_few_warps(__popc(ties), &total, shared);
            __syncthreads();
            keep |= tied && before + __popc(ties & ((1u << i % 32) - 1)) < shared->limit_ties;
        }
    }
    const bool split = keep && size > 1;
    const uint32_t before = (1u << i % 32) - 1;
    const uint32_t kept = __ballot_sync(0xffffffffu, keep);
    const uint32_t twice = __ballot_sync(0xffffffffu, split);
    int32_t total;
    const int32_t at = sum_of_few_warps(__popc(kept) + __popc(twice), &total, shared) +
                       __popc(kept & before) + __popc(twice & before);
    if (keep) {
        const uint32_t to_begin = shared_address(next.begin) + 4 * at;
        const uint32_t to_size = shared_address(next.size) + 4 * at;
        const uint32_t to_score = shared_address(next.score) + 4 * at;
        const int32_t half = (size + 1) / 2; /* hpa_node_middle; 1 of 1 */
        store_shared(to_begin, (uint32_t)begin);
        store_shared(to_size, (uint32_t)half);
        store_shared(to_score, split ? left : max(left, right));
        if (split) {
            store_shared(to_begin + 4, (uint32_t)(begin + half));
            store_shared(to_size + 4, (uint32_t)(size - half));
            store_shared(to_score + 4, right);
        }
    }
    return total;
}

/* The row's blocks, ascending: sinks, chosen before the window, window, chosen after it. chosen are
 * candidates, ascending; chosen null: every candidate is kept. */
__device__ __forceinline__ void write_row(const mask_search &search, const mask_row &row,
                                          const int32_t *chosen, int32_t n_chosen)
{
    const hpa_row_sets &sets = row.sets;
    int32_t *blocks = search.mask.row_blocks + row.index * search.g.capacity;
    int32_t *length = search.mask.row_length + row.index;
    const int32_t step = (int32_t)blockDim.x;
    if (!chosen) {
        for (int32_t n = (int32_t)threadIdx.x; n < sets.visible; n += step)
            blocks[n] = n;
        if (threadIdx.x == 0)
            *length = (int32_t)sets.visible;
        return;
    }
    const int32_t sinks = (int32_t)sets.sink_end;
    const int32_t window_begin = (int32_t)hpa_max(sets.window_begin, sets.sink_end);
    const int32_t window = (int32_t)hpa_max(0, sets.window_end - window_begin);
    int32_t left = 0, end = n_chosen; /* how many of chosen lie before the window */
    while (left < end) {
        const int32_t middle = (left + end) / 2;
        if (chosen[middle] < sets.left)
            left = middle + 1;
        else
            end = middle;
    }
    for (int32_t n = (int32_t)threadIdx.x; n < sinks; n += step)
        blocks[n] = n;
    for (int32_t n = (int32_t)threadIdx.x; n < window; n += step)
        blocks[sinks + left + n] = window_begin + n;
    for (int32_t n = (int32_t)threadIdx.x; n < n_chosen; n += step)
        blocks[sinks + n + (n < left ? 0 : window)] =
            (int32_t)hpa_candidate_block(&sets, chosen[n]);
    if (threadIdx.x == 0)
        *length = sinks + window + n_chosen;
}

#endif
