/* workload.c - random inputs of one length, and the time of mask, forward and backward on them. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double bench_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

void *bench_alloc(size_t bytes)
{
    const size_t alignment = 64;
    return aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
}

/* Random inputs */

/* splitmix64 */
static uint64_t random_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The sum of four uniform numbers: nearly normal, mean 0, variance 1. */
static double random_normal(uint64_t *state)
{
    const double sqrt_3 = 1.7320508075688772;
    uint64_t bits = random_bits(state);
    double sum = 0;
    for (int part = 0; part < 4; part++)
        sum += (double)(bits >> (16 * part) & 0xffff);
    return (sum / 65535 - 2) * sqrt_3;
}

/* Cuts the last bits off: good enough for inputs that are random anyway. */
static uint16_t to_16_bits(double value, hpa_dtype dtype)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    if (dtype == HPA_BF16)
        return (uint16_t)(bits >> 16);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t smallest_normal = 113u << 23; /* 2^-14; below it: zero */
    if (magnitude < smallest_normal)
        return (uint16_t)sign;
    return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13);
}

static void fill_random(const hpa_tensor *tensor, uint64_t seed)
{
    int64_t n = tensor->shape[0] * tensor->stride[0];
    for (int64_t i = 0; i < n; i++) {
        double value = random_normal(&seed);
        if (tensor->dtype == HPA_F64)
            ((double *)tensor->data)[i] = value;
        else if (tensor->dtype == HPA_F32)
            ((float *)tensor->data)[i] = (float)value;
        else
            ((uint16_t *)tensor->data)[i] = to_16_bits(value, tensor->dtype);
    }
}

/* Buffers of one length */

typedef struct workload {
    hpa_plan *plan;
    hpa_sizes sizes;
    void *mask;
    hpa_exec exec;
    hpa_inputs in;
    hpa_outputs out;
    hpa_gradients grads;
} workload;

static size_t dtype_bytes(hpa_dtype dtype)
{
    return dtype == HPA_F64 ? 8 : dtype == HPA_F32 ? 4 : 2;
}

