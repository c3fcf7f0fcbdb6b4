#include "cases.h"

#include <stdarg.h>
#include <stdio.h>

const hpa_dtype test_dtypes[4] = {HPA_F64, HPA_F32, HPA_F16, HPA_BF16};

typedef struct case_list {
    test_case *cases; /* NULL while counting */
    int count;
} case_list;

/* Small blocks, so that short sequences have something to search. */
static hpa_desc small_desc(int64_t heads_q, int64_t heads_kv, int64_t seq_q, int64_t seq_kv)
{
    hpa_desc d = test_desc();
    d.heads_q = heads_q;
    d.heads_kv = heads_kv;
    d.head_dim = 16;
    d.seq_q = seq_q;
    d.seq_kv = seq_kv;
    d.block_q = 32;
    d.block_k = 16;
    d.top_k = 64;
    d.sink = 16;
    d.window = 32;
    d.rep_tokens = 2;
    d.leaf_tokens = 4;
    return d;
}

static test_case *append(case_list *list, const hpa_desc *desc, const char *format, ...)
{
    static test_case counted;
    test_case *c = list->cases ? &list->cases[list->count] : &counted;
    list->count++;
    *c = (test_case){.desc = *desc};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->name, sizeof c->name, format, arguments);
    va_end(arguments);
    return c;
}

static void append_lengths(case_list *list)
{
    static const int64_t lengths[][2] = {
        {1, 1},     {2, 2},     {5, 5},       {17, 17},     {97, 97}, {127, 127}, {128, 128},
        {129, 129}, {257, 257}, {1000, 1000}, {1024, 1024}, {1, 239}, {239, 1},   {799, 3},
        {3, 799},   {130, 257}, {257, 130},   {0, 40},      {40, 0},  {0, 0}};
    for (size_t n = 0; n < sizeof lengths / sizeof lengths[0]; n++)
        for (int causal = 0; causal < 2; causal++) {
            hpa_desc d = small_desc(2, 1, lengths[n][0], lengths[n][1]);
            d.causal = causal;
            append(list, &d, "%d queries, %d keys, %s", (int)d.seq_q, (int)d.seq_kv,
                   causal ? "causal" : "not causal");
        }
}

static void append_heads(case_list *list)
{
    static const int64_t groups[] = {1, 2, 3, 4, 8};
    for (int n = 0; n < 5; n++)
        for (int shared = 0; shared < 2; shared++) {
            hpa_desc d = small_desc(2 * groups[n], 2, 150, 180);
            d.share_heads = shared;
            append(list, &d, "%d query heads of a key head, %s", (int)groups[n],
                   shared ? "one mask for all" : "a mask each");
        }
    static const int64_t dims[] = {8, 16, 24, 32, 64, 80, 96, 120, 128, 256};
    for (int n = 0; n < 10; n++) {
        hpa_desc d = small_desc(2, 1, 141, 141);
        d.head_dim = dims[n];
        append(list, &d, "head_dim %d", (int)dims[n]);
    }
}

static void append_layouts(case_list *list)
{
    static const char *const names[] = {"BHSD", "BSHD", "packed QKV", "padded"};
    for (int n = 0; n < TEST_LAYOUTS; n++)
        for (int causal = 0; causal < 2; causal++) {
            hpa_desc d = small_desc(4, 2, 133, 133);
            d.batch = 2;
            d.head_dim = 40;
            d.causal = causal;
            append(list, &d, "%s, batch 2, %s", names[n], causal ? "causal" : "not causal")
                ->layout = (test_layout)n;
        }
}

static void append_blocks(case_list *list)
{
    static const int32_t block_q[] = {16, 48, 128, 256}, block_k[] = {16, 32, 64, 128};
    for (int q = 0; q < 4; q++)
        for (int k = 0; k < 4; k++) {
            hpa_desc d = small_desc(1, 1, 600, 700);
            d.block_q = block_q[q];
            d.block_k = block_k[k];
            d.top_k = block_k[k] > 64 ? block_k[k] : 64;
            d.causal = (q + k) % 4 != 3;
            append(list, &d, "block_q %d, block_k %d", d.block_q, d.block_k);
        }
}

/* What the kernels for tensor cores ask for: wide blocks of queries and whole head sizes. */
static void append_tiles(case_list *list)
{
    static const int32_t block_k[] = {16, 32, 64, 128};
    for (int n = 0; n < 12; n++) {
        hpa_desc d = small_desc(2, 1, 139, 157 + n);
        d.head_dim = n % 2 ? 128 : 64;
        d.block_q = n / 2 % 2 ? 256 : 128;
        d.block_k = block_k[(n + n / 4) % 4];
        d.causal = n % 3 != 2;
        d.share_heads = n % 5 == 4;
        append(list, &d, "head_dim %d, block_q %d, block_k %d", (int)d.head_dim, d.block_q,
               d.block_k)
            ->layout = (test_layout)(n % TEST_LAYOUTS);
    }
}

