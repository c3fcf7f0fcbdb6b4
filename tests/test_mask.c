/* hpa_mask_build: what every mask must hold, and that it is the mask of the algorithm. */
#include "cases.h"
#include "search.h"

#include <inttypes.h>
#include <stdio.h>

/* What must hold of any mask, whatever the search found */

static void check_row_order(const test_row *row, const int32_t *blocks, int64_t length)
{
    for (int64_t n = 0; n < length; n++) {
        assert_that(blocks[n] >= 0 && blocks[n] < row->key_blocks, "block %d of %" PRId64,
                    blocks[n], row->key_blocks);
        assert_that(row->visible[blocks[n]], "block %d is kept, though no query sees it",
                    blocks[n]);
        assert_that(n == 0 || blocks[n] > blocks[n - 1], "block %d follows block %d", blocks[n],
                    n > 0 ? blocks[n - 1] : -1);
    }
}

static void check_row_sets(const test_problem *p, const test_row *row, const bool *kept)
{
    int64_t tree_blocks = 0;
    for (int64_t block = 0; block < row->key_blocks; block++) {
        const bool always = row->sink[block] || row->window[block];
        assert_that(!always || kept[block], "block %" PRId64 " of sink or window is not kept",
                    block);
        tree_blocks += kept[block] && !always;
    }
    const int64_t M = test_tree_blocks(&p->desc);
    ck_assert_int_eq(tree_blocks, row->candidate_count < M ? row->candidate_count : M);
}

/* With causality every query that stands at a key sees that key. */
static void check_diagonal(const test_problem *p, const test_row *row, const bool *kept)
{
    const int64_t shift = test_kv_length(p, row->batch) - test_q_length(p, row->batch);
    for (int64_t i = row->first; p->desc.causal && i <= row->last; i++)
        if (i + shift >= 0)
            assert_that(kept[(i + shift) / p->desc.block_k], "query %" PRId64 " misses its own key",
                        i);
}

static void check_properties(const test_problem *p, const test_csr *csr)
{
    for (int64_t r = 0; r < csr->rows; r++) {
        test_row row = test_row_at(p, r);
        const int32_t *blocks = csr->blocks + csr->row_ptr[r];
        const int64_t length = csr->row_ptr[r + 1] - csr->row_ptr[r];
        check_row_order(&row, blocks, length);
        bool *kept = calloc((size_t)row.key_blocks + 1, sizeof *kept);
        for (int64_t n = 0; n < length; n++)
            kept[blocks[n]] = true;
        check_row_sets(p, &row, kept);
        check_diagonal(p, &row, kept);
        free(kept);
        test_row_free(&row);
    }
}

static void assert_valid(const test_problem *p)
{
    test_buffer scratch;
    const hpa_exec exec = test_scratch_new(&scratch, p->sizes.mask_scratch, 0xff);
    assert_ok(hpa_mask_validate(p->plan, p->mask.data, &exec));
    test_scratch_free(&scratch);
}

START_TEST(properties_hold)
{
    const test_case c = test_case_at(_i);
    for (int n = 0; n < test_dtype_count(_i); n++) {
        test_problem p;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_NORMAL);
        test_build(&p);
        assert_valid(&p);
        test_csr csr = test_export(&p);
        check_properties(&p, &csr);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* The mask itself */

static void assert_expected_mask(const char *name, test_problem *p)
{
    test_build(p);
    assert_valid(p);
    double *q = test_read(&p->q), *k = test_read(&p->k);
    test_csr got = test_export(p), want = test_expected_mask(p, q, k);
    assert_csr_equal(name, &got, &want);
    test_csr_free(&got);
    test_csr_free(&want);
    free(q);
    free(k);
}

/* Integers are exact in every dtype, so every dtype gives one mask. */
START_TEST(integers_give_the_mask_of_the_algorithm)
{
    const test_case c = test_case_at(_i);
    uint64_t fingerprint = 0;
    for (int n = 0; n < test_dtype_count(_i); n++) {
        test_problem p;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_INTEGERS);
        assert_expected_mask(c.name, &p);
        const hpa_mask_stats stats = test_statistics(&p);
        if (n > 0)
            ck_assert_uint_eq(stats.fingerprint, fingerprint);
        fingerprint = stats.fingerprint;
        test_problem_free(&p);
    }
}
END_TEST

