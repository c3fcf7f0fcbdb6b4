/* What CUDA alone promises: capture in a graph, memory safety when lengths are only known on the
 * device, several streams, offsets beyond 32 bits, and what it answers to devices that are not there.
 * Everything else is the other suites' business, which run on CUDA as they are. */
#include "cases.h"
#include "device.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

#define CHECK_CUDA(call) \
    assert_that((call) == cudaSuccess, "%s: %s", #call, cudaGetErrorString(cudaPeekAtLastError()))

/* mask, forward and backward, with nothing that waits */
static void enqueue(const test_problem *p, const hpa_exec *exec)
{
    const hpa_inputs in = test_inputs(p);
    const hpa_outputs out = test_outputs(p);
    const hpa_gradients gradients = test_gradients(p);
    assert_ok(hpa_mask_build(p->plan, &in, p->mask.data, exec));
    assert_ok(hpa_forward(p->plan, p->mask.data, &in, &out, exec));
    assert_ok(hpa_backward(p->plan, p->mask.data, &in, &out, &gradients, exec));
}

static void clear(const test_problem *p)
{
    const test_buffer *const written[] = {&p->mask,     p->out.buffer, p->lse.buffer,
                                          p->dq.buffer, p->dk.buffer,  p->dv.buffer};
    for (size_t n = 0; n < sizeof written / sizeof written[0]; n++)
        test_buffer_fill(written[n], 0);
}

static uint64_t hash_of_results(const test_problem *p)
{
    uint64_t hash = test_buffer_hash(&p->mask);
    hash = 3 * hash + test_buffer_hash(p->out.buffer);
    hash = 3 * hash + test_buffer_hash(p->lse.buffer);
    hash = 3 * hash + test_buffer_hash(p->dq.buffer);
    hash = 3 * hash + test_buffer_hash(p->dk.buffer);
    return 3 * hash + test_buffer_hash(p->dv.buffer);
}

static size_t largest_scratch(const test_problem *p)
{
    size_t bytes = p->sizes.mask_scratch;
    bytes = p->sizes.forward_scratch > bytes ? p->sizes.forward_scratch : bytes;
    return p->sizes.backward_scratch > bytes ? p->sizes.backward_scratch : bytes;
}

START_TEST(a_graph_replays_what_the_calls_do)
{
    const test_case c = test_case_at(_i);
    for (int n = 0; n < 4; n++) {
        test_problem p;
        test_buffer scratch;
        test_problem_of_case(&p, &c, test_dtypes[n], TEST_NORMAL);
        const hpa_exec exec = test_scratch_new(&scratch, largest_scratch(&p), 0xff);
        clear(&p);
        enqueue(&p, &exec);
        const uint64_t eager = hash_of_results(&p);
        cudaGraph_t graph;
        cudaGraphExec_t replay;
        CHECK_CUDA(cudaStreamBeginCapture(test_stream(), cudaStreamCaptureModeGlobal));
        enqueue(&p, &exec);
        CHECK_CUDA(cudaStreamEndCapture(test_stream(), &graph));
        CHECK_CUDA(cudaGraphInstantiate(&replay, graph, 0));
        for (int time = 0; time < 2; time++) {
            clear(&p);
            test_buffer_fill(&scratch, 0x7f);
            CHECK_CUDA(cudaGraphLaunch(replay, test_stream()));
            assert_that(hash_of_results(&p) == eager, "%s: the graph gives something else", c.name);
        }
        CHECK_CUDA(cudaGraphExecDestroy(replay));
        CHECK_CUDA(cudaGraphDestroy(graph));
        test_scratch_free(&scratch);
        test_problem_free(&p);
    }
}
END_TEST

/* The host cannot look at cu_seqlens. Whatever they hold, nothing outside the buffers is touched. */
START_TEST(garbage_lengths_touch_nothing_else)
{
    static const int32_t cu_q[] = {0, 100, 100, 333, 334, 400};
    static const int32_t cu_kv[] = {0, 150, 160, 393, 700, 733};
    test_random random = {(uint64_t)_i};
    hpa_desc d = test_desc();
    d.dtype = test_dtypes[_i % 4];
    d.heads_q = 4;
    d.heads_kv = 2;
    d.head_dim = 32;
    d.batch = 5;
    d.packed = true;
    d.seq_q = 320;
    d.seq_kv = 320;
    d.total_q = 430;
    d.total_kv = 750;
    d.top_k = 128;
    d.block_q = 32;
    d.block_k = 16;
    test_problem p;
    test_buffer scratch;
    test_problem_new(&p, &d, TEST_BSHD, cu_q, cu_kv);
    test_problem_fill(&p, 3, TEST_NORMAL);
    const hpa_exec exec = test_scratch_new(&scratch, largest_scratch(&p), 0xff);
    for (int n = 0; n < 20; n++) {
        int32_t garbage[6];
        for (int side = 0; side < 2; side++) {
            for (int b = 0; b < 6; b++)
                garbage[b] = (int32_t)(uint32_t)test_random_bits(&random) >> (n % 4 * 9);
            test_buffer_write(side ? &p.cu_kv_buffer : &p.cu_q_buffer, 0, garbage, sizeof garbage);
        }
        enqueue(&p, &exec);
        CHECK_CUDA(cudaStreamSynchronize(test_stream()));
    }
    test_scratch_free(&scratch);
    test_problem_free(&p); /* looks at the guards */
}
END_TEST

/* Two problems of one plan's shape in flight at once. */
START_TEST(streams_do_not_disturb_each_other)
{
    const test_case c = test_case_at(_i);
    test_problem p[2];
    test_buffer scratch[2];
    hpa_exec exec[2];
    cudaStream_t streams[2];
    uint64_t want[2];
    for (int n = 0; n < 2; n++) {
        test_problem_of_case(&p[n], &c, HPA_BF16, TEST_NORMAL);
        test_problem_fill(&p[n], (uint64_t)n + 100, TEST_NORMAL);
        exec[n] = test_scratch_new(&scratch[n], largest_scratch(&p[n]), 0xff);
        clear(&p[n]);
        enqueue(&p[n], &exec[n]);
        want[n] = hash_of_results(&p[n]);
        clear(&p[n]);
        CHECK_CUDA(cudaStreamCreateWithFlags(&streams[n], cudaStreamNonBlocking));
        exec[n].stream = streams[n];
    }
    CHECK_CUDA(cudaStreamSynchronize(test_stream()));
    for (int time = 0; time < 10; time++)
        for (int n = 0; n < 2; n++)
            enqueue(&p[n], &exec[n]);
    for (int n = 0; n < 2; n++) {
        CHECK_CUDA(cudaStreamSynchronize(streams[n]));
        assert_that(hash_of_results(&p[n]) == want[n], "%s: stream %d gives something else", c.name,
                    n);
        CHECK_CUDA(cudaStreamDestroy(streams[n]));
        test_scratch_free(&scratch[n]);
        test_problem_free(&p[n]);
    }
}
END_TEST

START_TEST(devices_that_are_not_there_are_refused)
{
    hpa_plan *plan;
    hpa_desc d = test_desc();
    int count = 0, before = -1, after = -1;
    CHECK_CUDA(cudaGetDeviceCount(&count));
    d.device_id = count;
    assert_failure(hpa_plan_create(&plan, &d), HPA_INVALID_DEVICE, "device_id|expected");
    ck_assert_ptr_null(plan);
    d.device_id = 0;
    d.reference = true;
    assert_failure(hpa_plan_create(&plan, &d), HPA_UNSUPPORTED, "reference");
    d.reference = false;
    CHECK_CUDA(cudaGetDevice(&before));
    assert_ok(hpa_plan_create(&plan, &d));
    CHECK_CUDA(cudaGetDevice(&after));
    ck_assert_int_eq(before, after);
    ck_assert_ptr_nonnull(strstr(hpa_plan_describe(plan), "cuda 0"));
    hpa_plan_destroy(plan);
}
END_TEST

/* A failed launch: its kernel's name comes back, and the caller's next CUDA call is clean. */
START_TEST(a_launch_that_fails_names_its_kernel)
{
    test_problem p;
    test_buffer scratch;
    const test_case c = test_case_at(0);
    test_problem_of_case(&p, &c, HPA_F32, TEST_NORMAL);
    hpa_exec exec = test_scratch_new(&scratch, largest_scratch(&p), 0xff);
    /* a stream that does not allow what the call does: capture of it has been broken off */
    cudaStream_t stream;
    cudaGraph_t graph;
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ck_assert_int_ne(cudaStreamSynchronize(stream), cudaSuccess);
    exec.stream = stream;
    const hpa_inputs in = test_inputs(&p);
    const hpa_status status = hpa_mask_build(p.plan, &in, p.mask.data, &exec);
    ck_assert_int_eq(status, HPA_CUDA_ERROR);
    assert_that(strstr(hpa_last_error(), "_kernel") != NULL, "\"%s\" names no kernel",
                hpa_last_error());
    ck_assert_int_ne(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGetLastError();
    CHECK_CUDA(cudaStreamDestroy(stream));
    test_build(&p);
    test_scratch_free(&scratch);
    test_problem_free(&p);
}
END_TEST

/* One sequence far into buffers whose batch stride is beyond 32 bits, against the same alone. */

#define FAR_STRIDE ((INT64_C(1) << 31) + 64) /* elements */

typedef struct far_tensor {
    unsigned char *memory;
    hpa_tensor view;
    int64_t elements; /* of one sequence */
} far_tensor;

/* [2, heads, tokens, dim], or without dim, as far apart as `stride` elements. */
static far_tensor far_new(hpa_dtype dtype, int64_t batch, int64_t heads, int64_t tokens,
                          int64_t dim, int64_t stride)
{
    far_tensor t = {.elements = heads * tokens * (dim ? dim : 1)};
    const int64_t row = dim ? dim : 1;
    t.view = (hpa_tensor){.dtype = dtype,
                          .ndim = dim ? 4 : 3,
                          .shape = {batch, heads, tokens, dim},
                          .stride = {stride, tokens * row, row, dim ? 1 : 0}};
    t.memory =
        test_device_allocate((size_t)((batch - 1) * stride + t.elements) * test_dtype_size(dtype));
    t.view.data = t.memory;
    return t;
}

static unsigned char *far_sequence(const far_tensor *t, int64_t b)
{
    return t->memory + (size_t)(b * t->view.stride[0]) * test_dtype_size(t->view.dtype);
}

static void far_fill(const far_tensor *t, int64_t b, uint64_t seed)
{
    test_random random = {seed};
    const size_t size = test_dtype_size(t->view.dtype);
    unsigned char *host = test_allocate(t->elements, size);
    for (int64_t n = 0; n < t->elements; n++)
        test_store(t->view.dtype, host + (size_t)n * size, test_random_normal(&random));
    test_device_write(far_sequence(t, b), host, (size_t)t->elements * size);
    free(host);
}

static void assert_far_equal(const char *name, const far_tensor *far, const far_tensor *alone)
{
    const size_t bytes = (size_t)far->elements * test_dtype_size(far->view.dtype);
    unsigned char *got = test_allocate((int64_t)bytes, 1);
    unsigned char *want = test_allocate((int64_t)bytes, 1);
    test_device_read(got, far_sequence(far, far->view.shape[0] - 1), bytes);
    test_device_read(want, far_sequence(alone, 0), bytes);
    assert_that(memcmp(got, want, bytes) == 0, "%s differs beyond 32 bits", name);
    free(got);
    free(want);
}

enum { FAR_Q, FAR_K, FAR_V, FAR_D_OUT, FAR_OUT, FAR_LSE, FAR_DQ, FAR_DK, FAR_DV, FAR_TENSORS };

/* Not all tensors of f32 are far apart: the card's memory would not hold them. */
static bool is_far(hpa_dtype dtype, int n)
{
    return dtype != HPA_F32 || n == FAR_Q || n == FAR_K || n == FAR_V || n == FAR_OUT ||
           n == FAR_DQ;
}

static void far_new_all(far_tensor *t, const hpa_desc *d)
{
    const hpa_dtype lse = test_lse_dtype(d->dtype);
    for (int n = 0; n < FAR_TENSORS; n++) {
        const bool of_keys = n == FAR_K || n == FAR_V || n == FAR_DK || n == FAR_DV;
        const int64_t heads = of_keys ? d->heads_kv : d->heads_q;
        const int64_t tokens = of_keys ? d->seq_kv : d->seq_q;
        const int64_t near_stride = heads * tokens * d->head_dim;
        t[n] =
            far_new(n == FAR_LSE ? lse : d->dtype, d->batch, heads, tokens,
                    n == FAR_LSE ? 0 : d->head_dim, is_far(d->dtype, n) ? FAR_STRIDE : near_stride);
        for (int64_t b = 0; n <= FAR_D_OUT && b < d->batch; b++)
            far_fill(&t[n], b, (uint64_t)(10 * n + (b == d->batch - 1)));
    }
}

static void far_run(far_tensor *t, const hpa_desc *d)
{
    hpa_plan *plan;
    hpa_sizes sizes;
    test_buffer mask, scratch;
    assert_ok(hpa_plan_create(&plan, d));
    assert_ok(hpa_plan_sizes(plan, &sizes));
    size_t bytes = sizes.mask_scratch;
    bytes = sizes.forward_scratch > bytes ? sizes.forward_scratch : bytes;
    bytes = sizes.backward_scratch > bytes ? sizes.backward_scratch : bytes;
    const hpa_exec exec = test_scratch_new(&scratch, bytes, 0xff);
    test_buffer_new(&mask, sizes.mask);
    const hpa_inputs in = {.q = t[FAR_Q].view, .k = t[FAR_K].view, .v = t[FAR_V].view};
    const hpa_outputs out = {.out = t[FAR_OUT].view, .lse = t[FAR_LSE].view};
    const hpa_gradients gradients = {.d_out = t[FAR_D_OUT].view,
                                     .dq = t[FAR_DQ].view,
                                     .dk = t[FAR_DK].view,
                                     .dv = t[FAR_DV].view};
    assert_ok(hpa_mask_build(plan, &in, mask.data, &exec));
    assert_ok(hpa_forward(plan, mask.data, &in, &out, &exec));
    assert_ok(hpa_backward(plan, mask.data, &in, &out, &gradients, &exec));
    test_buffer_free(&mask);
    test_scratch_free(&scratch);
    hpa_plan_destroy(plan);
}

START_TEST(offsets_beyond_32_bits)
{
    static const char *const names[] = {"q", "k", "v", "d_out", "out", "lse", "dq", "dk", "dv"};
    hpa_desc d = test_desc();
    d.dtype = _i ? HPA_F32 : HPA_BF16;
    d.heads_q = 2;
    d.head_dim = 64;
    d.seq_q = d.seq_kv = 700;
    d.top_k = 128;
    d.sink = 64;
    d.window = 64;
    d.batch = 2;
    far_tensor far[FAR_TENSORS], alone[FAR_TENSORS];
    far_new_all(far, &d);
    far_run(far, &d);
    hpa_desc one = d;
    one.batch = 1;
    far_new_all(alone, &one);
    far_run(alone, &one);
    for (int n = 0; n < FAR_TENSORS; n++)
        assert_far_equal(names[n], &far[n], &alone[n]);
    for (int n = 0; n < FAR_TENSORS; n++) {
        test_device_free(far[n].memory);
        test_device_free(alone[n].memory);
    }
}
END_TEST

#ifdef GRADCHECK_PROGRAM
START_TEST(the_gradient_sweep_passes)
{
    static const char *const dtypes[] = {"f64", "f32", "f16", "bf16"};
    char command[512];
    snprintf(command, sizeof command, "%s --backend cuda --dtype %s", GRADCHECK_PROGRAM,
             dtypes[_i]);
    ck_assert_int_eq(system(command), 0);
}
END_TEST
#endif

static Suite *cuda_suite(void)
{
    Suite *suite = suite_create("cuda");
    const int cases = test_case_count();
    TCase *t = test_add_case(suite, "graphs and streams", 60);
    tcase_add_loop_test(t, a_graph_replays_what_the_calls_do, 0, cases);
    tcase_add_loop_test(t, streams_do_not_disturb_each_other, 0, cases);
    t = test_add_case(suite, "safety", 60);
    tcase_add_loop_test(t, garbage_lengths_touch_nothing_else, 0, 8);
    tcase_add_test(t, devices_that_are_not_there_are_refused);
    tcase_add_test(t, a_launch_that_fails_names_its_kernel);
    tcase_add_loop_test(t, offsets_beyond_32_bits, 0, 2);
#ifdef GRADCHECK_PROGRAM
    t = test_add_case(suite, "gradients", 120);
    tcase_add_loop_test(t, the_gradient_sweep_passes, 0, 4);
#endif
    return suite;
}

int main(void)
{
    return test_run(cuda_suite());
}