static void append_knobs(case_list *list)
{
    static const struct {
        const char *name;
        int32_t top_k, sink, window, beam, rep_tokens, leaf_tokens, query_stride;
    } knobs[] = {
        {"a sink longer than the sequence", 32, 5000, 16, 2, 2, 4, 1},
        {"a window longer than the sequence", 32, 16, 5000, 2, 2, 4, 1},
        {"sink and window longer than the sequence", 32, INT32_MAX, INT32_MAX, 2, 2, 4, 1},
        {"no search", 0, 16, 32, 2, 2, 4, 1},
        {"nothing kept but the diagonal", 0, 0, 0, 1, 1, 1, 1},
        {"search alone", 48, 0, 0, 1, 1, 1, 1},
        {"everything kept by the search", 300, 0, 0, 1, 1, 1, 1},
        {"more than everything", INT32_MAX, 0, 0, 2, 4, 16, 1},
        {"every knob at its most", INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX,
         INT32_MAX},
        {"top_k no multiple of block_k", 41, 7, 19, 2, 2, 4, 1},
        {"one block", 16, 0, 1, 1, 2, 4, 1},
        {"a wide beam", 32, 16, 16, 4, 1, 16, 1},
        {"a beam wider than the tree", 32, 16, 16, 50, 3, 5, 1},
        {"every token scored", 32, 0, 16, 1, 1000, 1000, 1},
        {"every third query", 48, 16, 16, 2, 3, 7, 3},
        {"the first query alone", 48, 16, 16, 2, 3, 7, 1000},
    };
    for (size_t n = 0; n < sizeof knobs / sizeof knobs[0]; n++)
        for (int causal = 0; causal < 2; causal++) {
            hpa_desc d = small_desc(2, 2, 290, 300);
            d.top_k = knobs[n].top_k;
            d.sink = knobs[n].sink;
            d.window = knobs[n].window;
            d.beam = knobs[n].beam;
            d.rep_tokens = knobs[n].rep_tokens;
            d.leaf_tokens = knobs[n].leaf_tokens;
            d.query_stride = knobs[n].query_stride;
            d.causal = causal;
            append(list, &d, "%s, %s", knobs[n].name, causal ? "causal" : "not causal");
        }
    hpa_desc d = test_desc();
    d.heads_q = 2;
    d.seq_q = d.seq_kv = 1000;
    append(list, &d, "the default knobs");
    d.top_k = 128;
    d.window = 128;
    d.scale = 0.25;
    append(list, &d, "default blocks, few kept, a scale of one's own");
}

static const int32_t packed_spans[] = {0, 0, 650, 655, 1055, 1400};

/* Query blocks that share the coarse levels of the search, and, where a name begins with "no span",
 * some that cannot. */
static void append_spans(case_list *list)
{
    static const struct {
        const char *name;
        int64_t seq_q, seq_kv;
        int32_t block_q, block_k, top_k, beam, span;
        bool causal, share_heads;
    } spans[] = {
        {"span 2", 400, 400, 16, 16, 16, 2, 2, true, false},
        {"span 4, a part of the last", 755, 755, 16, 16, 32, 2, 4, true, false},
        {"span 8 with long tails", 820, 820, 32, 16, 32, 2, 8, true, false},
        {"span 9, beam 3, all heads alike", 700, 700, 16, 16, 16, 3, 9, true, true},
        {"span 3 with fewer queries than keys", 290, 800, 32, 16, 32, 1, 3, true, false},
        {"span 3 with more queries than keys", 700, 600, 16, 16, 32, 1, 3, true, true},
        {"span 4, wide blocks", 1700, 1700, 128, 64, 64, 2, 4, true, false},
        {"span 8, wide blocks of keys alone", 1400, 1400, 32, 64, 64, 2, 8, true, false},
        {"span 2, wide blocks of keys", 2700, 2700, 128, 128, 128, 2, 2, true, true},
        {"no span where masks are not causal", 400, 400, 16, 16, 16, 2, 4, false, false},
        {"no span where the tail takes the beam", 700, 700, 256, 16, 32, 2, 8, true, false},
        {"no span where levels are few", 230, 230, 16, 16, 32, 2, 4, true, false},
    };
    for (size_t n = 0; n < sizeof spans / sizeof spans[0]; n++) {
        hpa_desc d = small_desc(2, 1, spans[n].seq_q, spans[n].seq_kv);
        d.head_dim = spans[n].block_k > 16 ? 64 : 16;
        d.block_q = spans[n].block_q;
        d.block_k = spans[n].block_k;
        d.top_k = spans[n].top_k;
        d.beam = spans[n].beam;
        d.search_span = spans[n].span;
        d.causal = spans[n].causal;
        d.share_heads = spans[n].share_heads;
        append(list, &d, "%s", spans[n].name)->layout = (test_layout)(n % TEST_LAYOUTS);
    }
    hpa_desc d = small_desc(2, 1, 650, 650);
    d.packed = true;
    d.batch = 5;
    d.total_q = d.total_kv = packed_spans[5] + 2;
    d.block_q = 16;
    d.top_k = 16;
    d.search_span = 4;
    test_case *c = append(list, &d, "packed: span 4");
    c->layout = TEST_BSHD;
    c->cu_q = c->cu_kv = packed_spans;
}