START_TEST(random_problems_give_the_mask_of_the_algorithm)
{
    test_random random = {(uint64_t)_i};
    for (int n = 0; n < 10; n++) {
        hpa_desc desc = test_random_desc(&random, 500);
        desc.dtype = test_dtypes[n % 4];
        test_problem p;
        test_problem_new(&p, &desc, (test_layout)(n % TEST_LAYOUTS), NULL, NULL);
        test_problem_fill(&p, test_random_bits(&random), TEST_INTEGERS);
        char name[64];
        snprintf(name, sizeof name, "random problem %d of %d", n, _i);
        assert_expected_mask(name, &p);
        test_problem_free(&p);
    }
}
END_TEST

static hpa_desc search_desc(int64_t length, int32_t top_k)
{
    hpa_desc d = test_desc();
    d.heads_q = 2;
    d.head_dim = 16;
    d.seq_q = d.seq_kv = length;
    d.block_q = 32;
    d.block_k = 16;
    d.top_k = top_k;
    d.sink = 16;
    d.window = 32;
    return d;
}

/* As search_desc, with whole blocks of 128 queries of one head and a power of two of keys for each
 * node, for which Hopper's kernels have a way of their own. To be laid out without gaps. */
static hpa_desc wide_search_desc(int64_t length, int32_t top_k)
{
    hpa_desc d = search_desc(length, top_k);
    d.head_dim = length % 2 ? 64 : 128;
    d.block_q = 128;
    d.rep_tokens = 4;
    d.leaf_tokens = 8;
    return d;
}

static int64_t rows_that_share(const test_problem *p)
{
    test_csr csr = test_export(p);
    int64_t sharing = 0;
    for (int64_t r = 0; r < csr.rows; r++)
        sharing += test_shared_levels(p, r) > 0;
    test_csr_free(&csr);
    return sharing;
}

START_TEST(random_spans_give_the_mask_of_the_algorithm)
{
    test_random random = {(uint64_t)_i + 500};
    int sharing = 0;
    for (int n = 0; n < 4; n++) {
        hpa_desc desc = test_random_span_desc(&random, 1000);
        desc.dtype = test_dtypes[n];
        test_problem p;
        test_problem_new(&p, &desc, (test_layout)n, NULL, NULL);
        test_problem_fill(&p, test_random_bits(&random), TEST_INTEGERS);
        char name[64];
        snprintf(name, sizeof name, "random span %d of %d", n, _i);
        assert_expected_mask(name, &p);
        sharing += rows_that_share(&p) > 0;
        test_problem_free(&p);
    }
    ck_assert_int_ge(sharing, 1);
}
END_TEST

/* The cases that are about spans, and only they, are what their names say. */
START_TEST(the_cases_share_levels_or_not_as_they_say)
{
    int shared = 0, not_shared = 0;
    for (int n = 0; n < test_case_count(); n++) {
        const test_case c = test_case_at(n);
        if (!strstr(c.name, "span"))
            continue;
        test_problem p;
        test_problem_of_case(&p, &c, HPA_F32, TEST_NORMAL);
        test_build(&p);
        const bool shares = !strstr(c.name, "no span");
        assert_that((rows_that_share(&p) > 0) == shares, "%s: %" PRId64 " rows share levels",
                    c.name, rows_that_share(&p));
        hpa_desc desc = p.desc;
        desc.search_span = 1;
        test_problem each;
        test_problem_copy(&each, &p, &desc, p.layout);
        test_build(&each);
        const bool alike = test_statistics(&each).fingerprint == test_statistics(&p).fingerprint;
        assert_that(alike == !shares, "%s: the mask is %s that of rows that search for themselves",
                    c.name, alike ? "just" : "not");
        (*(shares ? &shared : &not_shared))++;
        test_problem_free(&each);
        test_problem_free(&p);
    }
    ck_assert_int_ge(shared, 9);
    ck_assert_int_ge(not_shared, 3);
}
END_TEST

START_TEST(a_long_sequence_gives_the_mask_of_the_algorithm)
{
    hpa_desc desc = test_desc();
    desc.seq_q = desc.seq_kv = 5000;
    desc.top_k = 256;
    desc.query_stride = 16;
    desc.head_dim = 32;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BSHD, NULL, NULL);
    test_problem_fill(&p, 5, TEST_INTEGERS);
    assert_expected_mask("5000 tokens", &p);
    test_problem_free(&p);
}
END_TEST

/* On general inputs, too, the fast path and the plain loops nearly always agree: they may differ
 * only where two scores are closer than rounding. In f64 that does not happen by chance. */
