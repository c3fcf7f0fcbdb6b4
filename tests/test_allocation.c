/* Where the library allocates: in hpa_plan_create alone, which gives everything back when an
 * allocation fails. This program is linked with the library's own object files, so that the linker's
 * --wrap puts the functions below between them and the C library. */
#include "problem.h"

#include <stdio.h>

/* While counting, allocation number fail_at (from 1) fails; 0: none does. */
static bool counting;
static int64_t fail_at, allocations, live;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **memory, size_t alignment, size_t size);
void __real_free(void *memory);

/* Visible: the linker may find them wanted by shared libraries too. */
#define WRAPPER __attribute__((visibility("default")))

WRAPPER void *__wrap_malloc(size_t size);
WRAPPER void *__wrap_calloc(size_t count, size_t size);
WRAPPER void *__wrap_realloc(void *memory, size_t size);
WRAPPER void *__wrap_aligned_alloc(size_t alignment, size_t size);
WRAPPER int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);
WRAPPER void __wrap_free(void *memory);

static bool must_fail(void)
{
    return counting && ++allocations == fail_at;
}

static void *counted(void *memory)
{
    live += counting && memory;
    return memory;
}

void *__wrap_malloc(size_t size)
{
    return must_fail() ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    return must_fail() ? NULL : counted(__real_calloc(count, size));
}

void *__wrap_realloc(void *memory, size_t size)
{
    if (must_fail())
        return NULL;
    void *moved = __real_realloc(memory, size);
    return memory ? moved : counted(moved);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return must_fail() ? NULL : counted(__real_aligned_alloc(alignment, size));
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (must_fail())
        return 12; /* ENOMEM */
    const int error = __real_posix_memalign(memory, alignment, size);
    if (error == 0)
        counted(*memory);
    return error;
}

void __wrap_free(void *memory)
{
    live -= counting && memory;
    __real_free(memory);
}

static void begin_counting(int64_t failing)
{
    fail_at = failing;
    allocations = live = 0;
    counting = true;
}

static hpa_desc some_desc(void)
{
    hpa_desc desc = test_desc();
    desc.heads_q = 2;
    desc.seq_q = desc.seq_kv = 300;
    desc.block_q = 32;
    desc.block_k = 16;
    desc.top_k = 64;
    desc.num_threads = 1; /* OpenMP's own allocations are not the library's */
    return desc;
}

START_TEST(a_failed_allocation_leaves_nothing)
{
    hpa_desc desc = some_desc();
    desc.dtype = (hpa_dtype)(HPA_F64 + _i);
    hpa_status status = HPA_OUT_OF_MEMORY;
    int64_t n = 0;
    while (status != HPA_OK) {
        hpa_plan *plan = (hpa_plan *)(void *)&plan;
        begin_counting(++n);
        status = hpa_plan_create(&plan, &desc);
        const bool failed = allocations >= fail_at;
        if (status == HPA_OK)
            hpa_plan_destroy(plan);
        counting = false;
        ck_assert_msg(live == 0, "%lld allocations were lost when number %lld failed",
                      (long long)live, (long long)n);
        if (status == HPA_OK) {
            ck_assert_msg(!failed, "allocation %lld failed, and nobody noticed", (long long)n);
            continue;
        }
        ck_assert_int_eq(status, HPA_OUT_OF_MEMORY);
        ck_assert_ptr_null(plan);
        ck_assert_msg(strstr(hpa_last_error(), "memory") != NULL, "%s", hpa_last_error());
    }
    ck_assert_msg(n > 1, "hpa_plan_create allocates nothing: is it this program's?");
}
END_TEST

START_TEST(a_refused_description_leaves_nothing)
{
    hpa_desc desc = some_desc();
    desc.device = HPA_CUDA;
    desc.device_id = 1000; /* no machine has so many */
    hpa_plan *plan;
    begin_counting(0);
    const hpa_status status = hpa_plan_create(&plan, &desc);
    counting = false;
    ck_assert_int_ne(status, HPA_OK);
    ck_assert_int_eq(live, 0);
}
END_TEST

START_TEST(the_other_calls_allocate_nothing)
{
    hpa_desc desc = some_desc();
    desc.dtype = (hpa_dtype)(HPA_F64 + _i);
    test_problem p;
    test_problem_new(&p, &desc, TEST_BSHD, NULL, NULL);
    test_problem_fill(&p, 1, TEST_NORMAL);
    const hpa_inputs in = test_inputs(&p);
    const hpa_outputs out = test_outputs(&p);
    const hpa_gradients gradients = test_gradients(&p);
    test_buffer build_scratch, forward_scratch, backward_scratch;
    const hpa_exec build = test_scratch_new(&build_scratch, p.sizes.mask_scratch, 0);
    const hpa_exec forward = test_scratch_new(&forward_scratch, p.sizes.forward_scratch, 0);
    const hpa_exec backward = test_scratch_new(&backward_scratch, p.sizes.backward_scratch, 0);
    void *mask = p.mask.data;
    int64_t row_ptr[64], n_blocks = 4096;
    int32_t blocks[4096];
    char text[4096];
    hpa_mask_stats stats;
    hpa_status statuses[8];
    begin_counting(1);
    statuses[0] = hpa_mask_build(p.plan, &in, mask, &build);
    statuses[1] = hpa_forward(p.plan, mask, &in, &out, &forward);
    statuses[2] = hpa_backward(p.plan, mask, &in, &out, &gradients, &backward);
    statuses[3] = hpa_mask_statistics(p.plan, mask, &stats, &build);
    statuses[4] = hpa_mask_validate(p.plan, mask, &build);
    statuses[5] = hpa_mask_export_csr(p.plan, mask, row_ptr, blocks, &n_blocks, &build);
    statuses[6] = hpa_mask_import_csr(p.plan, &in, mask, row_ptr, blocks, &build);
    const int length = hpa_mask_snprint(p.plan, mask, 0, 0, text, sizeof text, &build);
    statuses[7] = hpa_forward(NULL, mask, &in, &out, &forward);
    counting = false;
    ck_assert_int_eq(allocations, 0);
    ck_assert_int_eq(live, 0);
    for (int n = 0; n < 7; n++)
        ck_assert_msg(statuses[n] == HPA_OK, "call %d gave %s", n, hpa_status_name(statuses[n]));
    ck_assert_int_eq(statuses[7], HPA_INVALID_ARGUMENT);
    ck_assert_int_gt(length, 0);
    test_scratch_free(&build_scratch);
    test_scratch_free(&forward_scratch);
    test_scratch_free(&backward_scratch);
    test_problem_free(&p);
}
END_TEST

static Suite *allocation_suite(void)
{
    Suite *suite = suite_create("allocation");
    TCase *t = test_add_case(suite, "allocation", 20);
    tcase_add_loop_test(t, a_failed_allocation_leaves_nothing, 0, 4);
    tcase_add_test(t, a_refused_description_leaves_nothing);
    tcase_add_loop_test(t, the_other_calls_allocate_nothing, 0, 4);
    return suite;
}

int main(void)
{
    return test_run(allocation_suite());
}
