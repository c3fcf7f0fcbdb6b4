/* What every call owes a caller who errs: the right status, a sentence that names the argument, its
 * value and what was expected, and nothing written. And the small print of the calls that cannot
 * fail. */
#include "problem.h"

#include <ctype.h>
#include <stdio.h>

/* Status, version */

START_TEST(statuses_have_names_and_sentences)
{
#define CHECK_STATUS(name, value, sentence)         \
    ck_assert_int_eq(name, value);                  \
    ck_assert_str_eq(hpa_status_name(name), #name); \
    ck_assert_str_eq(hpa_status_string(name), sentence);
    HPA_STATUS_LIST(CHECK_STATUS)
#undef CHECK_STATUS
    static const int others[] = {-1, 1, 999, 1009, 4001, 2147483647, -2147483647};
    for (size_t n = 0; n < sizeof others / sizeof others[0]; n++) {
        ck_assert_str_eq(hpa_status_name((hpa_status)others[n]), "HPA_UNKNOWN_STATUS");
        ck_assert_str_eq(hpa_status_string((hpa_status)others[n]), "unknown status");
    }
}
END_TEST

START_TEST(the_library_says_what_it_is)
{
    ck_assert_int_eq(hpa_version(), HPA_VERSION);
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", HPA_VERSION_MAJOR, HPA_VERSION_MINOR,
             HPA_VERSION_PATCH);
    const char *info = hpa_build_info();
    ck_assert_msg(strstr(info, version) != NULL, "\"%s\" lacks %s", info, version);
    ck_assert_msg(strchr(info, '\n') == NULL, "\"%s\" is more than a line", info);
    ck_assert_ptr_eq(hpa_build_info(), info);
}
END_TEST

START_TEST(no_failure_no_words)
{
    ck_assert_str_eq(hpa_last_error(), "");
    const hpa_desc desc = test_desc();
    hpa_plan *plan;
    assert_ok(hpa_plan_create(&plan, &desc));
    hpa_plan_destroy(plan);
    ck_assert_str_eq(hpa_last_error(), "");
    ck_assert_int_eq(hpa_plan_create(NULL, &desc), HPA_INVALID_ARGUMENT);
    ck_assert_str_ne(hpa_last_error(), "");
}
END_TEST

START_TEST(the_defaults_are_those_of_the_header)
{
    const hpa_desc d = hpa_desc_default();
    ck_assert_uint_eq(d.struct_size, sizeof d);
    ck_assert(d.device == HPA_CPU && d.device_id == 0 && d.num_threads == 0 && d.dtype == HPA_F32);
    ck_assert(d.batch == 1 && d.heads_q == 1 && d.heads_kv == 1 && d.head_dim == 64);
    ck_assert(d.seq_q == 0 && d.seq_kv == 0 && !d.packed && d.total_q == 0 && d.total_kv == 0);
    ck_assert(d.causal && d.scale == 0 && d.block_q == 128 && d.block_k == 64 && d.top_k == 1024);
    ck_assert(d.sink == 64 && d.window == 512 && d.beam == 2 && d.rep_tokens == 4);
    ck_assert(d.leaf_tokens == 8 && d.query_stride == 1 && d.search_span == 1);
    ck_assert(!d.share_heads && d.training);
    ck_assert(!d.allow_nondeterministic && !d.reference);
}
END_TEST

/* Descriptions */

static hpa_desc good_desc(void)
{
    hpa_desc d = test_desc();
    d.heads_q = 4;
    d.heads_kv = 2;
    d.head_dim = 16;
    d.seq_q = 100;
    d.seq_kv = 120;
    d.total_q = 150;
    d.total_kv = 160;
    d.batch = 2;
    d.block_q = 32;
    d.block_k = 16;
    return d;
}

/* Bytes of any other field, and between fields, stay as they are. */
START_TEST(presets_set_the_search_and_nothing_else)
{
    static const hpa_preset presets[] = {HPA_PRESET_FAST, HPA_PRESET_BALANCED, HPA_PRESET_FAITHFUL};
    for (int n = 0; n < 3; n++) {
        hpa_desc d, other; /* whole, with the bytes between the fields */
        memset(&d, 0x5a, sizeof d);
        memset(&other, 0x5a, sizeof other);
        d.struct_size = other.struct_size = sizeof d;
        assert_ok(hpa_desc_set_preset(&d, presets[n]));
        ck_assert(d.block_q > 0 && d.block_k > 0 && d.beam > 0 && d.rep_tokens > 0);
        ck_assert(d.leaf_tokens > 0 && d.query_stride > 0 && d.search_span > 0);
        other.block_q = d.block_q, other.block_k = d.block_k, other.beam = d.beam;
        other.rep_tokens = d.rep_tokens, other.leaf_tokens = d.leaf_tokens;
        other.query_stride = d.query_stride, other.search_span = d.search_span;
        other.share_heads = d.share_heads;
        ck_assert_mem_eq(&d, &other, sizeof d);
    }
    hpa_desc d = hpa_desc_default();
    d.block_q = d.block_k = d.beam = d.rep_tokens = d.leaf_tokens = d.query_stride = 16;
    d.search_span = 16;
    d.share_heads = true;
    assert_ok(hpa_desc_set_preset(&d, HPA_PRESET_BALANCED));
    const hpa_desc usual = hpa_desc_default();
    ck_assert(d.block_q == usual.block_q && d.block_k == usual.block_k && d.beam == usual.beam);
    ck_assert(d.rep_tokens == usual.rep_tokens && d.leaf_tokens == usual.leaf_tokens);
    ck_assert(d.query_stride == usual.query_stride && d.search_span == usual.search_span);
    ck_assert(d.share_heads == usual.share_heads);
}
END_TEST