START_TEST(normal_values_give_the_mask_of_the_algorithm)
{
    const test_case c = test_case_at(_i);
    test_problem p;
    test_problem_of_case(&p, &c, HPA_F64, TEST_NORMAL);
    assert_expected_mask(c.name, &p);
    test_problem_free(&p);
}
END_TEST

START_TEST(equals_the_reference_index_by_index)
{
    const test_case c = test_case_at(_i);
    for (int n = 0; n < test_dtype_count(_i); n++) {
        test_problem p, reference;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_INTEGERS);
        const hpa_desc desc = test_reference_desc(&p.desc);
        test_problem_copy(&reference, &p, &desc, TEST_BHSD);
        test_build(&p);
        test_build(&reference);
        test_csr got = test_export(&p), want = test_export(&reference);
        assert_csr_equal(c.name, &got, &want);
        ck_assert_uint_eq(test_statistics(&p).fingerprint, test_statistics(&reference).fingerprint);
        test_csr_free(&got);
        test_csr_free(&want);
        test_problem_free(&p);
        test_problem_free(&reference);
    }
}
END_TEST

/* Special cases of the algorithm that can be said without it */

START_TEST(top_k_of_the_whole_sequence_keeps_all_that_is_visible)
{
    for (int causal = 0; causal < 2; causal++) {
        hpa_desc desc = search_desc(300, 300);
        desc.causal = causal;
        test_problem p;
        test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
        test_problem_fill(&p, 3, TEST_NORMAL);
        test_build(&p);
        test_csr csr = test_export(&p);
        for (int64_t r = 0; r < csr.rows; r++) {
            test_row row = test_row_at(&p, r);
            int64_t visible = 0;
            for (int64_t block = 0; block < row.key_blocks; block++)
                visible += row.visible[block];
            ck_assert_int_eq(csr.row_ptr[r + 1] - csr.row_ptr[r], visible);
            test_row_free(&row);
        }
        ck_assert(test_statistics(&p).density == 1);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* Candidates ahead of this one: higher maximum, or the same and a lower index. */
static int64_t place_of(const double *block_scores, const test_row *row, int64_t candidate)
{
    const double own = block_scores[row->candidates[candidate]];
    int64_t ahead = 0;
    for (int64_t other = 0; other < row->candidate_count; other++) {
        const double score = block_scores[row->candidates[other]];
        ahead += score > own || (score == own && other < candidate);
    }
    return ahead;
}

static void check_best_blocks(const test_problem *p, const test_csr *csr, int64_t r,
                              const double *q, const double *k)
{
    test_row row = test_row_at(p, r);
    const int64_t keys = test_kv_length(p, row.batch);
    double *block_scores = test_allocate(row.key_blocks, sizeof *block_scores);
    bool *kept = calloc((size_t)row.key_blocks + 1, sizeof *kept);
    for (int64_t block = 0; block < row.key_blocks; block++)
        block_scores[block] = -(double)INFINITY;
    for (int64_t key = 0; key < keys; key++) {
        double *score = &block_scores[key / p->desc.block_k];
        *score = fmax(*score, test_token_score(p, &row, q, k, key));
    }
    for (int64_t n = csr->row_ptr[r]; n < csr->row_ptr[r + 1]; n++)
        kept[csr->blocks[n]] = true;
    for (int64_t n = 0; n < row.candidate_count; n++)
        assert_that(kept[row.candidates[n]] ==
                        (place_of(block_scores, &row, n) < test_tree_blocks(&p->desc)),
                    "row %" PRId64 ": candidate block %" PRId64 ", number %" PRId64
                    " by score, is %s",
                    r, row.candidates[n], place_of(block_scores, &row, n),
                    kept[row.candidates[n]] ? "kept" : "not kept");
    free(block_scores);
    free(kept);
    test_row_free(&row);
}

/* With every token a representative the tree is an exact search, whatever the beam. */
START_TEST(scoring_every_token_keeps_the_blocks_of_highest_maximum)
{
    test_random random = {(uint64_t)_i + 100};
    hpa_desc desc = test_random_desc(&random, 400);
    desc.beam = 1 + _i % 3;
    desc.rep_tokens = desc.leaf_tokens = 400 + _i;
    desc.search_span = 1; /* another block's queries may overlook what this one's would find */
    const bool integers = _i % 2;
    desc.dtype = integers ? HPA_F32 : HPA_F64;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, (uint64_t)_i, integers ? TEST_INTEGERS : TEST_NORMAL);
    test_build(&p);
    double *q = test_read(&p.q), *k = test_read(&p.k);
    test_csr csr = test_export(&p);
    for (int64_t r = 0; r < csr.rows; r++)
        check_best_blocks(&p, &csr, r, q, k);
    test_csr_free(&csr);
    free(q);
    free(k);
    test_problem_free(&p);
}
END_TEST

static bool csr_keeps(const test_csr *csr, int64_t r, int64_t block)
{
    for (int64_t n = csr->row_ptr[r]; n < csr->row_ptr[r + 1]; n++)
        if (csr->blocks[n] == block)
            return true;
    return false;
}

/* Key `token` of head 0 becomes the one that every query of head 0 likes best. */
static void plant(test_problem *p, int64_t token)
{
    test_problem_fill(p, 11, TEST_NORMAL);
    double *q = test_read(&p->q), *k = test_read(&p->k);
    for (int64_t i = 0; i < p->desc.seq_q; i++)
        q[p->desc.head_dim * test_q_row(p, 0, 0, i)] = 2;
    k[p->desc.head_dim * test_kv_row(p, 0, 0, token)] = 1000;
    test_write(&p->q, q);
    test_write(&p->k, k);
    free(q);
    free(k);
}

START_TEST(a_planted_key_is_found)
{
    hpa_desc desc = search_desc(700, 32);
    desc.heads_q = 1;
    desc.beam = 1 + _i % 2;
    desc.rep_tokens = 1 + _i / 2;
    desc.leaf_tokens = 3 * (1 + _i / 2);
    desc.search_span = 1;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    const int64_t rows = (desc.seq_q + desc.block_q - 1) / desc.block_q;
    int64_t planted = 0;
    for (int64_t token = 0; token < desc.seq_kv; token++) {
        bool *found = calloc((size_t)rows, sizeof *found);
        bool any = false;
        for (int64_t r = 0; r < rows; r++) {
            test_row row = test_row_at(&p, r);
            any |= found[r] = test_always_representative(&p, &row, token);
            test_row_free(&row);
        }
        if (any) {
            plant(&p, token);
            test_build(&p);
            test_csr csr = test_export(&p);
            for (int64_t r = 0; r < rows; r++)
                assert_that(!found[r] || csr_keeps(&csr, r, token / desc.block_k),
                            "row %" PRId64 " missed the key planted at %" PRId64, r, token);
            test_csr_free(&csr);
            planted++;
        }
        free(found);
    }
    ck_assert_int_ge(planted, 5);
    test_problem_free(&p);
}
END_TEST

/* Equal scores are ordered by index: all alike, the lowest candidates win. Zeros of either sign are
 * equal. NaN scores are all -inf. */
static void fill_alike(test_problem *p, int kind)
{
    const int64_t q_count = test_count(&p->q), k_count = test_count(&p->k);
    double *q = test_allocate(q_count, sizeof *q), *k = test_allocate(k_count, sizeof *k);
    const double key_values[] = {1, 0, (double)NAN, -(double)INFINITY, (double)INFINITY};
    for (int64_t n = 0; n < q_count; n++)
        q[n] = kind == 1 && n % 3 == 0 ? -1 : 1;
    for (int64_t n = 0; n < k_count; n++)
        k[n] = kind == 1 && n % 5 < 2 ? -0.0 : key_values[kind];
    test_write(&p->q, q);
    test_write(&p->k, k);
    free(q);
    free(k);
}

START_TEST(equal_scores_keep_the_lowest_blocks)
{
    for (int n = 0; n < 4; n++)
        for (int length = 290; length < 600; length += 77) {
            hpa_desc desc = search_desc(length, 48);
            desc.dtype = test_dtypes[n];
            test_problem p;
            test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
            fill_alike(&p, _i);
            test_build(&p);
            assert_valid(&p);
            test_csr csr = test_export(&p);
            for (int64_t r = 0; r < csr.rows; r++) {
                test_row row = test_row_at(&p, r);
                for (int64_t c = 0; c < row.candidate_count; c++)
                    assert_that(csr_keeps(&csr, r, row.candidates[c]) ==
                                    (c < test_tree_blocks(&desc)),
                                "row %" PRId64 ": candidate %" PRId64 " of %" PRId64, r, c,
                                row.candidate_count);
                test_row_free(&row);
            }
            test_csr_free(&csr);
            test_problem_free(&p);
        }
}
END_TEST

/* Sets the sign of every value, none of which stays 0. */
static void give_sign(const test_tensor *t, double sign)
{
    double *values = test_read(t);
    for (int64_t n = 0; n < test_count(t); n++)
        values[n] = sign * (1 + fabs(values[n]));
    test_write(t, values);
    free(values);
}

/* Where every score is below zero, a 0 that stands for no query and no key would win. */
START_TEST(scores_below_zero_are_ranked)
{
    for (int n = 0; n < 4; n++) {
        const bool wide = _i % 3 == 0;
        hpa_desc desc = wide ? wide_search_desc(400 + 9 * _i, 48) : search_desc(400 + _i, 48);
        desc.dtype = test_dtypes[n];
        if (!wide) {
            desc.query_stride = 1 + _i % 5;
            desc.share_heads = _i % 2;
        }
        test_problem p;
        test_problem_new(&p, &desc, wide ? TEST_BHSD : TEST_PADDED, NULL, NULL);
        test_problem_fill(&p, (uint64_t)_i, TEST_INTEGERS);
        give_sign(&p.q, 1);
        give_sign(&p.k, -1);
        assert_expected_mask("below zero", &p);
        test_problem_free(&p);
    }
}
END_TEST

/* Non-finite q and k: no crash, and the same order with NaN as -inf. */
static void spoil(const test_tensor *t, test_random *random, int64_t every)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    const int64_t count = test_count(t);
    double *values = test_read(t);
    for (int64_t n = 0; n < count; n++)
        if (test_random_integer(random, 0, every - 1) == 0)
            values[n] = (double)bad[test_random_integer(random, 0, 2)];
    test_write(t, values);
    free(values);
}

