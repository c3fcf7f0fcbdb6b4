/* Looking into a mask: statistics, validation against every kind of damage, exchange as compressed
 * sparse rows with hostile input, and the drawing. */
#include "cases.h"
#include "core/mask_layout.h"
#include "oracle.h"
#include "search.h"

#include <inttypes.h>
#include <stdio.h>

/* Calls that need no more than the (sync) calls' scratch. */
static hpa_status validate(const test_problem *p)
{
    test_buffer scratch;
    const hpa_exec exec = test_scratch_new(&scratch, p->sizes.mask_scratch, 0xff);
    const hpa_status status = hpa_mask_validate(p->plan, p->mask.data, &exec);
    test_scratch_free(&scratch);
    return status;
}

static hpa_status import(const test_problem *p, const test_csr *csr)
{
    test_buffer scratch;
    const hpa_exec exec = test_scratch_new(&scratch, p->sizes.mask_scratch, 0xff);
    const hpa_inputs in = test_inputs(p);
    const hpa_status status =
        hpa_mask_import_csr(p->plan, &in, p->mask.data, csr->row_ptr, csr->blocks, &exec);
    test_scratch_free(&scratch);
    assert_guards(&p->mask);
    return status;
}

/* Statistics */

/* Query blocks that keep a key block, for the mask head that row r belongs to. */
static int64_t column_length(const test_problem *p, const test_csr *csr, int64_t r, int64_t block)
{
    const test_row row = test_row_at(p, r);
    int64_t length = 0;
    for (int64_t other = 0; other < csr->rows; other++) {
        test_row at = test_row_at(p, other);
        if (at.batch == row.batch && at.mask_head == row.mask_head)
            for (int64_t n = csr->row_ptr[other]; n < csr->row_ptr[other + 1]; n++)
                length += csr->blocks[n] == block;
        test_row_free(&at);
    }
    test_row_free((test_row *)&row);
    return length;
}

static double expected_density(const test_problem *p, const test_csr *csr)
{
    int64_t kept = 0, dense = 0;
    for (int64_t b = 0; b < p->desc.batch; b++) {
        const int64_t queries = test_q_length(p, b), keys = test_kv_length(p, b);
        for (int64_t h = 0; h < p->desc.heads_q; h++)
            for (int64_t i = 0; i < queries; i++)
                for (int64_t j = 0; j < keys; j++) {
                    dense += !p->desc.causal || j <= i + keys - queries;
                    kept += test_attends(p, csr, b, h, i, j);
                }
    }
    return dense > 0 ? (double)kept / (double)dense : 0;
}

static void check_statistics(const test_problem *p, const test_csr *csr)
{
    const hpa_mask_stats stats = test_statistics(p);
    int64_t fewest = csr->rows ? INT64_MAX : 0, most = 0, empty = 0, longest = 0;
    for (int64_t r = 0; r < csr->rows; r++) {
        const int64_t length = csr->row_ptr[r + 1] - csr->row_ptr[r];
        fewest = length < fewest ? length : fewest;
        most = length > most ? length : most;
        empty += length == 0;
        for (int64_t n = csr->row_ptr[r]; n < csr->row_ptr[r + 1]; n++) {
            const int64_t column = column_length(p, csr, r, csr->blocks[n]);
            longest = column > longest ? column : longest;
        }
    }
    ck_assert_int_eq(stats.rows, csr->rows);
    ck_assert_int_eq(stats.blocks, csr->row_ptr[csr->rows]);
    ck_assert_int_eq(stats.empty_rows, empty);
    ck_assert_int_eq(stats.row_min, fewest);
    ck_assert_int_eq(stats.row_max, most);
    ck_assert_int_eq(stats.column_max, longest);
    const double density = expected_density(p, csr);
    assert_close("density", &stats.density, &density, 1, 1e-15, 1e-14);
}

static bool is_small(const test_problem *p)
{
    return p->desc.seq_q <= 350;
}

START_TEST(statistics_count_what_is_there)
{
    const test_case c = test_case_at(_i);
    for (int training = 0; training < 2; training++) {
        test_case variant = c;
        variant.desc.training = training;
        test_problem p;
        test_problem_of_case(&p, &variant, HPA_F32, TEST_NORMAL);
        test_build(&p);
        test_csr csr = test_export(&p);
        if (is_small(&p))
            check_statistics(&p, &csr);
        test_csr_free(&csr);
        test_problem_free(&p);
    }
}
END_TEST