/* A contiguous tensor [batch, heads, tokens, dim]; dim 0: [batch, heads, tokens]. */
static bool tensor_alloc(hpa_tensor *tensor, hpa_dtype dtype, int64_t batch, int64_t heads,
                         int64_t tokens, int64_t dim)
{
    int64_t row = dim ? dim : 1;
    *tensor = (hpa_tensor){
        .dtype = dtype,
        .ndim = dim ? 4 : 3,
        .shape = {batch, heads, tokens, dim},
        .stride = {heads * tokens * row, tokens * row, row, dim ? 1 : 0},
    };
    tensor->data = bench_alloc((size_t)(batch * tensor->stride[0]) * dtype_bytes(dtype));
    return tensor->data;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool workload_alloc(workload *work, const hpa_desc *desc)
{
    hpa_dtype lse_dtype = desc->dtype == HPA_F64 ? HPA_F64 : HPA_F32;
    hpa_tensor *shaped_as_q[] = {&work->in.q, &work->out.out, &work->grads.d_out, &work->grads.dq};
    hpa_tensor *shaped_as_k[] = {&work->in.k, &work->in.v, &work->grads.dk, &work->grads.dv};
    for (int n = 0; n < 4; n++) {
        if (!tensor_alloc(shaped_as_q[n], desc->dtype, desc->batch, desc->heads_q, desc->seq_q,
                          desc->head_dim) ||
            !tensor_alloc(shaped_as_k[n], desc->dtype, desc->batch, desc->heads_kv, desc->seq_kv,
                          desc->head_dim))
            return false;
    }
    work->exec.scratch_bytes =
        max_size(work->sizes.mask_scratch,
                 max_size(work->sizes.forward_scratch, work->sizes.backward_scratch));
    work->exec.scratch = bench_alloc(work->exec.scratch_bytes);
    work->mask = bench_alloc(work->sizes.mask);
    return work->mask && work->exec.scratch &&
           tensor_alloc(&work->out.lse, lse_dtype, desc->batch, desc->heads_q, desc->seq_q, 0);
}

static void workload_free(workload *work)
{
    void *buffers[] = {work->in.q.data,     work->in.k.data,     work->in.v.data,
                       work->out.out.data,  work->out.lse.data,  work->grads.d_out.data,
                       work->grads.dq.data, work->grads.dk.data, work->grads.dv.data,
                       work->exec.scratch,  work->mask};
    for (size_t n = 0; n < sizeof buffers / sizeof *buffers; n++)
        free(buffers[n]);
    hpa_plan_destroy(work->plan);
}

/* Measuring */

static bool succeeded(hpa_status status, const char *call)
{
    if (status == HPA_OK)
        return true;
    fprintf(stderr, "hpa-bench: %s: %s: %s\n", call, hpa_status_name(status), hpa_last_error());
    return false;
}

/* One training step; the time of each call goes to its own array. */
static bool run_step(workload *work, double *mask_ms, double *forward_ms, double *backward_ms)
{
    double start = bench_now_ms();
    if (!succeeded(hpa_mask_build(work->plan, &work->in, work->mask, &work->exec),
                   "hpa_mask_build"))
        return false;
    double built = bench_now_ms();
    if (!succeeded(hpa_forward(work->plan, work->mask, &work->in, &work->out, &work->exec),
                   "hpa_forward"))
        return false;
    double forward = bench_now_ms();
    if (!succeeded(
            hpa_backward(work->plan, work->mask, &work->in, &work->out, &work->grads, &work->exec),
            "hpa_backward"))
        return false;
    *mask_ms = built - start;
    *forward_ms = forward - built;
    *backward_ms = bench_now_ms() - forward;
    return true;
}

/* The first step warms up: its times are written over by those of the second. */
static bool time_steps(workload *work, int64_t repeat, bench_result *result)
{
    double *times = calloc(3 * (size_t)repeat, sizeof *times);
    double *mask_ms = times, *forward_ms = times + repeat, *backward_ms = times + 2 * repeat;
    bool ok = times && run_step(work, mask_ms, forward_ms, backward_ms);
    for (int64_t r = 0; ok && r < repeat; r++)
        ok = run_step(work, mask_ms + r, forward_ms + r, backward_ms + r);
    if (ok) {
        result->mask_ms = bench_median(mask_ms, repeat);
        result->forward_ms = bench_median(forward_ms, repeat);
        result->backward_ms = bench_median(backward_ms, repeat);
    }
    free(times);
    return ok;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Levels of the search for the last query block, which has the most blocks to choose from. */
static int64_t tree_levels(const hpa_desc *desc)
{
    int64_t window = desc->causal && desc->window < 1 ? 1 : desc->window;
    int64_t first_query = (desc->seq_q - 1) / desc->block_q * desc->block_q;
    int64_t first_key = first_query - window + 1;
    int64_t window_start = first_key > 0 ? first_key / desc->block_k : 0;
    int64_t n_candidates = window_start - ceil_div(desc->sink, desc->block_k);
    int64_t n_kept = ceil_div(desc->top_k, desc->block_k);
    if (n_kept == 0 || n_candidates <= n_kept)
        return 0;
    int64_t n_levels = 0;
    while ((n_kept * desc->beam) << n_levels < n_candidates)
        n_levels++;
    return n_levels ? n_levels : 1;
}

static double dense_pairs(const hpa_desc *desc)
{
    double tokens = (double)desc->seq_q;
    double pairs = desc->causal ? tokens * (tokens + 1) / 2 : tokens * tokens;
    return pairs * (double)desc->batch * (double)desc->heads_q;
}

static bool measure_workload(workload *work, const hpa_desc *desc, int64_t repeat,
                             bench_result *result)
{
    hpa_mask_stats stats;
    fill_random(&work->in.q, 1);
    fill_random(&work->in.k, 2);
    fill_random(&work->in.v, 3);
    fill_random(&work->grads.d_out, 4);
    if (!time_steps(work, repeat, result) ||
        !succeeded(hpa_mask_statistics(work->plan, work->mask, &stats, &work->exec),
                   "hpa_mask_statistics"))
        return false;
    result->density = stats.density;
    result->pairs = stats.density * dense_pairs(desc);
    return true;
}

bool bench_measure(const bench_options *options, int64_t seq, bench_result *result)
{
    hpa_desc desc = bench_desc(options, seq);
    workload work = {0};
    bool ok = succeeded(hpa_plan_create(&work.plan, &desc), "hpa_plan_create") &&
              succeeded(hpa_plan_sizes(work.plan, &work.sizes), "hpa_plan_sizes");
    if (ok && !workload_alloc(&work, &desc)) {
        fprintf(stderr, "hpa-bench: not enough memory for %lld tokens\n", (long long)seq);
        ok = false;
    }
    if (ok) {
        *result = (bench_result){.seq = seq,
                                 .tree_levels = tree_levels(&desc),
                                 .mask_bytes = work.sizes.mask,
                                 .scratch_bytes = work.exec.scratch_bytes};
        ok = measure_workload(&work, &desc, options->repeat, result);
    }
    workload_free(&work);
    return ok;
}