START_TEST(non_finite_scores_count_as_the_lowest)
{
    test_random random = {(uint64_t)_i + 1};
    for (int n = 0; n < 4; n++) {
        const bool wide = _i % 4 == 1;
        hpa_desc desc = wide ? wide_search_desc(700 + _i, 48) : search_desc(400, 48);
        desc.dtype = test_dtypes[n];
        desc.share_heads = !wide && _i % 2;
        desc.causal = wide || _i % 3 != 0;
        test_problem p;
        test_problem_new(&p, &desc, wide ? TEST_BHSD : TEST_PADDED, NULL, NULL);
        test_problem_fill(&p, (uint64_t)_i, TEST_INTEGERS);
        const int64_t every = _i < 4 ? 300 : _i < 8 ? 20 : 1;
        spoil(&p.k, &random, every);
        if (_i % 4 > 0)
            spoil(&p.q, &random, 8 * every);
        assert_expected_mask("non-finite", &p);
        test_problem_free(&p);
    }
}
END_TEST

/* Independence: of repetition, threads, layout, garbage, v, packing, unsampled queries */

static test_csr built(test_problem *p)
{
    test_build(p);
    return test_export(p);
}

START_TEST(a_hundred_builds_are_identical)
{
    hpa_desc desc = search_desc(500, 64);
    desc.dtype = test_dtypes[_i];
    test_problem p;
    test_problem_new(&p, &desc, TEST_BSHD, NULL, NULL);
    test_problem_fill(&p, 8, TEST_NORMAL);
    test_csr first = built(&p);
    test_buffer_fill(&p.mask, 0);
    test_build(&p);
    const uint64_t bytes = test_buffer_hash(&p.mask);
    for (int n = 0; n < 100; n++) {
        test_buffer_fill(&p.mask, n);
        p.scratch_fill = n;
        test_csr again = built(&p);
        assert_csr_equal("built again", &again, &first);
        test_csr_free(&again);
        test_buffer_fill(&p.mask, 0);
        test_build(&p);
        ck_assert_uint_eq(test_buffer_hash(&p.mask), bytes);
    }
    test_csr_free(&first);
    test_problem_free(&p);
}
END_TEST