/* A small mask of every kind: packed or not, with room to spare, training or not. */
static void new_small_problem(test_problem *p, bool packed, bool causal, bool training)
{
    static const int32_t cu_q[] = {0, 70, 70, 71, 148}, cu_kv[] = {0, 90, 91, 96, 150};
    hpa_desc d = test_desc();
    d.heads_q = 2;
    d.head_dim = 8;
    d.seq_q = 110;
    d.seq_kv = 120;
    d.packed = packed;
    d.batch = packed ? 4 : 2;
    d.total_q = 200;
    d.total_kv = 210;
    d.block_q = 16;
    d.block_k = 16;
    d.top_k = 32;
    d.sink = 16;
    d.window = 16;
    d.causal = causal;
    d.training = training;
    test_problem_new(p, &d, TEST_BHSD, packed ? cu_q : NULL, packed ? cu_kv : NULL);
    test_problem_fill(p, 77, TEST_NORMAL);
    test_build(p);
    assert_ok(validate(p));
}

START_TEST(the_fingerprint_tells_masks_apart)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    test_csr csr = test_export(&p);
    const uint64_t fingerprint = test_statistics(&p).fingerprint;
    test_buffer_fill(&p.mask, 0x33);
    test_import(&p, &csr);
    ck_assert_uint_eq(test_statistics(&p).fingerprint, fingerprint);
    /* every mask that lacks one of the blocks is another */
    const int64_t count = csr.row_ptr[csr.rows];
    uint64_t *others = test_allocate(count, sizeof *others);
    int64_t row = 0;
    for (int64_t n = 0; n < count; n++) {
        while (csr.row_ptr[row + 1] <= n)
            row++;
        test_csr less = {.rows = csr.rows};
        less.row_ptr = test_allocate(csr.rows + 1, sizeof *less.row_ptr);
        less.blocks = test_allocate(count, sizeof *less.blocks);
        for (int64_t r = 0; r <= csr.rows; r++)
            less.row_ptr[r] = csr.row_ptr[r] - (r > row);
        for (int64_t m = 0; m < count - 1; m++)
            less.blocks[m] = csr.blocks[m + (m >= n)];
        test_import(&p, &less);
        others[n] = test_statistics(&p).fingerprint;
        assert_that(others[n] != fingerprint, "a block fewer, and the same fingerprint");
        for (int64_t m = 0; m < n; m++)
            assert_that(others[m] != others[n], "two masks with one fingerprint");
        test_csr_free(&less);
    }
    free(others);
    test_csr_free(&csr);
    test_problem_free(&p);
}
END_TEST

/* Damage */

/* Where the meaning of a mask lies: its sections without their padding and unused elements. */
typedef struct section {
    const char *name;
    size_t begin, end;
} section;

typedef struct sections {
    section list[8];
    int count;
} sections;

static void add_section(sections *s, const char *name, const unsigned char *mask, const void *begin,
                        int64_t elements, size_t size)
{
    if (!begin || elements == 0)
        return;
    const size_t first = (size_t)((const unsigned char *)begin - mask);
    s->list[s->count++] = (section){name, first, first + (size_t)elements * size};
}

/* Row blocks are not here: each row uses its first ones only. */
static sections sections_of(const test_problem *p, unsigned char *mask)
{
    const hpa_geometry g = hpa_geometry_of(&p->desc);
    const hpa_mask m = hpa_mask_at(&g, mask);
    sections s = {0};
    add_section(&s, "header", mask, m.header, 1, sizeof *m.header);
    add_section(&s, "row_length", mask, m.row_length, g.rows, sizeof *m.row_length);
    if (!g.training)
        return s;
    add_section(&s, "column_start", mask, m.column_start, g.columns + 1, sizeof *m.column_start);
    add_section(&s, "column_rows", mask, m.column_rows, m.column_start[g.columns],
                sizeof *m.column_rows);
    return s;
}

/* Flips bits of one byte. The mask must be found out, unless all it says now is that a row without a
 * transpose to contradict it is shorter. */