static const int32_t packed_same[] = {0, 0, 1, 98, 98, 131, 132, 260, 260};
static const int32_t packed_q[] = {0, 5, 45, 45, 52, 53, 70, 170};
static const int32_t packed_kv[] = {0, 0, 3, 12, 62, 101, 102, 272};
static const int32_t packed_none[] = {0, 0, 0, 0};
static const int32_t packed_edges[] = {0, 32, 64, 65, 96, 128};

static void append_packed_case(case_list *list, const char *name, const int32_t *cu_q,
                               const int32_t *cu_kv, int64_t batch, int64_t spare)
{
    for (int n = 0; n < 2 * TEST_LAYOUTS; n++) {
        hpa_desc d = small_desc(4, 2, 170, 170);
        d.packed = true;
        d.batch = batch;
        d.causal = n % 2 == 0;
        d.share_heads = n / 2 == TEST_BSHD;
        d.total_q = cu_q[batch] + spare;
        d.total_kv = cu_kv[batch] + spare;
        test_case *c = append(list, &d, "packed: %s, layout %d, %s", name, n / 2,
                              d.causal ? "causal" : "not causal");
        c->layout = (test_layout)(n / 2);
        c->cu_q = cu_q;
        c->cu_kv = cu_kv;
    }
}

static const int32_t packed_tiles[] = {0, 0, 1, 131, 131, 260, 389};

static void append_packed_tiles(case_list *list)
{
    for (int n = 0; n < 4; n++) {
        hpa_desc d = small_desc(2, 1, 130, 130);
        d.packed = true;
        d.batch = 6;
        d.head_dim = n % 2 ? 64 : 128;
        d.block_q = 128;
        d.block_k = n / 2 ? 128 : 64;
        d.total_q = d.total_kv = packed_tiles[6] + 3;
        test_case *c = append(list, &d, "packed: head_dim %d, block_q 128, block_k %d",
                              (int)d.head_dim, d.block_k);
        c->layout = (test_layout)n;
        c->cu_q = c->cu_kv = packed_tiles;
    }
}

static void append_packed(case_list *list)
{
    append_packed_case(list, "empty and one-token sequences", packed_same, packed_same, 8, 0);
    append_packed_case(list, "queries without keys, rows to spare", packed_q, packed_kv, 7, 21);
    append_packed_case(list, "nothing at all, rows to spare", packed_none, packed_none, 3, 9);
    append_packed_case(list, "ends on block edges", packed_edges, packed_edges, 5, 0);
}

static void append_all(case_list *list)
{
    append_lengths(list);
    append_heads(list);
    append_layouts(list);
    append_blocks(list);
    append_tiles(list);
    append_knobs(list);
    append_packed(list);
    append_packed_tiles(list);
    append_spans(list);
}

int test_case_count(void)
{
    case_list list = {0};
    append_all(&list);
    return list.count;
}

test_case test_case_at(int index)
{
    const int count = test_case_count();
    ck_assert_int_lt(index, count);
    case_list list = {.cases = test_allocate(count, sizeof(test_case))};
    append_all(&list);
    const test_case c = list.cases[index];
    free(list.cases);
    return c;
}

int test_few_case_count(void)
{
    return test_case_count() / 4;
}

test_case test_few_case_at(int index)
{
    return test_case_at(4 * index + index % 4);
}

int test_dtype_count(int case_index)
{
    const test_case c = test_case_at(case_index);
    const bool tiles = c.desc.device == HPA_CUDA && c.desc.block_q >= 128;
    return case_index % 3 == 0 || tiles ? 4 : 2;
}

void test_problem_of_case(test_problem *p, const test_case *c, hpa_dtype dtype, test_values values)
{
    hpa_desc desc = c->desc;
    desc.dtype = dtype;
    test_problem_new(p, &desc, c->layout, c->cu_q, c->cu_kv);
    test_problem_fill(p, 17, values);
}