START_TEST(presets_serve_every_dtype)
{
    static const hpa_dtype dtypes[] = {HPA_F64, HPA_F32, HPA_F16, HPA_BF16};
    for (int n = 0; n < 12; n++) {
        hpa_desc desc = test_desc();
        desc.heads_q = 4;
        desc.heads_kv = 2;
        desc.seq_q = desc.seq_kv = 70000;
        desc.dtype = dtypes[n % 4];
        assert_ok(hpa_desc_set_preset(&desc, (hpa_preset)(HPA_PRESET_FAST + n / 4)));
        hpa_plan *plan;
        assert_ok(hpa_plan_create(&plan, &desc));
        hpa_plan_destroy(plan);
    }
}
END_TEST

START_TEST(bad_presets_are_refused)
{
    static const int presets[] = {0, 4, -1, INT32_MAX, INT32_MIN};
    for (int n = 0; n < 5; n++) {
        hpa_desc desc = good_desc(), before = desc;
        char words[48];
        snprintf(words, sizeof words, "preset|%d|HPA_PRESET_FAITHFUL", presets[n]);
        assert_failure(hpa_desc_set_preset(&desc, (hpa_preset)presets[n]), HPA_INVALID_ARGUMENT,
                       words);
        ck_assert_mem_eq(&desc, &before, sizeof desc);
    }
    assert_failure(hpa_desc_set_preset(NULL, HPA_PRESET_FAST), HPA_INVALID_ARGUMENT, "desc|NULL");
    hpa_desc desc = good_desc();
    desc.struct_size -= 8;
    assert_failure(hpa_desc_set_preset(&desc, HPA_PRESET_FAST), HPA_INVALID_STRUCT_SIZE,
                   "desc.struct_size");
    ck_assert_int_eq(desc.block_q, good_desc().block_q);
}
END_TEST

static void assert_no_plan(const hpa_desc *desc, hpa_status want, const char *words)
{
    hpa_plan *plan = (hpa_plan *)(void *)&plan;
    assert_failure(hpa_plan_create(&plan, desc), want, words);
    ck_assert_ptr_null(plan);
    ck_assert(strstr(hpa_last_error(), "expected") != NULL);
}