static void check_flip(const test_problem *p, const section *s, size_t byte, unsigned char bits)
{
    unsigned char value;
    test_buffer_read(&p->mask, byte, &value, 1);
    const unsigned char damaged = value ^ bits;
    test_buffer_write(&p->mask, byte, &damaged, 1);
    const hpa_status status = validate(p);
    const bool may_be_shorter =
        !p->desc.training && strcmp(s->name, "row_length") == 0 && damaged < value;
    assert_that(status == HPA_INVALID_MASK || (status == HPA_OK && may_be_shorter),
                "%s: byte %zu from %02x to %02x, and validate gave %s", s->name, byte, value,
                damaged, hpa_status_name(status));
    assert_that(status == HPA_OK || strlen(hpa_last_error()) > 0, "no word of what is wrong");
    test_buffer_write(&p->mask, byte, &value, 1);
}

START_TEST(every_damaged_byte_is_found)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    test_random random = {(uint64_t)_i};
    unsigned char *mask = test_buffer_copy(&p.mask);
    const sections s = sections_of(&p, mask);
    for (int n = 0; n < s.count; n++)
        for (size_t byte = s.list[n].begin; byte < s.list[n].end; byte++) {
            check_flip(&p, &s.list[n], byte, (unsigned char)(1 << byte % 8));
            check_flip(&p, &s.list[n], byte, (unsigned char)(1 | test_random_bits(&random)));
        }
    assert_ok(validate(&p));
    free(mask);
    test_problem_free(&p);
}
END_TEST

/* Kept blocks: with a transpose every change contradicts it; without, what is still ascending and
 * visible is another good mask. */
START_TEST(every_damaged_block_is_found)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    const hpa_geometry g = hpa_geometry_of(&p.desc);
    unsigned char *bytes = test_buffer_copy(&p.mask);
    const hpa_mask m = hpa_mask_at(&g, bytes);
    for (int64_t row = 0; row < g.rows; row++)
        for (int64_t n = 0; n < m.row_length[row]; n++) {
            int32_t *block = &m.row_blocks[row * g.capacity + n];
            const size_t at = (size_t)((unsigned char *)block - bytes);
            const int32_t before = *block;
            for (int32_t value = -2; value < 12; value++) {
                if (value == before)
                    continue;
                test_buffer_write(&p.mask, at, &value, sizeof value);
                const bool ascends = value >= 0 && (n == 0 || block[-1] < value) &&
                                     (n + 1 == m.row_length[row] || value < block[1]);
                const hpa_status status = validate(&p);
                assert_that(status == HPA_INVALID_MASK ||
                                (status == HPA_OK && !g.training && ascends),
                            "block %d became %d: %s", before, value, hpa_status_name(status));
            }
            test_buffer_write(&p.mask, at, &before, sizeof before);
        }
    assert_ok(validate(&p));
    free(bytes);
    test_problem_free(&p);
}
END_TEST

/* Lengths of a packed mask: what contradicts itself or the plan is found; nothing crashes. */
START_TEST(damaged_lengths_are_found)
{
    test_problem p;
    new_small_problem(&p, true, _i & 1, _i & 2);
    const hpa_geometry g = hpa_geometry_of(&p.desc);
    unsigned char *bytes = test_buffer_copy(&p.mask);
    const hpa_mask m = hpa_mask_at(&g, bytes);
    int32_t *const both[] = {m.cu_seqlens_q, m.cu_seqlens_kv};
    static const int32_t values[] = {INT32_MIN, -1, 1, 30, 72, 149, 300, INT32_MAX};
    for (int side = 0; side < 2; side++)
        for (int64_t b = 0; b <= g.batch; b++)
            for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
                int32_t *length = &both[side][b];
                const int64_t longest = side ? g.seq_kv : g.seq_q;
                const bool contradicts =
                    values[v] < 0 || values[v] > (side ? g.total_kv : g.total_q) ||
                    (b == 0 && values[v] != 0) || (b > 0 && values[v] < length[-1]) ||
                    (b > 0 && values[v] - length[-1] > longest) ||
                    (b < g.batch && values[v] > length[1]) ||
                    (b < g.batch && length[1] - values[v] > longest);
                const size_t at = (size_t)((unsigned char *)length - bytes);
                test_buffer_write(&p.mask, at, &values[v], sizeof values[v]);
                const hpa_status status = validate(&p);
                assert_that(status == HPA_INVALID_MASK || (status == HPA_OK && !contradicts),
                            "cu_seqlens[%" PRId64 "] became %d: %s", b, values[v],
                            hpa_status_name(status));
                test_buffer_write(&p.mask, at, length, sizeof *length);
            }
    assert_ok(validate(&p));
    free(bytes);
    test_problem_free(&p);
}
END_TEST

