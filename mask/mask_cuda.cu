/* The mask on CUDA: one block of threads searches one row's tree, from the row's queries in shared
 * memory to its list of kept blocks, and writes nothing else. What is to be known of a row before
 * that is found for all rows at once, by a launch that comes first. */
#include "core/cuda/scan.h"
#include "mask/kernels_cuda.h"
#include "mask/score_mma.cuh"
#include "mask/score_simt.cuh"
#include "mask/score_sm90.cuh"
#include "mask/span_cuda.cuh"

/* Scores one level over all of the row's queries, which are loaded anew for each level where shared
 * memory does not hold them at once. */
template <typename Scores>
static __device__ void score_level(const mask_search &search, const mask_row &row,
                                   const tree_level<typename Scores::score> &level,
                                   bool queries_are_there, unsigned char *shared)
{
    for (int32_t first = 0; first < row.queries; first += search.query_room) {
        constexpr int32_t multiple = Scores::query_multiple;
        const int32_t count =
            min(search.query_room, (row.queries - first + multiple - 1) / multiple * multiple);
        if (!queries_are_there) {
            __syncthreads();
            Scores::load_queries(search, row, shared, first, count);
        }
        __syncthreads();
        Scores::score_level(search, row, level, shared, shared + search.keys_offset, count);
    }
    __syncthreads();
}

/* Keeps the best children of a level and makes the next of them; returns its number of children.
 * Some thread calls `meanwhile`. */
template <typename Score, typename F>
static __device__ int32_t choose(const mask_search &search, const tree_level<Score> &level,
                                 const next_level<Score> &next, choice *shared_choice,
                                 const F &meanwhile)
{
    const int32_t wanted = level.kept;
    if constexpr (sizeof(Score) == sizeof(uint32_t))
        if (blockDim.x == FEW_CHILDREN && level.n_children <= FEW_CHILDREN && !search.far_lists)
            return choose_among_few(level, next, shared_choice, meanwhile);
    if (threadIdx.x == 0)
        meanwhile();
    if constexpr (sizeof(Score) == sizeof(uint32_t))
        if (level.n_children <= (int32_t)blockDim.x)
            return choose_at_once(level, wanted, next, search.list_room, shared_choice);
    Score *const halves = level.halves;
    add_up(level);
    const auto limit = find_cut(level.score, level.n_children, wanted, shared_choice);
    if (threadIdx.x < 32)
        keep_and_split(level, limit, next, shared_choice);
    __syncthreads();
    clear_scores(halves, 2 * search.list_room);
    return shared_choice->children;
}

/* A level but for its number of children, whose widest has `widest` candidates. */
template <typename Score>
static __device__ void describe_level(const mask_search &search, const mask_row &row,
                                      const node_lists<Score> &lists, int now, int32_t widest,
                                      bool regular, tree_level<Score> &level)
{
    const hpa_geometry &g = search.g;
    const bool last = widest == 1, done = last || (search.leaders && widest <= HPA_NODE_MOST);
    const int64_t wanted = last ? g.leaf_tokens : g.rep_tokens;
    const uint32_t tokens = (uint32_t)hpa_min(wanted, (int64_t)widest << search.block_k_log2);
    level.begin = lists.begin[now];
    level.size = lists.size[now];
    level.halves = lists.halves;
    level.score = lists.score[now];
    level.tokens = tokens;
    level.tokens_log2 = __popc(tokens) == 1 ? __ffs((int)tokens) - 1 : -1;
    level.wanted = (int32_t)wanted;
    level.kept = (int32_t)g.beam_nodes;
    if (done)
        level.kept = last ? (int32_t)g.tree_blocks : search.shared_nodes;
    level.last = last;
    level.done = done;
    level.fours = last && tokens % 4 == 0;
    describe_plain(search, row, level);
    /* Sizes of children, but for those of a span's rows, differ by one at most. */
    level.whole = last || (tokens > 2 && (widest <= 2 || (widest > (int32_t)tokens && regular)));
}

/* What a search ends with: candidates [begin, begin + size), ascending. */
struct nodes_found {
    const int32_t *begin, *size;
    int32_t count;
};

/* Searches the row's levels: those of its span where these are what is asked for, and else all that
 * its span has not searched. */