/* Sets one field to each of the values and expects the status and the words; %s: the value. */
#define BAD_FIELD(field, type, want, ...)                                                 \
    do {                                                                                  \
        const long long values[] = {__VA_ARGS__};                                         \
        for (size_t n = 0; n < sizeof values / sizeof values[0]; n++) {                   \
            hpa_desc desc = good_desc();                                                  \
            desc.field = (type)values[n];                                                 \
            char words[96];                                                               \
            snprintf(words, sizeof words, "desc.%s|%lld", #field, (long long)desc.field); \
            assert_no_plan(&desc, want, words);                                           \
        }                                                                                 \
    } while (0)

START_TEST(bad_fields_are_named)
{
    BAD_FIELD(struct_size, size_t, HPA_INVALID_STRUCT_SIZE, 0, 1, sizeof(hpa_desc) - 8,
              sizeof(hpa_desc) + 8);
    BAD_FIELD(device, hpa_device, HPA_INVALID_DEVICE, 0, 3, 100, INT32_MAX);
    BAD_FIELD(device_id, int32_t, HPA_INVALID_DEVICE, -1, INT32_MIN, 1, 5);
    BAD_FIELD(num_threads, int32_t, HPA_INVALID_ARGUMENT, -1, INT32_MIN, INT32_MAX);
    BAD_FIELD(dtype, hpa_dtype, HPA_INVALID_DTYPE, 0, HPA_I32, HPA_I64, 7, INT32_MAX);
    BAD_FIELD(batch, int64_t, HPA_INVALID_ARGUMENT, 0, -1, INT64_MIN, INT64_MAX);
    BAD_FIELD(heads_q, int64_t, HPA_INVALID_ARGUMENT, 0, -4, 3, 5, INT64_MIN, INT64_MAX);
    BAD_FIELD(heads_kv, int64_t, HPA_INVALID_ARGUMENT, 0, -2, INT64_MIN, INT64_MAX);
    BAD_FIELD(head_dim, int64_t, HPA_INVALID_ARGUMENT, 0, 1, 7, 12, 63, 257, 264, -8, INT64_MIN,
              INT64_MAX);
    BAD_FIELD(seq_q, int64_t, HPA_INVALID_ARGUMENT, -1, INT64_MIN, INT64_MAX);
    BAD_FIELD(seq_kv, int64_t, HPA_INVALID_ARGUMENT, -1, INT64_MIN, INT64_MAX);
    BAD_FIELD(block_q, int32_t, HPA_INVALID_ARGUMENT, 0, 8, 15, 17, 257, 272, -16, INT32_MAX);
    BAD_FIELD(block_k, int32_t, HPA_INVALID_ARGUMENT, 0, 8, 24, 48, 96, 256, -16, INT32_MAX);
    BAD_FIELD(top_k, int32_t, HPA_INVALID_ARGUMENT, -1, INT32_MIN);
    BAD_FIELD(sink, int32_t, HPA_INVALID_ARGUMENT, -1, INT32_MIN);
    BAD_FIELD(window, int32_t, HPA_INVALID_ARGUMENT, -1, INT32_MIN);
    BAD_FIELD(beam, int32_t, HPA_INVALID_ARGUMENT, 0, -1, INT32_MIN);
    BAD_FIELD(rep_tokens, int32_t, HPA_INVALID_ARGUMENT, 0, -1, INT32_MIN);
    BAD_FIELD(leaf_tokens, int32_t, HPA_INVALID_ARGUMENT, 0, -1, INT32_MIN);
    BAD_FIELD(query_stride, int32_t, HPA_INVALID_ARGUMENT, 0, -1, INT32_MIN);
    BAD_FIELD(search_span, int32_t, HPA_INVALID_ARGUMENT, 0, 65, -1, INT32_MIN, INT32_MAX);
}
END_TEST

START_TEST(bad_scales_and_totals_are_named)
{
    static const double scales[] = {-1, -1e-300, (double)NAN, (double)INFINITY, -(double)INFINITY};
    for (int n = 0; n < 5; n++) {
        hpa_desc desc = good_desc();
        desc.scale = scales[n];
        assert_no_plan(&desc, HPA_INVALID_ARGUMENT, "desc.scale");
    }
    static const int64_t totals[] = {-1, INT64_MIN, INT64_MAX};
    for (int n = 0; n < 3; n++) {
        hpa_desc desc = good_desc();
        desc.packed = true;
        desc.total_q = totals[n];
        assert_no_plan(&desc, HPA_INVALID_ARGUMENT, "desc.total_q");
        desc.total_q = 10;
        desc.total_kv = totals[n];
        assert_no_plan(&desc, HPA_INVALID_ARGUMENT, "desc.total_kv");
    }
    hpa_plan *plan;
    assert_failure(hpa_plan_create(&plan, NULL), HPA_INVALID_ARGUMENT, "desc|NULL");
    ck_assert_ptr_null(plan);
    const hpa_desc desc = good_desc();
    assert_failure(hpa_plan_create(NULL, &desc), HPA_INVALID_ARGUMENT, "plan|NULL");
}
END_TEST

/* Every field at the ends of its range, alone and together: a plan or a status, never a crash, an
 * overflow or a size that wrapped around. */
START_TEST(extreme_fields_are_served_or_refused)
{
    static const int64_t lengths[] = {0, 1, 1 << 20, 1 << 30, INT64_C(1) << 31, INT64_MAX};
    static const int64_t heads[] = {1, 8, 65536, INT64_C(1) << 40};
    for (int n = 0; n < 6 * 6 * 4 * 6 * 2; n++) {
        hpa_desc d = test_desc();
        d.seq_q = d.total_q = lengths[n % 6];
        d.seq_kv = d.total_kv = lengths[n / 6 % 6];
        d.heads_q = d.heads_kv = heads[n / 36 % 4];
        d.batch = lengths[n / 144 % 6];
        d.packed = n / 864;
        d.block_q = d.block_k = 16;
        d.top_k = d.sink = d.window = d.beam = INT32_MAX;
        d.rep_tokens = d.leaf_tokens = d.query_stride = INT32_MAX;
        hpa_plan *plan;
        const hpa_status status = hpa_plan_create(&plan, &d);
        if (status != HPA_OK) {
            ck_assert_ptr_null(plan);
            ck_assert_str_ne(hpa_last_error(), "");
            continue;
        }
        hpa_sizes sizes;
        assert_ok(hpa_plan_sizes(plan, &sizes));
        const double rows = (double)d.heads_q * (d.packed ? 1 : (double)d.batch) *
                            ((double)(d.packed ? d.total_q : d.seq_q) / 16);
        const double blocks = (double)d.seq_kv / 16;
        assert_that((double)sizes.mask >= rows * blocks * 4,
                    "a mask of %g rows of %g blocks has %zu bytes", rows, blocks, sizes.mask);
        hpa_plan_destroy(plan);
    }
}
END_TEST

START_TEST(cuda_is_refused_where_there_is_none)
{
    hpa_desc desc = good_desc();
    desc.device = HPA_CUDA;
    hpa_plan *plan;
    const hpa_status status = hpa_plan_create(&plan, &desc);
    if (status == HPA_OK) { /* there is one */
        hpa_plan_destroy(plan);
        return;
    }
    ck_assert_msg(status == HPA_BACKEND_NOT_BUILT || status == HPA_NO_DEVICE, "%s",
                  hpa_status_name(status));
    ck_assert_ptr_null(plan);
    ck_assert_msg(strstr(hpa_last_error(), "CUDA") != NULL, "%s", hpa_last_error());
}
END_TEST

/* Plans */

START_TEST(plans_say_their_sizes)
{
    hpa_desc desc = good_desc();
    hpa_plan *plan;
    hpa_sizes sizes, without;
    assert_ok(hpa_plan_create(&plan, &desc));
    memset(&sizes, 0xff, sizeof sizes);
    assert_ok(hpa_plan_sizes(plan, &sizes));
    ck_assert_uint_gt(sizes.mask, 0);
    ck_assert_uint_ne(sizes.backward_scratch, SIZE_MAX);
    assert_failure(hpa_plan_sizes(NULL, &sizes), HPA_INVALID_ARGUMENT, "plan|NULL");
    assert_failure(hpa_plan_sizes(plan, NULL), HPA_INVALID_ARGUMENT, "sizes|NULL");
    hpa_plan_destroy(plan);
    hpa_plan_destroy(NULL);
    desc.training = false;
    assert_ok(hpa_plan_create(&plan, &desc));
    assert_ok(hpa_plan_sizes(plan, &without));
    ck_assert_uint_lt(without.mask, sizes.mask);
    ck_assert_uint_eq(without.backward_scratch, 0);
    hpa_plan_destroy(plan);
}
END_TEST

/* Memory is linear in the length once rows are full. */
START_TEST(masks_grow_with_the_length)
{
    hpa_sizes sizes[2];
    for (int n = 0; n < 2; n++) {
        hpa_desc desc = test_desc();
        desc.seq_q = desc.seq_kv = 65536 << n;
        hpa_plan *plan;
        assert_ok(hpa_plan_create(&plan, &desc));
        assert_ok(hpa_plan_sizes(plan, &sizes[n]));
        hpa_plan_destroy(plan);
    }
    ck_assert_uint_le(sizes[1].mask, 2 * sizes[0].mask + 4096);
    ck_assert_uint_le(sizes[1].forward_scratch, 2 * sizes[0].forward_scratch + 4096);
    ck_assert_uint_le(sizes[1].backward_scratch, 2 * sizes[0].backward_scratch + 4096);
}
END_TEST

START_TEST(plans_describe_themselves)
{
    const hpa_desc desc = good_desc();
    hpa_plan *plan;
    assert_ok(hpa_plan_create(&plan, &desc));
    const char *text = hpa_plan_describe(plan);
    ck_assert_msg(strstr(text, "mask_build") || strstr(text, "mask"), "%s", text);
    ck_assert_msg(strstr(text, "levels") != NULL, "no tree levels in: %s", text);
    ck_assert_msg(strstr(text, "rows") != NULL, "no mask rows in: %s", text);
    ck_assert_msg(strstr(text, "blocks") != NULL, "no blocks of a row in: %s", text);
    ck_assert_ptr_nonnull(hpa_plan_describe(NULL));
    hpa_plan_destroy(plan);
}
END_TEST

START_TEST(plans_describe_shared_levels)
{
    static const int32_t spans[] = {1, 8, 16};
    for (int n = 0; n < 3; n++) {
        hpa_desc desc = test_desc(); /* 2048 key blocks, 32 nodes: 6 levels */
        desc.seq_q = desc.seq_kv = 131072;
        desc.search_span = spans[n];
        hpa_plan *plan;
        assert_ok(hpa_plan_create(&plan, &desc));
        const char *text = hpa_plan_describe(plan);
        ck_assert_msg(strstr(text, "6 levels") != NULL, "%s", text);
        ck_assert_msg(!strstr(text, "of them for") == (spans[n] == 1), "%s", text);
        if (spans[n] != 1)
            ck_assert_msg(
                strstr(text, spans[n] == 16 ? "3 of them for 16 rows" : "3 of them for 8 rows"),
                "%s", text);
        hpa_plan_destroy(plan);
    }
}
END_TEST

/* Calls. One problem, all of whose calls would succeed; each test spoils one argument. */

typedef struct calls {
    test_problem p;
    hpa_inputs in;
    hpa_outputs out;
    hpa_gradients gradients;
    hpa_exec exec;
    void *mask;
    const hpa_plan *plan;
    test_buffer scratch;
} calls;

typedef enum call { BUILD, FORWARD, BACKWARD, CALLS } call;

static const int32_t cu_q[] = {0, 60, 150}, cu_kv[] = {0, 70, 160};

static void calls_new(calls *c, bool packed)
{
    hpa_desc desc = good_desc();
    desc.packed = packed;
    *c = (calls){.mask = NULL};
    test_problem_new(&c->p, &desc, TEST_PADDED, packed ? cu_q : NULL, packed ? cu_kv : NULL);
    test_problem_fill(&c->p, 1, TEST_NORMAL);
    test_build(&c->p);
    test_forward(&c->p);
    c->plan = c->p.plan;
    c->in = test_inputs(&c->p);
    c->out = test_outputs(&c->p);
    c->gradients = test_gradients(&c->p);
    c->mask = c->p.mask.data;
    size_t most = c->p.sizes.mask_scratch;
    most = c->p.sizes.forward_scratch > most ? c->p.sizes.forward_scratch : most;
    most = c->p.sizes.backward_scratch > most ? c->p.sizes.backward_scratch : most;
    c->exec = test_scratch_new(&c->scratch, most + 16, 0xff);
}

static void calls_free(calls *c)
{
    test_scratch_free(&c->scratch);
    test_problem_free(&c->p);
}

static hpa_status run(const calls *c, call which)
{
    switch (which) {
    case BUILD:
        return hpa_mask_build(c->plan, &c->in, c->mask, &c->exec);
    case FORWARD:
        return hpa_forward(c->plan, c->mask, &c->in, &c->out, &c->exec);
    default:
        return hpa_backward(c->plan, c->mask, &c->in, &c->out, &c->gradients, &c->exec);
    }
}

static uint64_t hash_of_everything(const calls *c)
{
    uint64_t hash = test_buffer_hash(&c->p.mask);
    for (int32_t n = 0; n < c->p.buffer_count; n++)
        hash = 3 * hash + test_buffer_hash(&c->p.buffers[n]);
    return 3 * hash + test_buffer_hash(&c->scratch);
}

static void assert_call_fails(const calls *c, call which, hpa_status want, const char *words)
{
    const uint64_t before = hash_of_everything(c);
    assert_failure(run(c, which), want, words);
    assert_that(hash_of_everything(c) == before, "call %d failed on \"%s\", yet wrote", which,
                words);
}

START_TEST(good_calls_succeed)
{
    calls c;
    calls_new(&c, _i);
    for (int which = BUILD; which < CALLS; which++)
        assert_ok(run(&c, (call)which));
    calls_free(&c);
}
END_TEST

START_TEST(null_structures_are_named)
{
    calls c;
    calls_new(&c, _i);
    hpa_exec *exec = &c.exec;
    void *mask = c.mask;
    const hpa_plan *plan = c.plan;
#define NULL_FAILS(call, name) assert_failure(call, HPA_INVALID_ARGUMENT, name "|NULL")
    NULL_FAILS(hpa_mask_build(NULL, &c.in, mask, exec), "plan");
    NULL_FAILS(hpa_mask_build(plan, NULL, mask, exec), "in");
    NULL_FAILS(hpa_mask_build(plan, &c.in, NULL, exec), "mask");
    NULL_FAILS(hpa_forward(NULL, mask, &c.in, &c.out, exec), "plan");
    NULL_FAILS(hpa_forward(plan, NULL, &c.in, &c.out, exec), "mask");
    NULL_FAILS(hpa_forward(plan, mask, NULL, &c.out, exec), "in");
    NULL_FAILS(hpa_forward(plan, mask, &c.in, NULL, exec), "out");
    NULL_FAILS(hpa_backward(NULL, mask, &c.in, &c.out, &c.gradients, exec), "plan");
    NULL_FAILS(hpa_backward(plan, NULL, &c.in, &c.out, &c.gradients, exec), "mask");
    NULL_FAILS(hpa_backward(plan, mask, NULL, &c.out, &c.gradients, exec), "in");
    NULL_FAILS(hpa_backward(plan, mask, &c.in, NULL, &c.gradients, exec), "out");
    NULL_FAILS(hpa_backward(plan, mask, &c.in, &c.out, NULL, exec), "grads");
    hpa_mask_stats stats;
    int64_t n_blocks = 0, row_ptr[64] = {0};
    int32_t blocks[1] = {0};
    char text[4];
    NULL_FAILS(hpa_mask_statistics(NULL, mask, &stats, exec), "plan");
    NULL_FAILS(hpa_mask_statistics(plan, NULL, &stats, exec), "mask");
    NULL_FAILS(hpa_mask_statistics(plan, mask, NULL, exec), "stats");
    NULL_FAILS(hpa_mask_validate(NULL, mask, exec), "plan");
    NULL_FAILS(hpa_mask_validate(plan, NULL, exec), "mask");
    NULL_FAILS(hpa_mask_export_csr(NULL, mask, NULL, NULL, &n_blocks, exec), "plan");
    NULL_FAILS(hpa_mask_export_csr(plan, NULL, NULL, NULL, &n_blocks, exec), "mask");
    NULL_FAILS(hpa_mask_export_csr(plan, mask, NULL, NULL, NULL, exec), "n_blocks");
    NULL_FAILS(hpa_mask_import_csr(NULL, &c.in, mask, row_ptr, blocks, exec), "plan");
    NULL_FAILS(hpa_mask_import_csr(plan, &c.in, NULL, row_ptr, blocks, exec), "mask");
    NULL_FAILS(hpa_mask_import_csr(plan, &c.in, mask, NULL, blocks, exec), "row_ptr");
    for (int n = 1; n < 64; n++)
        row_ptr[n] = 1; /* the first row keeps a block */
    NULL_FAILS(hpa_mask_import_csr(plan, &c.in, mask, row_ptr, NULL, exec), "blocks");
    if (c.p.desc.packed)
        NULL_FAILS(hpa_mask_import_csr(plan, NULL, mask, row_ptr, blocks, exec), "in");
    ck_assert_int_eq(hpa_mask_snprint(NULL, mask, 0, 0, text, sizeof text, exec), -1);
    ck_assert_int_eq(hpa_mask_snprint(plan, NULL, 0, 0, text, sizeof text, exec), -1);
    ck_assert_int_eq(hpa_mask_snprint(plan, mask, 0, 0, NULL, sizeof text, exec), -1);
    static const int64_t indices[] = {-1, INT64_MIN, 4, INT64_MAX};
    for (int n = 0; n < 4; n++) {
        ck_assert_int_eq(hpa_mask_snprint(plan, mask, indices[n], 0, text, 4, exec), -1);
        ck_assert(strstr(hpa_last_error(), "batch") && strstr(hpa_last_error(), "expected"));
        ck_assert_int_eq(hpa_mask_snprint(plan, mask, 0, indices[n], text, 4, exec), -1);
        ck_assert(strstr(hpa_last_error(), "head") && strstr(hpa_last_error(), "expected"));
    }
    calls_free(&c);
}
END_TEST

START_TEST(lengths_of_a_pack_are_checked)
{
    calls c;
    calls_new(&c, true);
    const hpa_inputs good = c.in;
    static const int32_t bad[][3] = {{1, 60, 150},  {0, -1, 150},      {0, 60, 59},
                                     {0, 101, 150}, {0, 60, 161},      {0, 60, 151},
                                     {0, 60, -1},   {0, INT32_MIN, 5}, {0, 5, INT32_MAX}};
    for (int which = BUILD; which < CALLS; which++) {
        for (size_t n = 0; test_calls_wait() && n < sizeof bad / sizeof bad[0]; n++) {
            test_buffer lengths;
            test_buffer_new(&lengths, sizeof bad[n]);
            test_buffer_write(&lengths, 0, bad[n], sizeof bad[n]);
            c.in.cu_seqlens_q = (const int32_t *)(const void *)lengths.data;
            assert_call_fails(&c, (call)which, HPA_INVALID_ARGUMENT, "in.cu_seqlens_q|expected");
            c.in = good;
            if (n != 3 && n != 5) { /* those are no error for the keys */
                c.in.cu_seqlens_kv = (const int32_t *)(const void *)lengths.data;
                assert_call_fails(&c, (call)which, HPA_INVALID_ARGUMENT,
                                  "in.cu_seqlens_kv|expected");
            }
            c.in = good;
            test_buffer_free(&lengths);
        }
        c.in.cu_seqlens_q = NULL;
        assert_call_fails(&c, (call)which, HPA_INVALID_ARGUMENT, "in.cu_seqlens_q|NULL");
        c.in = good;
        c.in.cu_seqlens_kv = NULL;
        assert_call_fails(&c, (call)which, HPA_INVALID_ARGUMENT, "in.cu_seqlens_kv|NULL");
        c.in = good;
    }
    /* good lengths, but not those of the mask */
    static const int32_t other[] = {0, 61, 150};
    test_buffer lengths;
    test_buffer_new(&lengths, sizeof other);
    test_buffer_write(&lengths, 0, other, sizeof other);
    for (int which = FORWARD; test_calls_wait() && which < CALLS; which++) {
        c.in.cu_seqlens_q = (const int32_t *)(const void *)lengths.data;
        assert_call_fails(&c, (call)which, HPA_INVALID_MASK, "in.cu_seqlens_q");
        c.in = good;
        c.in.cu_seqlens_kv = (const int32_t *)(const void *)lengths.data;
        assert_call_fails(&c, (call)which, HPA_INVALID_MASK, "in.cu_seqlens_kv");
        c.in = good;
    }
    test_buffer_free(&lengths);
    calls_free(&c);
}
END_TEST

/* Tensors. Each in turn is spoiled in every way. */

typedef struct named_tensor {
    const char *name;
    hpa_tensor *tensor;
    int first_call; /* the calls from here on look at it... */
    int last_call;  /* ...to here */
    bool has_dim, output, optional;
} named_tensor;

enum { TENSORS = 10 };

static void list_tensors(calls *c, named_tensor list[TENSORS])
{
    const named_tensor all[TENSORS] = {
        {"in.q", &c->in.q, BUILD, BACKWARD, true, false, false},
        {"in.k", &c->in.k, BUILD, BACKWARD, true, false, false},
        {"in.v", &c->in.v, FORWARD, BACKWARD, true, false, false},
        {"out.out", &c->out.out, FORWARD, BACKWARD, true, true, false},
        {"out.lse", &c->out.lse, FORWARD, BACKWARD, false, true, false},
        {"grads.d_out", &c->gradients.d_out, BACKWARD, BACKWARD, true, false, false},
        {"grads.d_lse", &c->gradients.d_lse, BACKWARD, BACKWARD, false, false, true},
        {"grads.dq", &c->gradients.dq, BACKWARD, BACKWARD, true, true, true},
        {"grads.dk", &c->gradients.dk, BACKWARD, BACKWARD, true, true, true},
        {"grads.dv", &c->gradients.dv, BACKWARD, BACKWARD, true, true, true}};
    memcpy(list, all, sizeof all);
}

static void assert_tensor_refused(const calls *c, const named_tensor *t, hpa_status want,
                                  const char *part)
{
    char words[96];
    snprintf(words, sizeof words, "%s%s|expected", t->name, part);
    for (int which = t->first_call; which <= t->last_call; which++)
        assert_call_fails(c, (call)which, want, words);
}

static void check_bad_shapes(const calls *c, const named_tensor *t)
{
    const hpa_tensor good = *t->tensor;
    static const int32_t ranks[] = {0, 1, 5, -1, INT32_MAX};
    for (int n = 0; n < 5; n++) {
        t->tensor->ndim = ranks[n];
        assert_tensor_refused(c, t, HPA_INVALID_SHAPE, ".ndim");
    }
    *t->tensor = good;
    for (int32_t axis = 0; axis < good.ndim; axis++) {
        const int64_t sizes[] = {0, -1, good.shape[axis] - 1, good.shape[axis] + 1, INT64_MAX};
        for (int n = 0; n < 5; n++) {
            char part[32];
            snprintf(part, sizeof part, ".shape[%d]|%lld", axis, (long long)sizes[n]);
            t->tensor->shape[axis] = sizes[n];
            assert_tensor_refused(c, t, HPA_INVALID_SHAPE, part);
        }
        *t->tensor = good;
    }
}

static void check_bad_strides(const calls *c, const named_tensor *t)
{
    const hpa_tensor good = *t->tensor;
    for (int32_t axis = 0; axis < good.ndim; axis++) {
        char part[32];
        snprintf(part, sizeof part, ".stride[%d]", axis);
        static const int64_t strides[] = {-1, INT64_MIN, INT64_MAX};
        for (int n = 0; n < 3; n++) {
            t->tensor->stride[axis] = strides[n];
            assert_tensor_refused(c, t, HPA_INVALID_STRIDE, part);
        }
        *t->tensor = good;
    }
    if (!t->has_dim)
        return;
    static const int64_t dim_strides[] = {0, 2, 100};
    for (int n = 0; n < 3; n++) {
        t->tensor->stride[good.ndim - 1] = dim_strides[n];
        assert_tensor_refused(c, t, HPA_INVALID_STRIDE, ".stride");
    }
    *t->tensor = good;
}

static void check_bad_data(const calls *c, const named_tensor *t)
{
    const hpa_tensor good = *t->tensor;
    static const int dtypes[] = {0, HPA_F64, HPA_F16, HPA_BF16, HPA_I32, HPA_I64, 9, -1};
    for (int n = 0; n < 8; n++) {
        t->tensor->dtype = (hpa_dtype)dtypes[n];
        assert_tensor_refused(c, t, HPA_INVALID_DTYPE, ".dtype");
    }
    *t->tensor = good;
    if (!t->optional) {
        t->tensor->data = NULL;
        for (int which = t->first_call; which <= t->last_call; which++) {
            char words[64];
            snprintf(words, sizeof words, "%s.data|NULL", t->name);
            assert_call_fails(c, (call)which, HPA_INVALID_ARGUMENT, words);
        }
    }
    for (int shift = 1; shift < 4; shift++) {
        t->tensor->data = (char *)good.data + shift;
        assert_tensor_refused(c, t, HPA_INVALID_ALIGNMENT, ".data");
    }
    *t->tensor = good;
}

START_TEST(bad_tensors_are_named)
{
    calls c;
    calls_new(&c, _i);
    named_tensor list[TENSORS];
    list_tensors(&c, list);
    for (int n = 0; n < TENSORS; n++) {
        check_bad_shapes(&c, &list[n]);
        check_bad_strides(&c, &list[n]);
        check_bad_data(&c, &list[n]);
    }
    calls_free(&c);
}
END_TEST

/* Outputs that would write one place twice, or write what is read. */
START_TEST(overlaps_are_refused)
{
    calls c;
    calls_new(&c, _i);
    named_tensor list[TENSORS];
    list_tensors(&c, list);
    for (int n = 0; n < TENSORS; n++) {
        const hpa_tensor good = *list[n].tensor;
        const bool forward_only = n == 3 || n == 4; /* backward reads out and lse */
        for (int32_t axis = 0; list[n].output && axis < good.ndim - list[n].has_dim; axis++) {
            list[n].tensor->stride[axis] = 0;
            assert_call_fails(&c, forward_only ? FORWARD : BACKWARD, HPA_INVALID_STRIDE,
                              list[n].name);
            if (list[n].has_dim) {
                list[n].tensor->stride[axis] = good.shape[good.ndim - 1] - 1;
                assert_call_fails(&c, forward_only ? FORWARD : BACKWARD, HPA_INVALID_STRIDE,
                                  list[n].name);
            }
            *list[n].tensor = good;
        }
        for (int other = 0; other < TENSORS; other++) {
            const hpa_tensor *read = list[other].tensor;
            if (other == n || !list[n].output || (forward_only && other > 4))
                continue;
            char words[64];
            /* a larger view may reach past `other` into its neighbour, and be told of that instead */
            snprintf(words, sizeof words, "%s|overlap", list[n].name);
            list[n].tensor->data = read->data;
            assert_call_fails(&c, forward_only ? FORWARD : BACKWARD, HPA_INVALID_STRIDE, words);
            *list[n].tensor = good;
        }
    }
    calls_free(&c);
}
END_TEST

/* Inputs may be views of one place: stride 0 repeats a head or a sequence, and k may be v. */
START_TEST(inputs_may_overlap)
{
    calls c;
    calls_new(&c, false);
    c.in.v = c.in.k;
    c.in.k.stride[0] = c.in.k.stride[1] = 0;
    c.in.q.stride[1] = 0;
    c.gradients.d_out = c.out.out; /* read only, both */
    for (int which = BUILD; which < CALLS; which++)
        assert_ok(run(&c, (call)which));
    calls_free(&c);
}
END_TEST

/* Parts of one buffer may interleave as long as they do not overlap. */
START_TEST(outputs_may_interleave)
{
    hpa_desc desc = good_desc();
    desc.seq_q = desc.seq_kv;
    test_problem p;
    test_problem_new(&p, &desc, TEST_QKV, NULL, NULL);
    test_problem_fill(&p, 3, TEST_NORMAL);
    test_build(&p);
    test_forward(&p);
    test_backward(&p);
    const hpa_inputs in = test_inputs(&p);
    const hpa_outputs out = test_outputs(&p);
    hpa_gradients gradients = test_gradients(&p);
    test_buffer scratch;
    const hpa_exec exec = test_scratch_new(&scratch, p.sizes.backward_scratch, 0);
    /* one element too far */
    gradients.dk.data = (char *)gradients.dk.data + test_dtype_size(desc.dtype);
    assert_failure(hpa_backward(p.plan, p.mask.data, &in, &out, &gradients, &exec),
                   HPA_INVALID_STRIDE, "grads.dk|grads.dv|overlap");
    test_scratch_free(&scratch);
    test_problem_free(&p);
}
END_TEST

/* Mask and scratch */

START_TEST(misaligned_buffers_are_named)
{
    calls c;
    calls_new(&c, _i);
    const calls good = c;
    for (int shift = 1; shift < 16; shift++) {
        for (int which = BUILD; which < CALLS; which++) {
            c.mask = (char *)good.mask + shift;
            assert_call_fails(&c, (call)which, HPA_INVALID_ALIGNMENT, "mask|16");
            c.mask = good.mask;
        }
    }
    calls_free(&c);
}
END_TEST

static size_t scratch_of(const calls *c, call which)
{
    const hpa_sizes *s = &c->p.sizes;
    return which == BUILD     ? s->mask_scratch
           : which == FORWARD ? s->forward_scratch
                              : s->backward_scratch;
}

START_TEST(too_little_scratch_is_refused)
{
    calls c;
    calls_new(&c, _i);
    const hpa_exec good = c.exec;
    for (int which = BUILD; which < CALLS; which++) {
        const size_t needed = scratch_of(&c, (call)which);
        if (needed == 0)
            continue;
        char words[128];
        snprintf(words, sizeof words, "exec.scratch_bytes|%zu|%zu|expected", needed - 1, needed);
        c.exec.scratch_bytes = needed - 1;
        assert_call_fails(&c, (call)which, HPA_BUFFER_TOO_SMALL, words);
        c.exec.scratch_bytes = 0;
        assert_call_fails(&c, (call)which, HPA_BUFFER_TOO_SMALL, "exec.scratch_bytes|expected");
        c.exec = (hpa_exec){.scratch_bytes = needed};
        assert_call_fails(&c, (call)which, HPA_INVALID_ARGUMENT, "exec.scratch|NULL");
        c.exec = good;
        c.exec.scratch = (char *)good.scratch + 8;
        assert_call_fails(&c, (call)which, HPA_INVALID_ALIGNMENT, "exec.scratch|16");
        c.exec = good;
        c.exec.scratch_bytes = needed;
        assert_ok(run(&c, (call)which));
        c.exec = good;
    }
    if (scratch_of(&c, FORWARD) > 0)
        assert_failure(hpa_forward(c.plan, c.mask, &c.in, &c.out, NULL), HPA_BUFFER_TOO_SMALL,
                       "scratch");
    calls_free(&c);
}
END_TEST

START_TEST(masks_of_other_plans_are_refused)
{
    calls c;
    calls_new(&c, _i);
    for (int n = 0; n < 9; n++) {
        hpa_desc desc = c.p.desc;
        desc.seq_kv += n == 0;
        desc.block_q = n == 1 ? 16 : desc.block_q;
        desc.block_k = n == 2 ? 32 : desc.block_k;
        desc.heads_q = n == 3 ? 2 : desc.heads_q;
        desc.causal = n == 4 ? !desc.causal : desc.causal;
        desc.training = n == 5 ? !desc.training : desc.training;
        desc.share_heads = n == 6;
        desc.seq_q += n == 7;
        desc.top_k = n == 8 ? 16 : desc.top_k;
        desc.window = n == 8 ? 0 : desc.window;
        desc.sink = n == 8 ? 0 : desc.sink;
        if (n == 5)
            desc.training = false;
        calls other;
        test_problem p;
        test_problem_new(&p, &desc, TEST_BHSD, desc.packed ? cu_q : NULL,
                         desc.packed ? cu_kv : NULL);
        test_problem_fill(&p, 2, TEST_NORMAL);
        test_build(&p);
        other = c;
        other.mask = p.mask.data;
        for (int which = FORWARD; test_calls_wait() && which < CALLS; which++)
            assert_call_fails(&other, (call)which, HPA_INVALID_MASK, "mask");
        assert_failure(hpa_mask_validate(c.plan, p.mask.data, &c.exec), HPA_INVALID_MASK, "mask");
        test_problem_free(&p);
    }
    calls_free(&c);
}
END_TEST

START_TEST(backward_needs_a_training_plan)
{
    calls c;
    calls_new(&c, _i);
    hpa_desc desc = c.p.desc;
    desc.training = false;
    test_problem p;
    test_problem_copy(&p, &c.p, &desc, TEST_BHSD);
    test_build(&p);
    test_forward(&p);
    const hpa_inputs in = test_inputs(&p);
    const hpa_outputs out = test_outputs(&p);
    const hpa_gradients gradients = test_gradients(&p);
    assert_failure(hpa_backward(p.plan, p.mask.data, &in, &out, &gradients, &c.exec),
                   HPA_INVALID_ARGUMENT, "training|expected");
    test_problem_free(&p);
    calls_free(&c);
}
END_TEST

/* Every field of the structures that no call reads may hold anything. */
START_TEST(what_is_not_read_is_ignored)
{
    calls c;
    calls_new(&c, false);
    c.in.cu_seqlens_q = c.in.cu_seqlens_kv = (const int32_t *)(uintptr_t)3;
    if (!test_stream())
        c.exec.stream = (void *)(uintptr_t)5;
    const hpa_tensor v = c.in.v;
    memset(&c.in.v, 0x7f, sizeof c.in.v);
    assert_ok(run(&c, BUILD));
    c.in.v = v;
    assert_ok(run(&c, FORWARD));
    memset(&c.gradients.dk, 0x7f, sizeof c.gradients.dk);
    c.gradients.dk.data = NULL;
    assert_ok(run(&c, BACKWARD));
    calls_free(&c);
}
END_TEST

/* The largest heads of the largest batch that still fits in memory here, and tensors of no elements,
 * whose data may be NULL. */
START_TEST(tensors_without_elements_need_no_memory)
{
    hpa_desc desc = good_desc();
    desc.seq_q = 0;
    desc.seq_kv = _i ? 0 : 50;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 2, TEST_NORMAL);
    p.q.view.data = p.out.view.data = p.lse.view.data = p.d_out.view.data = NULL;
    test_build(&p);
    test_forward(&p);
    test_backward(&p);
    double *dk = test_read(&p.dk);
    for (int64_t n = 0; n < test_count(&p.dk); n++)
        ck_assert(dk[n] == 0);
    free(dk);
    test_problem_free(&p);
}
END_TEST