START_TEST(random_bytes_are_no_mask)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    unsigned char *bytes = test_buffer_copy(&p.mask), *damaged = test_buffer_copy(&p.mask);
    test_random random = {(uint64_t)_i};
    /* with a good header, else that alone would be found */
    for (int n = 0; n < 300; n++) {
        for (size_t at = sizeof(hpa_mask_header); at < p.mask.bytes; at++) {
            const bool keep = test_random_integer(&random, 0, 1 + n / 30) > 0;
            damaged[at] = keep ? bytes[at] : (unsigned char)test_random_bits(&random);
        }
        test_buffer_write(&p.mask, 0, damaged, p.mask.bytes);
        ck_assert_int_eq(validate(&p), HPA_INVALID_MASK);
    }
    free(bytes);
    free(damaged);
    test_problem_free(&p);
}
END_TEST

START_TEST(unwritten_masks_are_refused_everywhere)
{
    test_problem p;
    new_small_problem(&p, _i & 1, true, true);
    test_forward(&p);
    for (int fill = 0; fill < 256; fill += 51) {
        test_buffer_fill(&p.mask, fill);
        hpa_mask_stats stats;
        int64_t n_blocks = 0;
        char text[8];
        test_buffer scratch, forward_buffer, backward_buffer;
        const hpa_exec exec = test_scratch_new(&scratch, p.sizes.mask_scratch, 0);
        const hpa_inputs in = test_inputs(&p);
        const hpa_outputs out = test_outputs(&p);
        const hpa_gradients gradients = test_gradients(&p);
        const hpa_exec forward = test_scratch_new(&forward_buffer, p.sizes.forward_scratch, 0);
        const hpa_exec backward = test_scratch_new(&backward_buffer, p.sizes.backward_scratch, 0);
        void *mask = p.mask.data;
        assert_failure(hpa_mask_validate(p.plan, mask, &exec), HPA_INVALID_MASK, "mask");
        assert_failure(hpa_mask_statistics(p.plan, mask, &stats, &exec), HPA_INVALID_MASK, "mask");
        assert_failure(hpa_mask_export_csr(p.plan, mask, NULL, NULL, &n_blocks, &exec),
                       HPA_INVALID_MASK, "mask");
        ck_assert_int_eq(hpa_mask_snprint(p.plan, mask, 0, 0, text, sizeof text, &exec), -1);
        if (test_calls_wait()) {
            assert_failure(hpa_forward(p.plan, mask, &in, &out, &forward), HPA_INVALID_MASK,
                           "mask");
            assert_failure(hpa_backward(p.plan, mask, &in, &out, &gradients, &backward),
                           HPA_INVALID_MASK, "mask");
        }
        test_scratch_free(&scratch);
        test_scratch_free(&forward_buffer);
        test_scratch_free(&backward_buffer);
    }
    test_problem_free(&p);
}
END_TEST

/* Exchange */

START_TEST(export_and_import_are_inverse)
{
    const test_case c = test_case_at(_i);
    test_problem p, other;
    test_problem_of_case(&p, &c, HPA_F32, TEST_NORMAL);
    test_build(&p);
    test_problem_copy(&other, &p, &p.desc, p.layout);
    test_csr csr = test_export(&p);
    test_buffer_fill(&other.mask, 0x77);
    test_import(&other, &csr);
    assert_ok(validate(&other));
    test_csr again = test_export(&other);
    assert_csr_equal(c.name, &again, &csr);
    const hpa_mask_stats stats = test_statistics(&p), other_stats = test_statistics(&other);
    ck_assert_uint_eq(stats.fingerprint, other_stats.fingerprint);
    ck_assert_int_eq(stats.column_max, other_stats.column_max);
    /* and they mean the same to the passes */
    if (is_small(&p)) {
        test_forward(&p);
        test_backward(&p);
        test_forward(&other);
        test_backward(&other);
        ck_assert_uint_eq(test_buffer_hash(p.out.buffer), test_buffer_hash(other.out.buffer));
        ck_assert_uint_eq(test_buffer_hash(p.dq.buffer), test_buffer_hash(other.dq.buffer));
        ck_assert_uint_eq(test_buffer_hash(p.dk.buffer), test_buffer_hash(other.dk.buffer));
        ck_assert_uint_eq(test_buffer_hash(p.dv.buffer), test_buffer_hash(other.dv.buffer));
    }
    test_csr_free(&csr);
    test_csr_free(&again);
    test_problem_free(&p);
    test_problem_free(&other);
}
END_TEST