START_TEST(threads_do_not_matter)
{
    const test_case c = test_few_case_at(_i);
    test_problem p;
    test_problem_of_case(&p, &c, HPA_F32, TEST_NORMAL);
    test_csr want = built(&p);
    for (int32_t threads = 1; threads <= 3; threads++) {
        hpa_desc desc = p.desc;
        desc.num_threads = threads;
        test_problem other;
        test_problem_copy(&other, &p, &desc, p.layout);
        test_csr got = built(&other);
        assert_csr_equal(c.name, &got, &want);
        test_csr_free(&got);
        test_problem_free(&other);
    }
    test_csr_free(&want);
    test_problem_free(&p);
}
END_TEST

START_TEST(layout_does_not_matter)
{
    const test_case c = test_few_case_at(_i);
    test_problem p;
    test_problem_of_case(&p, &c, HPA_F32, TEST_NORMAL);
    test_csr want = built(&p);
    for (int layout = 0; layout < TEST_LAYOUTS; layout++) {
        test_problem other;
        test_problem_copy(&other, &p, &p.desc, (test_layout)layout);
        test_csr got = built(&other);
        assert_csr_equal(c.name, &got, &want);
        test_csr_free(&got);
        test_problem_free(&other);
    }
    test_csr_free(&want);
    test_problem_free(&p);
}
END_TEST