static int32_t pick(test_random *random, const int32_t *from, int64_t count)
{
    return from[test_random_integer(random, 0, count - 1)];
}

hpa_desc test_random_desc(test_random *random, int64_t longest)
{
    static const int32_t block_k[] = {16, 16, 16, 32, 64, 128};
    static const int32_t tokens[] = {1, 2, 3, 4, 7, 16, 100};
    static const int32_t spans[] = {1, 2, 3, 8, 64};
    hpa_desc d = test_desc();
    d.batch = test_random_integer(random, 1, 2);
    d.heads_kv = test_random_integer(random, 1, 2);
    d.heads_q = d.heads_kv * test_random_integer(random, 1, 3);
    d.head_dim = 8 * test_random_integer(random, 1, 4);
    d.seq_kv = test_random_integer(random, 0, longest);
    d.seq_q =
        test_random_integer(random, 0, 1) ? d.seq_kv : test_random_integer(random, 0, longest);
    d.causal = test_random_integer(random, 0, 3) != 0;
    d.share_heads = test_random_integer(random, 0, 1);
    d.block_q = 16 * (int32_t)test_random_integer(random, 1, 16);
    d.block_k = pick(random, block_k, 6);
    d.top_k = d.block_k * (int32_t)test_random_integer(random, 0, 7);
    d.sink = (int32_t)test_random_integer(random, 0, 2) * 13;
    d.window = (int32_t)test_random_integer(random, 0, 3) * 21;
    d.beam = (int32_t)test_random_integer(random, 1, 4);
    d.rep_tokens = pick(random, tokens, 7);
    d.leaf_tokens = pick(random, tokens, 7);
    d.query_stride = (int32_t)test_random_integer(random, 1, 5);
    d.search_span = pick(random, spans, 5);
    return d;
}

hpa_desc test_random_span_desc(test_random *random, int64_t longest)
{
    hpa_desc d = test_random_desc(random, longest);
    d.causal = true;
    d.block_k = 16;
    d.block_q = 16 * (int32_t)test_random_integer(random, 1, 3);
    d.search_span = (int32_t)test_random_integer(random, 2, 6);
    d.top_k = 16 * (int32_t)test_random_integer(random, 1, 2);
    d.beam = (int32_t)test_random_integer(random, 2, 3);
    d.seq_kv = test_random_integer(random, longest / 2, longest);
    d.seq_q = test_random_integer(random, 0, 2) ? d.seq_kv
                                                : test_random_integer(random, longest / 4, longest);
    return d;
}

hpa_desc test_random_wide_desc(test_random *random, hpa_dtype dtype)
{
    hpa_desc d = test_random_desc(random, 300);
    d.dtype = dtype;
    d.head_dim = 8 * test_random_integer(random, 1, 32);
    d.num_threads = (int32_t)test_random_integer(random, 0, 4);
    return d;
}

hpa_desc test_medium_desc(hpa_dtype dtype)
{
    hpa_desc d = small_desc(4, 2, 200, 230);
    d.dtype = dtype;
    d.head_dim = 64;
    d.rep_tokens = 4;
    d.leaf_tokens = 16;
    if (d.device == HPA_CUDA &&
        (dtype == HPA_F16 || dtype == HPA_BF16)) { /* what the kernels for Hopper serve */
        d.block_q = 128;
        d.block_k = 64;
    }
    return d;
}

void test_problem_built(test_problem *p, const hpa_desc *desc, test_layout layout)
{
    test_problem_new(p, desc, layout, NULL, NULL);
    test_problem_fill(p, 23, TEST_NORMAL);
    test_build(p);
}

void assert_repeatable(test_problem *p, test_run_problem run, test_hash_problem hash)
{
    run(p);
    const uint64_t first = hash(p);
    for (int n = 0; n < 100; n++) {
        p->scratch_fill = n;
        run(p);
        assert_that(hash(p) == first, "run %d differs from the first", n);
    }
}

void assert_threads_do_not_matter(const test_case *c, test_run_problem run, test_hash_problem hash)
{
    for (int n = 1; n < 4; n += 2) {
        test_problem p;
        test_problem_of_case(&p, c, test_dtypes[n], TEST_NORMAL);
        run(&p);
        for (int32_t threads = 1; threads <= 3; threads++) {
            hpa_desc desc = p.desc;
            desc.num_threads = threads;
            test_problem other;
            test_problem_copy(&other, &p, &desc, p.layout);
            run(&other);
            assert_that(hash(&other) == hash(&p), "%s: %d threads give other bits", c->name,
                        threads);
            test_problem_free(&other);
        }
        test_problem_free(&p);
    }
}