START_TEST(export_says_how_much_room_it_needs)
{
    test_problem p;
    new_small_problem(&p, _i & 1, true, true);
    test_csr csr = test_export(&p);
    const int64_t count = csr.row_ptr[csr.rows];
    test_buffer row_ptr, blocks, scratch;
    test_buffer_new_on_host(&row_ptr, (size_t)(csr.rows + 1) * sizeof(int64_t));
    test_buffer_new_on_host(&blocks, (size_t)count * sizeof(int32_t));
    int64_t *rows_out = (int64_t *)(void *)row_ptr.data;
    int32_t *blocks_out = (int32_t *)(void *)blocks.data;
    const uint64_t untouched_rows = test_buffer_hash(&row_ptr);
    const uint64_t untouched = test_buffer_hash(&blocks);
    const hpa_exec exec = test_scratch_new(&scratch, p.sizes.mask_scratch, 0);
    for (int64_t room = -1; room < count; room += count / 4) {
        int64_t n_blocks = room;
        assert_failure(
            hpa_mask_export_csr(p.plan, p.mask.data, rows_out, blocks_out, &n_blocks, &exec),
            HPA_BUFFER_TOO_SMALL, "n_blocks|expected");
        ck_assert_int_eq(n_blocks, count);
        ck_assert_uint_eq(test_buffer_hash(&row_ptr), untouched_rows);
        ck_assert_uint_eq(test_buffer_hash(&blocks), untouched);
    }
    int64_t n_blocks = 0;
    assert_ok(hpa_mask_export_csr(p.plan, p.mask.data, rows_out, NULL, &n_blocks, &exec));
    ck_assert_int_eq(n_blocks, count);
    ck_assert_mem_eq(rows_out, csr.row_ptr, (size_t)(csr.rows + 1) * sizeof(int64_t));
    assert_ok(hpa_mask_export_csr(p.plan, p.mask.data, NULL, blocks_out, &n_blocks, &exec));
    ck_assert_mem_eq(blocks_out, csr.blocks, (size_t)count * sizeof(int32_t));
    n_blocks = count + 100;
    assert_ok(hpa_mask_export_csr(p.plan, p.mask.data, NULL, blocks_out, &n_blocks, &exec));
    ck_assert_int_eq(n_blocks, count);
    test_buffer_free(&row_ptr);
    test_buffer_free(&blocks);
    test_csr_free(&csr);
    test_scratch_free(&scratch);
    test_problem_free(&p);
}
END_TEST

/* Any mask may be imported: random subsets of what is visible, with empty rows among them. */
START_TEST(a_mask_of_ones_own_is_taken_as_it_is)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    test_random random = {(uint64_t)_i};
    const hpa_geometry g = hpa_geometry_of(&p.desc);
    for (int n = 0; n < 20; n++) {
        test_csr csr = test_export(&p);
        csr.blocks = realloc(csr.blocks, (size_t)(csr.rows * g.capacity) * sizeof(int32_t) + 1);
        for (int64_t r = 0; r < csr.rows; r++) {
            test_row row = test_row_at(&p, r);
            int64_t end = csr.row_ptr[r];
            for (int64_t block = 0; block < row.key_blocks; block++)
                if (row.visible[block] && end - csr.row_ptr[r] < g.capacity &&
                    test_random_integer(&random, 0, 3) < n % 4)
                    csr.blocks[end++] = (int32_t)block;
            csr.row_ptr[r + 1] = end;
            test_row_free(&row);
        }
        test_import(&p, &csr);
        assert_ok(validate(&p));
        check_statistics(&p, &csr);
        test_csr again = test_export(&p);
        assert_csr_equal("imported", &again, &csr);
        test_csr_free(&again);
        test_csr_free(&csr);
    }
    test_problem_free(&p);
}
END_TEST