START_TEST(v_is_not_read)
{
    hpa_desc desc = search_desc(300, 48);
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 4, TEST_NORMAL);
    test_csr want = built(&p);
    p.v.view = (hpa_tensor){0};
    test_csr got = built(&p);
    assert_csr_equal("without v", &got, &want);
    test_csr_free(&got);
    test_csr_free(&want);
    test_problem_free(&p);
}
END_TEST

/* Rows of sequence b of a packed mask, as a mask of its own. */
static test_csr rows_of_sequence(const test_problem *p, const test_csr *csr, int64_t b)
{
    test_csr part = {0};
    int64_t first = 0;
    for (int64_t s = 0; s <= b; s++) {
        first += part.rows;
        part.rows =
            test_mask_heads(p) * ((test_q_length(p, s) + p->desc.block_q - 1) / p->desc.block_q);
    }
    const int64_t begin = csr->row_ptr[first];
    const int64_t count = csr->row_ptr[first + part.rows] - begin;
    part.row_ptr = test_allocate(part.rows + 1, sizeof *part.row_ptr);
    part.blocks = test_allocate(count, sizeof *part.blocks);
    for (int64_t r = 0; r <= part.rows; r++)
        part.row_ptr[r] = csr->row_ptr[first + r] - begin;
    for (int64_t n = 0; n < count; n++)
        part.blocks[n] = csr->blocks[begin + n];
    return part;
}

static void copy_rows(const test_problem *to, const test_tensor *to_tensor,
                      const test_problem *from, const test_tensor *from_tensor, int64_t b)
{
    const bool queries = to_tensor == &to->q;
    const int64_t heads = queries ? from->desc.heads_q : from->desc.heads_kv;
    const int64_t length = queries ? test_q_length(from, b) : test_kv_length(from, b);
    const int64_t D = from->desc.head_dim;
    double *read = test_read(from_tensor);
    double *written = test_allocate(test_count(to_tensor), sizeof *written);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < length; i++) {
            const int64_t source = queries ? test_q_row(from, b, h, i) : test_kv_row(from, b, h, i);
            const int64_t target = queries ? test_q_row(to, 0, h, i) : test_kv_row(to, 0, h, i);
            memcpy(written + target * D, read + source * D, (size_t)D * sizeof *read);
        }
    test_write(to_tensor, written);
    free(read);
    free(written);
}

START_TEST(a_packed_sequence_is_masked_as_if_alone)
{
    static const int32_t cu_q[] = {0, 100, 100, 333, 334, 400};
    static const int32_t cu_kv[] = {0, 150, 160, 393, 700, 733};
    hpa_desc desc = search_desc(320, 48);
    desc.heads_q = 4;
    desc.heads_kv = 2;
    desc.batch = 5;
    desc.packed = true;
    desc.total_q = 430;
    desc.total_kv = 750;
    desc.share_heads = _i;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BSHD, cu_q, cu_kv);
    test_problem_fill(&p, 21, TEST_NORMAL);
    test_csr all = built(&p);
    for (int64_t b = 0; b < desc.batch; b++) {
        hpa_desc alone_desc = desc;
        alone_desc.packed = false;
        alone_desc.batch = 1;
        alone_desc.seq_q = test_q_length(&p, b);
        alone_desc.seq_kv = test_kv_length(&p, b);
        test_problem alone;
        test_problem_new(&alone, &alone_desc, TEST_BHSD, NULL, NULL);
        copy_rows(&alone, &alone.q, &p, &p.q, b);
        copy_rows(&alone, &alone.k, &p, &p.k, b);
        test_csr want = built(&alone), got = rows_of_sequence(&p, &all, b);
        assert_csr_equal("one of the pack", &got, &want);
        test_csr_free(&want);
        test_csr_free(&got);
        test_problem_free(&alone);
    }
    test_csr_free(&all);
    test_problem_free(&p);
}
END_TEST