template <typename Scores>
static __device__ nodes_found search_tree(const mask_search &search, const mask_row &row,
                                          unsigned char *shared, choice *shared_choice,
                                          node_lists<typename Scores::score> lists,
                                          tree_level<typename Scores::score> *levels)
{
    int32_t n_children = 0, widest = HPA_NODE_MOST;
    if (row.span_list && !search.leaders)
        n_children = begin_with_shared(row, lists.begin[0], lists.size[0]);
    const bool regular = n_children == 0;
    if (regular) {
        n_children = first_children(row, lists.begin[0], lists.size[0]);
        widest = row.widest;
    }
    clear_scores(lists.halves, 2 * search.list_room);
    clear_scores(lists.score[0], search.list_room);
    widest = (widest + 1) / 2; /* from nodes to their children */
    if (threadIdx.x == 0)
        describe_level(search, row, lists, 0, widest, regular, levels[0]);
    bool queries_are_there = false;
    int now = 0;
    for (bool done = false; !done; now ^= 1) {
        auto &level = levels[now];
        if (threadIdx.x == 0) {
            level.n_children = n_children;
            level.keys.last = (uint32_t)n_children * level.tokens - 1;
        }
        score_level<Scores>(search, row, level, queries_are_there, shared);
        queries_are_there = row.queries <= search.query_room;
        done = level.done;
        widest = (widest + 1) / 2;
        n_children = choose(search, level,
                            next_level<typename Scores::score>{
                                lists.begin[now ^ 1], lists.size[now ^ 1], lists.score[now ^ 1]},
                            shared_choice, [&]() {
                                if (!done)
                                    describe_level(search, row, lists, now ^ 1, widest, regular,
                                                   levels[now ^ 1]);
                            });
    }
    __syncthreads();
    return {lists.begin[now], lists.size[now], n_children};
}

/* Describes the rows of work: some twenty divisions each, which one thread of a block would do
 * while the others wait. */
static __global__ void describe_rows_kernel(const __grid_constant__ mask_search search)
{
    const int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n < search.work)
        search.rows[n] = search.leaders ? find_leader(search, n) : find_mask_row(search, n);
}

/* Brings a row that is described into shared memory. */
static __device__ __forceinline__ void copy_row(const mask_row &from, mask_row *to)
{
    static_assert(sizeof(mask_row) % sizeof(int32_t) == 0, "copied by words");
    for (int n = (int)threadIdx.x; n < (int)(sizeof(mask_row) / sizeof(int32_t));
         n += (int)blockDim.x)
        reinterpret_cast<int32_t *>(to)[n] = reinterpret_cast<const int32_t *>(&from)[n];
}

/* The row of work that was found, or the list of its span. */
static __device__ void write_found(const mask_search &search, const mask_row &row,
                                   const nodes_found &found)
{
    const bool keeps_all = !row.searches && search.g.tree_blocks > 0;
    if (row.exists && search.leaders)
        write_span_list(row, found.begin, found.size, found.count);
    else if (row.exists)
        write_row(search, row, keeps_all ? nullptr : found.begin, found.count);
    else if (threadIdx.x == 0 && !search.leaders)
        search.mask.row_length[row.index] = 0;
}

#define SHARED_ALIGNMENT 1024    /* of panels in the 128-byte swizzle */
#define STATIC_SHARED_BYTES 2688 /* of mask_build_kernel and of the driver, at most */
#define DRIVER_SHARED_BYTES 1024

template <typename Scores>
static __global__ void __launch_bounds__(Scores::threads, Scores::threads_each / Scores::threads)
    mask_build_kernel(const __grid_constant__ mask_search search)
{
    extern __shared__ __align__(16) unsigned char unaligned[];
    __shared__ mask_row row;
    __shared__ choice shared_choice;
    /* Not in registers, which the products need. */
    __shared__ tree_level<typename Scores::score> levels[2];
    static_assert(sizeof row + sizeof shared_choice + sizeof levels + DRIVER_SHARED_BYTES <=
                  STATIC_SHARED_BYTES);
    unsigned char *const shared = unaligned + (0u - shared_address(unaligned)) % SHARED_ALIGNMENT;
    unsigned char *memory = search.far_lists
                                ? search.far_lists + blockIdx.x * search.far_lists_bytes
                                : shared + search.lists_offset;
    const auto lists = take_lists<typename Scores::score>(memory, search.list_room);
    /* The last rows of a sequence see the most keys: they come first. */
    for (int64_t n = blockIdx.x; n < search.work; n += gridDim.x) {
        copy_row(search.rows[search.work - 1 - n], &row);
        __syncthreads();
        nodes_found found = {lists.begin[0], lists.size[0], 0};
        if (row.searches)
            found = search_tree<Scores>(search, row, shared, &shared_choice, lists, levels);
        write_found(search, row, found);
        __syncthreads();
    }
}