/* The import must fail with HPA_INVALID_MASK and leave the mask alone. */
static void assert_refused(const char *what, const test_problem *p, const test_csr *csr)
{
    const uint64_t before = test_buffer_hash(&p->mask);
    const hpa_status status = import(p, csr);
    assert_that(status == HPA_INVALID_MASK, "%s: import gave %s (%s)", what,
                hpa_status_name(status), hpa_last_error());
    assert_that(test_buffer_hash(&p->mask) == before, "%s: a failed import wrote to the mask",
                what);
}

START_TEST(hostile_blocks_are_refused)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    test_csr csr = test_export(&p);
    for (int64_t r = 0; r < csr.rows; r++) {
        test_row row = test_row_at(&p, r);
        int64_t visible = 0;
        for (int64_t block = 0; block < row.key_blocks; block++)
            visible += row.visible[block];
        for (int64_t n = csr.row_ptr[r]; n < csr.row_ptr[r + 1]; n++) {
            int32_t *block = &csr.blocks[n];
            const int32_t before = *block;
            const bool first = n == csr.row_ptr[r];
            const int32_t bad[] = {-1,
                                   INT32_MIN,
                                   INT32_MAX,
                                   (int32_t)row.key_blocks,
                                   (int32_t)visible,
                                   first ? -7 : block[-1],
                                   first ? -9 : block[-1] - 1};
            for (size_t b = 0; b < sizeof bad / sizeof bad[0]; b++) {
                *block = bad[b];
                assert_refused("a bad block", &p, &csr);
            }
            *block = before;
        }
        test_row_free(&row);
    }
    assert_ok(import(&p, &csr));
    test_csr_free(&csr);
    test_problem_free(&p);
}
END_TEST

START_TEST(hostile_row_pointers_are_refused)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    test_csr csr = test_export(&p);
    const int64_t count = csr.row_ptr[csr.rows];
    /* a block of memory that ends with the blocks: reading past it is seen by a sanitizer */
    int32_t *exact = test_allocate(count, sizeof *exact);
    memcpy(exact, csr.blocks, (size_t)count * sizeof *exact);
    free(csr.blocks);
    csr.blocks = exact;
    static const int64_t bad[] = {INT64_MIN,        -1000000,         -1,       1000000, INT32_MAX,
                                  INT64_C(1) << 32, INT64_C(1) << 62, INT64_MAX};
    for (int64_t r = 0; r <= csr.rows; r++) {
        const int64_t before = csr.row_ptr[r];
        for (size_t b = 0; b < sizeof bad / sizeof bad[0]; b++) {
            csr.row_ptr[r] = bad[b];
            assert_refused("a bad row pointer", &p, &csr);
        }
        csr.row_ptr[r] = before;
        if (r == csr.rows)
            continue;
        csr.row_ptr[r] = csr.row_ptr[r + 1] + 1; /* descends to the next */
        assert_refused("a descending row pointer", &p, &csr);
        csr.row_ptr[r] = before;
    }
    csr.row_ptr[0] = 1;
    assert_refused("a first row that starts late", &p, &csr);
    csr.row_ptr[0] = 0;
    assert_ok(import(&p, &csr));
    test_csr_free(&csr);
    test_problem_free(&p);
}
END_TEST

/* Rows that ascend and are in range, but longer than the plan's can be. */
START_TEST(rows_too_long_are_refused)
{
    hpa_desc d = test_desc();
    d.seq_q = 16;
    d.seq_kv = 1600;
    d.block_q = d.block_k = 16;
    d.top_k = 64;
    d.window = d.sink = 0;
    d.causal = false;
    d.training = _i;
    test_problem p;
    test_problem_new(&p, &d, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 1, TEST_NORMAL);
    test_build(&p);
    int32_t blocks[100];
    for (int32_t n = 0; n < 100; n++)
        blocks[n] = n;
    int64_t row_ptr[] = {0, 0};
    const test_csr csr = {.rows = 1, .row_ptr = row_ptr, .blocks = blocks};
    for (int64_t length = 0; length <= 100; length++) {
        row_ptr[1] = length;
        if (length <= 4)
            assert_ok(import(&p, &csr));
        else
            assert_refused("a long row", &p, &csr);
    }
    test_problem_free(&p);
}
END_TEST