START_TEST(queries_that_the_stride_skips_do_not_matter)
{
    hpa_desc desc = search_desc(500, 48);
    desc.query_stride = 5;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 6, TEST_NORMAL);
    test_csr want = built(&p);
    double *q = test_read(&p.q);
    for (int64_t h = 0; h < desc.heads_q; h++)
        for (int64_t i = 0; i < desc.seq_q; i++)
            if (i % desc.block_q % desc.query_stride != 0)
                for (int64_t d = 0; d < desc.head_dim; d++)
                    q[desc.head_dim * test_q_row(&p, 0, h, i) + d] *= -50;
    test_write(&p.q, q);
    test_csr got = built(&p);
    assert_csr_equal("other queries between", &got, &want);
    desc.query_stride = 1;
    test_problem all;
    test_problem_copy(&all, &p, &desc, TEST_BHSD);
    test_csr every = built(&all);
    ck_assert_uint_ne(test_statistics(&all).fingerprint, test_statistics(&p).fingerprint);
    test_csr_free(&every);
    test_csr_free(&got);
    test_csr_free(&want);
    free(q);
    test_problem_free(&all);
    test_problem_free(&p);
}
END_TEST

/* Queries and keys of tokens from `begin` on become others. */
static void spoil_from(const test_problem *p, const test_tensor *t, int64_t begin)
{
    const bool queries = t == &p->q;
    const int64_t heads = queries ? p->desc.heads_q : p->desc.heads_kv, D = p->desc.head_dim;
    double *values = test_read(t);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = begin; i < p->desc.seq_q; i++)
            for (int64_t d = 0; d < D; d++)
                values[D * (queries ? test_q_row(p, 0, h, i) : test_kv_row(p, 0, h, i)) + d] *=
                    d % 2 ? -7 : 20;
    test_write(t, values);
    free(values);
}

static bool rows_equal(const test_csr *a, const test_csr *b, int64_t r)
{
    const int64_t length = a->row_ptr[r + 1] - a->row_ptr[r];
    return length == b->row_ptr[r + 1] - b->row_ptr[r] &&
           !memcmp(a->blocks + a->row_ptr[r], b->blocks + b->row_ptr[r],
                   (size_t)length * sizeof *a->blocks);
}

static hpa_desc span_desc(int64_t length, int32_t span)
{
    hpa_desc d = search_desc(length, 32);
    d.heads_q = 1;
    d.search_span = span;
    return d;
}

/* What comes later in the sequence chooses for nobody before it, in one span or not. */
START_TEST(a_row_does_not_depend_on_later_tokens)
{
    const hpa_desc desc = span_desc(900, _i % 2 ? 8 : 1);
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 31, TEST_NORMAL);
    test_csr before = built(&p);
    ck_assert_int_eq(rows_that_share(&p) > 0, _i % 2);
    const int64_t first_changed = before.rows - 1 - _i / 2;
    spoil_from(&p, &p.q, first_changed * desc.block_q);
    spoil_from(&p, &p.k, first_changed * desc.block_q);
    test_csr after = built(&p);
    int64_t changed = 0;
    for (int64_t r = 0; r < before.rows; r++) {
        const bool equal = rows_equal(&before, &after, r);
        assert_that(equal || r >= first_changed,
                    "row %" PRId64 " changed with tokens from row %" PRId64 " on", r,
                    first_changed);
        changed += !equal;
    }
    ck_assert_int_ge(changed, 1);
    test_csr_free(&before);
    test_csr_free(&after);
    test_problem_free(&p);
}
END_TEST

/* The first row of a span chooses for the others of it, and no other row does. */
START_TEST(the_first_row_of_a_span_chooses_for_the_others)
{
    const hpa_desc desc = span_desc(1024, 8);
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 32, TEST_NORMAL);
    test_csr before = built(&p);
    const int64_t leader = 24, decider = leader + (_i ? 3 : 0);
    double *q = test_read(&p.q);
    for (int64_t i = decider * desc.block_q; i < (decider + 1) * desc.block_q; i++)
        for (int64_t d = 0; d < desc.head_dim; d++)
            q[desc.head_dim * test_q_row(&p, 0, 0, i) + d] *= d % 2 ? -7 : 20;
    test_write(&p.q, q);
    free(q);
    test_csr after = built(&p);
    int64_t others = 0;
    for (int64_t r = 0; r < before.rows; r++) {
        const bool changed = !rows_equal(&before, &after, r);
        assert_that(!changed || r == decider || (_i == 0 && r > leader && r < leader + 8),
                    "row %" PRId64 " changed with the queries of row %" PRId64, r, decider);
        others += changed && r != decider;
    }
    ck_assert_int_gt(test_shared_levels(&p, leader), 0);
    ck_assert_int_ge(others, _i == 0 ? 4 : 0);
    test_csr_free(&before);
    test_csr_free(&after);
    test_problem_free(&p);
}
END_TEST