/* How a build is launched, from shapes and the device alone. */
struct mask_launch {
    const struct mask_variant *variant;
    int64_t blocks, threads;
    int64_t query_room, list_room;
    int64_t keys_offset, lists_offset, shared_bytes;
    int64_t far_lists_bytes;        /* of one block; 0: the lists are in shared memory */
    int64_t span_lists, span_words; /* 0: one launch does, no query blocks share levels */
};

/* The kernels that there are; the first that serves is taken. */
struct mask_variant {
    hpa_mask_kernel kernel; /* as the plan knows it */
    hpa_dtype dtype;
    int64_t head_dim; /* at most */
    int64_t queries;  /* at least, of one row: fewer would leave its products mostly empty */
    bool sm90a;       /* needs a Hopper device */
    void (*launched)(mask_search);
    int query_bytes; /* of one query in shared memory; 0: a padded row of head_dim */
    int least_threads, most_threads;
    int threads_each;   /* of a multiprocessor, whose registers hold no more of them */
    int query_multiple; /* queries are padded to a multiple of this */
    int warp_bytes;     /* of shared memory, that each warp has to itself */
};

static size_t scratch_bytes(const hpa_plan *plan);
static hpa_status mask_build_cuda(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                  const hpa_exec *exec);

#define VARIANT(name, dtype, head_dim, queries, sm90a, Scores, query_bytes, warp_bytes)     \
    {                                                                                       \
        {name, scratch_bytes, mask_build_cuda}, dtype, head_dim, queries, sm90a,            \
            mask_build_kernel<Scores>, query_bytes, Scores::least_threads, Scores::threads, \
            Scores::threads_each, Scores::query_multiple, warp_bytes                        \
    }
#define SM90(dtype, T, steps)                                                        \
    VARIANT("mask_sm90", dtype, 32 * steps, 48, true, SINGLE(sm90_scores<T, steps>), \
            SINGLE(sm90_scores<T, steps>::query_bytes), SINGLE(sm90_scores<T, steps>::warp_bytes))
#define MMA(dtype, T, steps, groups)                                                       \
    VARIANT("mask_mma", dtype, 32 * steps, 0, false, SINGLE(mma_scores<T, steps, groups>), \
            SINGLE(mma_scores<T, steps, groups>::query_bytes), 0)
#define SIMT(dtype, T) VARIANT("mask_simt", dtype, 256, 0, false, simt_scores<T>, 0, 0)
#define SINGLE(...) __VA_ARGS__

static const mask_variant mask_variants[] = {
    SM90(HPA_BF16, __nv_bfloat16, 2),
    SM90(HPA_BF16, __nv_bfloat16, 3),
    SM90(HPA_BF16, __nv_bfloat16, 4),
    SM90(HPA_F16, __half, 2),
    SM90(HPA_F16, __half, 3),
    SM90(HPA_F16, __half, 4),
    MMA(HPA_BF16, __nv_bfloat16, 1, 4),
    MMA(HPA_BF16, __nv_bfloat16, 2, 4),
    MMA(HPA_BF16, __nv_bfloat16, 3, 2),
    MMA(HPA_BF16, __nv_bfloat16, 4, 2),
    MMA(HPA_BF16, __nv_bfloat16, 8, 1),
    MMA(HPA_F16, __half, 1, 4),
    MMA(HPA_F16, __half, 2, 4),
    MMA(HPA_F16, __half, 3, 2),
    MMA(HPA_F16, __half, 4, 2),
    MMA(HPA_F16, __half, 8, 1),
    SIMT(HPA_F32, float),
    SIMT(HPA_F64, double),
};

/* Queries of one row that take part in the search, at most. */
static int64_t most_queries(const hpa_geometry *g)
{
    return g->mask_group * hpa_ceil_div(g->block_q, g->query_stride);
}

static const mask_variant *find_variant(const hpa_plan *plan)
{
    const mask_variant *v = mask_variants;
    while (v->dtype != plan->desc.dtype || v->head_dim < plan->desc.head_dim ||
           v->queries > most_queries(&plan->geometry) || (v->sm90a && !plan->cuda.sm90a))
        v++;
    return v;
}

const hpa_mask_kernel *hpa_mask_select_cuda(const hpa_plan *plan)
{
    return &find_variant(plan)->kernel;
}

#define NEAR_LISTS_BYTES 65536 /* lists longer than this go to scratch */

static int64_t round_up(int64_t value, int64_t unit)
{
    return hpa_ceil_div(value, unit) * unit;
}