static void assert_all(const char *name, const test_problem *p, const test_tensor *t, double want)
{
    double *values = test_allocate(test_count(t), sizeof *values);
    for (int64_t n = 0; n < test_count(t); n++)
        values[n] = want;
    assert_tensor_close(name, p, t, values, 0, 0);
    free(values);
}

static void assert_attends_to_nothing(test_problem *p)
{
    test_problem_fill(p, 5, TEST_NORMAL);
    test_forward(p);
    assert_all("out", p, &p->out, 0);
    assert_all("lse", p, &p->lse, -INFINITY);
    test_backward(p);
    assert_all("dq", p, &p->dq, 0);
    assert_all("dk", p, &p->dk, 0);
    assert_all("dv", p, &p->dv, 0);
}

START_TEST(an_empty_mask_can_be_imported)
{
    test_problem p;
    new_small_problem(&p, _i & 1, true, true);
    test_csr csr = test_export(&p);
    for (int64_t r = 0; r <= csr.rows; r++)
        csr.row_ptr[r] = 0;
    assert_ok(import(&p, &csr));
    assert_ok(validate(&p));
    const hpa_mask_stats stats = test_statistics(&p);
    ck_assert_int_eq(stats.blocks, 0);
    ck_assert_int_eq(stats.empty_rows, csr.rows);
    ck_assert_int_eq(stats.column_max, 0);
    ck_assert(stats.density == 0);

    /* Without blocks there is no array of them either. */
    const test_csr nothing = {csr.rows, csr.row_ptr, NULL};
    test_buffer_fill(&p.mask, 0xff);
    assert_ok(import(&p, &nothing));
    assert_ok(validate(&p));
    ck_assert_int_eq(test_statistics(&p).blocks, 0);
    assert_attends_to_nothing(&p);
    csr.row_ptr[csr.rows] = 1;
    assert_failure(import(&p, &nothing), HPA_INVALID_ARGUMENT, "blocks|NULL");
    test_csr_free(&csr);
    test_problem_free(&p);
}
END_TEST

/* Drawing */

static char expected_character(const test_row *row, bool kept, int64_t block)
{
    if (!row->visible[block])
        return ' ';
    if (!kept)
        return '.';
    return row->sink[block] ? 'S' : row->window[block] ? 'W' : '#';
}

/* The drawing of one sequence and head, from the exported rows. */
static char *expected_drawing(const test_problem *p, const test_csr *csr, int64_t b, int64_t head)
{
    char *text = calloc((size_t)(csr->rows + 1) * 100, 1);
    char *at = text;
    for (int64_t r = 0; r < csr->rows; r++) {
        test_row row = test_row_at(p, r);
        for (int64_t block = 0; row.batch == b && row.mask_head == head && block < row.key_blocks;
             block++) {
            bool kept = false;
            for (int64_t n = csr->row_ptr[r]; n < csr->row_ptr[r + 1]; n++)
                kept |= csr->blocks[n] == block;
            *at++ = expected_character(&row, kept, block);
        }
        if (row.batch == b && row.mask_head == head)
            *at++ = '\n';
        test_row_free(&row);
    }
    return text;
}

static void check_drawing(const test_problem *p, const test_csr *csr, int64_t b, int64_t head)
{
    test_buffer scratch;
    const hpa_exec exec = test_scratch_new(&scratch, p->sizes.mask_scratch, 0);
    char *want = expected_drawing(p, csr, b, head);
    const int length = (int)strlen(want);
    ck_assert_int_eq(hpa_mask_snprint(p->plan, p->mask.data, b, head, NULL, 0, &exec), length);
    const size_t sizes[] = {1, 2, (size_t)length, (size_t)length + 1, (size_t)length + 50};
    for (int n = 0; n < 5; n++) {
        if (sizes[n] == 0)
            continue;
        test_buffer text;
        test_buffer_new_on_host(&text, sizes[n]);
        ck_assert_int_eq(
            hpa_mask_snprint(p->plan, p->mask.data, b, head, (char *)text.data, sizes[n], &exec),
            length);
        const size_t written = sizes[n] > (size_t)length ? (size_t)length : sizes[n] - 1;
        ck_assert_int_eq(text.data[written], 0);
        ck_assert_mem_eq(text.data, want, written);
        test_buffer_free(&text);
    }
    free(want);
    test_scratch_free(&scratch);
}