static Suite *contract_suite(void)
{
    Suite *suite = suite_create("contract");
    TCase *t = test_add_case(suite, "words", 20);
    tcase_add_test(t, statuses_have_names_and_sentences);
    tcase_add_test(t, the_library_says_what_it_is);
    tcase_add_test(t, no_failure_no_words);
    t = test_add_case(suite, "description", 20);
    tcase_add_test(t, the_defaults_are_those_of_the_header);
    tcase_add_test(t, presets_set_the_search_and_nothing_else);
    tcase_add_test(t, presets_serve_every_dtype);
    tcase_add_test(t, bad_presets_are_refused);
    tcase_add_test(t, bad_fields_are_named);
    tcase_add_test(t, bad_scales_and_totals_are_named);
    tcase_add_test(t, extreme_fields_are_served_or_refused);
    tcase_add_test(t, cuda_is_refused_where_there_is_none);
    t = test_add_case(suite, "plan", 20);
    tcase_add_test(t, plans_say_their_sizes);
    tcase_add_test(t, masks_grow_with_the_length);
    tcase_add_test(t, plans_describe_themselves);
    tcase_add_test(t, plans_describe_shared_levels);
    t = test_add_case(suite, "calls", 20);
    tcase_add_loop_test(t, good_calls_succeed, 0, 2);
    tcase_add_loop_test(t, null_structures_are_named, 0, 2);
    tcase_add_test(t, lengths_of_a_pack_are_checked);
    tcase_add_loop_test(t, bad_tensors_are_named, 0, 2);
    tcase_add_loop_test(t, overlaps_are_refused, 0, 2);
    tcase_add_test(t, inputs_may_overlap);
    tcase_add_test(t, outputs_may_interleave);
    tcase_add_loop_test(t, misaligned_buffers_are_named, 0, 2);
    tcase_add_loop_test(t, too_little_scratch_is_refused, 0, 2);
    tcase_add_loop_test(t, masks_of_other_plans_are_refused, 0, 2);
    tcase_add_loop_test(t, backward_needs_a_training_plan, 0, 2);
    tcase_add_test(t, what_is_not_read_is_ignored);
    tcase_add_loop_test(t, tensors_without_elements_need_no_memory, 0, 2);
    return suite;
}

int main(void)
{
    return test_run(contract_suite());
}