static int64_t query_bytes(const hpa_plan *plan, const mask_variant *variant)
{
    if (variant->query_bytes > 0)
        return variant->query_bytes;
    return plan->geometry.head_dim * (int64_t)hpa_dtype_size(plan->desc.dtype) + 16;
}

/* Keys on their way to the registers. */
static int64_t keys_bytes(const hpa_plan *plan, const mask_variant *variant, int64_t threads)
{
    const int64_t shared = variant->query_bytes > 0 ? 0 : 32 * query_bytes(plan, variant);
    return shared + threads / 32 * variant->warp_bytes;
}

/* As many threads as keep a multiprocessor busiest with the blocks whose queries it can hold; fewer
 * in a block where that is the same, so that blocks wait for each other less. */
static int64_t choose_threads(const hpa_plan *plan, const mask_variant *variant,
                              int64_t lists_bytes)
{
    const int64_t queries = round_up(most_queries(&plan->geometry), variant->query_multiple);
    const int64_t without_keys =
        queries * query_bytes(plan, variant) + lists_bytes + SHARED_ALIGNMENT + STATIC_SHARED_BYTES;
    int64_t best = variant->least_threads, busiest = 0;
    for (int64_t t = variant->least_threads; t <= variant->most_threads; t += 128) {
        const int64_t bytes = without_keys + keys_bytes(plan, variant, t);
        const int64_t fit = hpa_max(1, plan->cuda.shared_bytes_each / bytes);
        const int64_t blocks = hpa_min(fit, variant->threads_each / t);
        if (blocks * t > busiest) {
            busiest = blocks * t;
            best = t;
        }
    }
    return best;
}

static int64_t lists_bytes(const hpa_plan *plan, int64_t list_room)
{
    const int64_t node =
        plan->desc.dtype == HPA_F64 ? node_bytes<unsigned long long>() : node_bytes<uint32_t>();
    return round_up(list_room * node, 256);
}

/* Is a sequence of these lengths long enough? Its last query, if in a block of its own, has the most
 * candidates. */
static bool can_share_levels(const hpa_geometry *g)
{
    const int64_t window_begin = hpa_floor_div(g->seq_kv - g->window, g->block_k);
    return hpa_shared_levels(g, hpa_max(0, window_begin - g->sink_blocks)) > 0;
}

static mask_launch choose_launch(const hpa_plan *plan)
{
    const hpa_geometry *g = &plan->geometry;
    mask_launch launch = {};
    const mask_variant *v = launch.variant = find_variant(plan);
    const int64_t most_nodes = hpa_min(g->beam_nodes, hpa_ceil_div(g->seq_kv, g->block_k));
    launch.list_room = round_up(hpa_max(2 * most_nodes, 1), 4);
    int64_t near_lists = lists_bytes(plan, launch.list_room);
    if (near_lists > NEAR_LISTS_BYTES) {
        launch.far_lists_bytes = near_lists;
        near_lists = 0;
    }
    launch.threads = choose_threads(plan, v, near_lists);
    const int64_t keys = keys_bytes(plan, v, launch.threads), query = query_bytes(plan, v);
    const int64_t room =
        plan->cuda.shared_bytes - STATIC_SHARED_BYTES - SHARED_ALIGNMENT - keys - near_lists;
    launch.query_room = hpa_min(round_up(most_queries(g), v->query_multiple),
                                room / query / v->query_multiple * v->query_multiple);
    launch.keys_offset = launch.query_room * query;
    launch.lists_offset = launch.keys_offset + keys;
    launch.shared_bytes = launch.lists_offset + near_lists + SHARED_ALIGNMENT;
    launch.blocks = hpa_min(g->rows, launch.far_lists_bytes ? 2 * plan->cuda.multiprocessors
                                                            : HPA_CUDA_MAX_BLOCKS);
    if (can_share_levels(g)) {
        launch.span_lists = g->mask_heads * span_slots_of(g);
        launch.span_words = SPAN_LIST_HEADER + 2 * (g->beam_nodes - hpa_span_tail_nodes(g));
    }
    return launch;
}

/* Parts of the scratch of a build. */
struct mask_scratch {
    unsigned char *far_lists;
    uint32_t *span_lists;
    mask_row *rows;
    int64_t *scan;
};