START_TEST(the_drawing_shows_the_mask)
{
    test_problem p;
    new_small_problem(&p, _i & 1, _i & 2, _i & 4);
    for (int emptied = 0; emptied < 2; emptied++) {
        test_csr csr = test_export(&p);
        for (int64_t b = 0; b < p.desc.batch; b++)
            for (int64_t head = 0; head < test_mask_heads(&p); head++)
                check_drawing(&p, &csr, b, head);
        for (int64_t r = 0; r <= csr.rows; r++) /* then without a single block */
            csr.row_ptr[r] = 0;
        test_import(&p, &csr);
        test_csr_free(&csr);
    }
    test_problem_free(&p);
}
END_TEST

START_TEST(a_known_drawing)
{
    hpa_desc d = test_desc();
    d.head_dim = 8;
    d.seq_q = 48;
    d.seq_kv = 96;
    d.block_q = 16;
    d.block_k = 16;
    d.top_k = 16;
    d.sink = 16;
    d.window = 0;
    test_problem p;
    test_problem_new(&p, &d, TEST_BHSD, NULL, NULL);
    test_problem_fill(&p, 1, TEST_NORMAL);
    double *q = test_read(&p.q), *k = test_read(&p.k);
    for (int64_t i = 0; i < d.seq_q; i++)
        q[i * d.head_dim] = 1;
    for (int64_t j = 0; j < d.seq_kv; j++)
        k[j * d.head_dim] = j / 16 == 2 ? 1e4 : j / 16 == 4 ? 1e5 : 0;
    test_write(&p.q, q);
    test_write(&p.k, k);
    test_build(&p);
    char text[64];
    test_buffer scratch;
    const hpa_exec exec = test_scratch_new(&scratch, p.sizes.mask_scratch, 0);
    hpa_mask_snprint(p.plan, p.mask.data, 0, 0, text, sizeof text, &exec);
    ck_assert_str_eq(text, "S.#W  \n"
                           "S.#.W \n"
                           "S...#W\n");
    test_scratch_free(&scratch);
    free(q);
    free(k);
    test_problem_free(&p);
}
END_TEST

static Suite *inspect_suite(void)
{
    Suite *suite = suite_create("inspect");
    const int cases = test_case_count();
    TCase *t = test_add_case(suite, "statistics", 30);
    tcase_add_loop_test(t, statistics_count_what_is_there, 0, cases);
    tcase_add_loop_test(t, the_fingerprint_tells_masks_apart, 0, 8);
    t = test_add_case(suite, "damage", 30);
    tcase_add_loop_test(t, every_damaged_byte_is_found, 0, 8);
    tcase_add_loop_test(t, every_damaged_block_is_found, 0, 8);
    tcase_add_loop_test(t, damaged_lengths_are_found, 0, 4);
    tcase_add_loop_test(t, random_bytes_are_no_mask, 0, 8);
    tcase_add_loop_test(t, unwritten_masks_are_refused_everywhere, 0, 2);
    t = test_add_case(suite, "exchange", 30);
    tcase_add_loop_test(t, export_and_import_are_inverse, 0, cases);
    tcase_add_loop_test(t, export_says_how_much_room_it_needs, 0, 2);
    tcase_add_loop_test(t, a_mask_of_ones_own_is_taken_as_it_is, 0, 8);
    tcase_add_loop_test(t, hostile_blocks_are_refused, 0, 8);
    tcase_add_loop_test(t, hostile_row_pointers_are_refused, 0, 8);
    tcase_add_loop_test(t, rows_too_long_are_refused, 0, 2);
    tcase_add_loop_test(t, an_empty_mask_can_be_imported, 0, 2);
    t = test_add_case(suite, "drawing", 30);
    tcase_add_loop_test(t, the_drawing_shows_the_mask, 0, 8);
    tcase_add_test(t, a_known_drawing);
    return suite;
}

int main(void)
{
    return test_run(inspect_suite());
}