/* Heads that share: one query head that dominates decides for its group. */
START_TEST(the_strongest_head_of_a_group_decides_for_all)
{
    hpa_desc desc = search_desc(400, 48);
    desc.heads_q = 3;
    desc.share_heads = true;
    test_problem p;
    test_problem_new(&p, &desc, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 9, TEST_NORMAL);
    double *q = test_read(&p.q);
    for (int64_t n = 0; n < test_count(&p.q); n++)
        q[n] *= n / (desc.head_dim * desc.seq_q) == 1 ? 1 : 1e-6;
    test_write(&p.q, q);
    test_csr shared = built(&p);
    desc.share_heads = false;
    test_problem apart;
    test_problem_copy(&apart, &p, &desc, TEST_BHSD);
    test_csr each = built(&apart);
    const int64_t rows = shared.rows;
    ck_assert_int_eq(each.rows, 3 * rows);
    test_csr second = {.rows = rows};
    second.row_ptr = test_allocate(rows + 1, sizeof *second.row_ptr);
    const int64_t begin = each.row_ptr[rows];
    second.blocks = test_allocate(each.row_ptr[2 * rows] - begin, sizeof *second.blocks);
    for (int64_t r = 0; r <= rows; r++)
        second.row_ptr[r] = each.row_ptr[rows + r] - begin;
    for (int64_t n = 0; n < second.row_ptr[rows]; n++)
        second.blocks[n] = each.blocks[begin + n];
    assert_csr_equal("shared", &shared, &second);
    test_csr_free(&shared);
    test_csr_free(&each);
    test_csr_free(&second);
    free(q);
    test_problem_free(&apart);
    test_problem_free(&p);
}
END_TEST

static Suite *mask_suite(void)
{
    Suite *suite = suite_create("mask");
    const int cases = test_case_count();
    TCase *t = test_add_case(suite, "every shape", 30);
    tcase_add_loop_test(t, properties_hold, 0, cases);
    tcase_add_loop_test(t, integers_give_the_mask_of_the_algorithm, 0, cases);
    tcase_add_loop_test(t, normal_values_give_the_mask_of_the_algorithm, 0, cases);
    tcase_add_loop_test(t, equals_the_reference_index_by_index, 0, cases);
    tcase_add_loop_test(t, threads_do_not_matter, 0, test_few_case_count());
    tcase_add_loop_test(t, layout_does_not_matter, 0, test_few_case_count());
    t = test_add_case(suite, "search", 30);
    tcase_add_loop_test(t, random_problems_give_the_mask_of_the_algorithm, 0, 40);
    tcase_add_loop_test(t, random_spans_give_the_mask_of_the_algorithm, 0, 20);
    tcase_add_test(t, the_cases_share_levels_or_not_as_they_say);
    tcase_add_test(t, a_long_sequence_gives_the_mask_of_the_algorithm);
    tcase_add_test(t, top_k_of_the_whole_sequence_keeps_all_that_is_visible);
    tcase_add_loop_test(t, scoring_every_token_keeps_the_blocks_of_highest_maximum, 0, 30);
    tcase_add_loop_test(t, a_planted_key_is_found, 0, 6);
    tcase_add_loop_test(t, equal_scores_keep_the_lowest_blocks, 0, 5);
    tcase_add_loop_test(t, scores_below_zero_are_ranked, 0, 10);
    tcase_add_loop_test(t, non_finite_scores_count_as_the_lowest, 0, 12);
    t = test_add_case(suite, "independence", 30);
    tcase_add_loop_test(t, a_hundred_builds_are_identical, 0, 4);
    tcase_add_test(t, v_is_not_read);
    tcase_add_loop_test(t, a_packed_sequence_is_masked_as_if_alone, 0, 2);
    tcase_add_test(t, queries_that_the_stride_skips_do_not_matter);
    tcase_add_loop_test(t, a_row_does_not_depend_on_later_tokens, 0, 24);
    tcase_add_loop_test(t, the_first_row_of_a_span_chooses_for_the_others, 0, 2);
    tcase_add_test(t, the_strongest_head_of_a_group_decides_for_all);
    return suite;
}

int main(void)
{
    return test_run(mask_suite());
}