static mask_scratch take_scratch(const hpa_plan *plan, const mask_launch *launch, hpa_arena *arena)
{
    mask_scratch scratch = {};
    if (launch->far_lists_bytes)
        scratch.far_lists =
            HPA_ARENA_ARRAY(arena, unsigned char, launch->blocks * launch->far_lists_bytes);
    if (launch->span_lists)
        scratch.span_lists =
            HPA_ARENA_ARRAY(arena, uint32_t, launch->span_lists * launch->span_words);
    scratch.rows =
        HPA_ARENA_ARRAY(arena, mask_row, hpa_max(plan->geometry.rows, launch->span_lists));
    if (plan->geometry.training)
        scratch.scan =
            HPA_ARENA_ARRAY(arena, int64_t, hpa_cuda_scan_scratch(plan->geometry.columns + 1));
    return scratch;
}

static size_t scratch_bytes(const hpa_plan *plan)
{
    const mask_launch launch = choose_launch(plan);
    hpa_arena arena = {};
    take_scratch(plan, &launch, &arena);
    const size_t to_inspect = hpa_mask_inspect_cuda_bytes(&plan->geometry);
    return arena.used > to_inspect ? arena.used : to_inspect;
}

static bool begins_by_16_bytes(const hpa_tensor *t)
{
    bool aligned = (uintptr_t)t->data % 16 == 0;
    for (int32_t n = 0; n < t->ndim - 1; n++)
        aligned = aligned && (t->shape[n] <= 1 || t->stride[n] * 2 % 16 == 0);
    return aligned;
}

static mask_search search_of(const hpa_plan *plan, const hpa_inputs *in, const hpa_mask *m,
                             const mask_launch *launch, const mask_scratch *scratch)
{
    mask_search search = {};
    search.g = plan->geometry;
    search.mask = *m;
    search.q = rows_of(&in->q, plan->geometry.packed);
    search.k = rows_of(&in->k, plan->geometry.packed);
    const int64_t row_bytes = 2 * search.k.strides.token;
    search.by_16_bytes = begins_by_16_bytes(&in->q) && begins_by_16_bytes(&in->k) &&
                         row_bytes >= 0 && row_bytes <= UINT32_MAX;
    search.k_row_bytes = search.by_16_bytes ? (uint32_t)row_bytes : 0;
    while ((int64_t)1 << search.block_k_log2 < plan->geometry.block_k)
        search.block_k_log2++;
    search.list_room = (int32_t)launch->list_room;
    search.query_room = (int32_t)launch->query_room;
    search.keys_offset = (int32_t)launch->keys_offset;
    search.lists_offset = (int32_t)launch->lists_offset;
    search.far_lists = scratch->far_lists;
    search.far_lists_bytes = launch->far_lists_bytes;
    search.span_lists = scratch->span_lists;
    search.rows = scratch->rows;
    search.span_slots = span_slots_of(&plan->geometry);
    search.span_words = (int32_t)launch->span_words;
    search.shared_nodes =
        (int32_t)(plan->geometry.beam_nodes - hpa_span_tail_nodes(&plan->geometry));
    return search;
}

/* Searches the shared levels of every span, or the rows. */
static hpa_status launch_search(const mask_launch *launch, mask_search search, bool leaders,
                                cudaStream_t stream)
{
    search.leaders = leaders;
    search.work = leaders ? launch->span_lists : search.g.rows;
    HPA_TRY(hpa_cuda_launch("describe_rows_kernel", describe_rows_kernel,
                            (unsigned)hpa_ceil_div(search.work, 128), 128, 0, stream, search));
    return hpa_cuda_launch("mask_build_kernel", launch->variant->launched,
                           (unsigned)hpa_min(search.work, launch->blocks),
                           (unsigned)launch->threads, (size_t)launch->shared_bytes, stream, search);
}

static hpa_status build(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                        const hpa_exec *exec)
{
    const hpa_mask m = hpa_mask_at(&plan->geometry, mask);
    const mask_launch launch = choose_launch(plan);
    hpa_arena arena = {};
    arena.base = exec ? (unsigned char *)exec->scratch : nullptr;
    const mask_scratch scratch = take_scratch(plan, &launch, &arena);
    const mask_search search = search_of(plan, in, &m, &launch, &scratch);
    HPA_TRY(hpa_mask_begin_cuda(&plan->geometry, in, &m, hpa_cuda_stream(exec)));
    if (launch.span_lists > 0)
        HPA_TRY(launch_search(&launch, search, true, hpa_cuda_stream(exec)));
    HPA_TRY(launch_search(&launch, search, false, hpa_cuda_stream(exec)));
    if (!plan->geometry.training)
        return HPA_OK;
    return hpa_mask_transpose_cuda(&plan->geometry, &m, scratch.scan, hpa_cuda_stream(exec));
}

static hpa_status mask_build_cuda(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                  const hpa_exec *exec)
{
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    return hpa_cuda_leave(before, build(plan, in, mask, exec));
}
