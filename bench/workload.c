/* workload.c - random inputs of one length, and the time of mask, forward and backward on them. */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* Buffers of one length */

#define MAX_SETS 8

/* What a step reads. Steps take turns with the sets, so that no cache holds the next one. */
typedef struct input_set {
    hpa_inputs in;
    hpa_tensor d_out;
} input_set;

typedef struct workload {
    const bench_device *device;
    hpa_plan *plan;
    hpa_plan *search_plan; /* the same but for the transpose; NULL: not measured */
    hpa_sizes sizes;
    void *mask;
    hpa_exec exec;
    input_set sets[MAX_SETS];
    int64_t n_sets;
    hpa_outputs out;
    hpa_gradients grads;
} workload;

/* A contiguous tensor [batch, heads, tokens, dim]; dim 0: [batch, heads, tokens]. */
static bool tensor_alloc(const bench_device *device, hpa_tensor *tensor, hpa_dtype dtype,
                         int64_t batch, int64_t heads, int64_t tokens, int64_t dim)
{
    int64_t row = dim ? dim : 1;
    *tensor = (hpa_tensor){
        .dtype = dtype,
        .ndim = dim ? 4 : 3,
        .shape = {batch, heads, tokens, dim},
        .stride = {heads * tokens * row, tokens * row, row, dim ? 1 : 0},
    };
    tensor->data = device->allocate((size_t)(batch * tensor->stride[0]) * bench_dtype_bytes(dtype));
    return tensor->data;
}

static bool like_q(const workload *work, const hpa_desc *desc, hpa_tensor *tensor)
{
    return tensor_alloc(work->device, tensor, desc->dtype, desc->batch, desc->heads_q, desc->seq_q,
                        desc->head_dim);
}

static bool like_k(const workload *work, const hpa_desc *desc, hpa_tensor *tensor)
{
    return tensor_alloc(work->device, tensor, desc->dtype, desc->batch, desc->heads_kv,
                        desc->seq_kv, desc->head_dim);
}

static int64_t count_sets(const workload *work, const hpa_desc *desc)
{
    const int64_t elements = 2 * desc->batch * desc->head_dim *
                             (desc->heads_q * desc->seq_q + desc->heads_kv * desc->seq_kv);
    const size_t bytes = (size_t)elements * bench_dtype_bytes(desc->dtype);
    const size_t sets = bytes ? work->device->input_bytes / bytes + 1 : 1;
    return sets < MAX_SETS ? (int64_t)sets : MAX_SETS;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool workload_alloc(workload *work, const hpa_desc *desc)
{
    hpa_dtype lse_dtype = desc->dtype == HPA_F64 ? HPA_F64 : HPA_F32;
    work->n_sets = count_sets(work, desc);
    for (int64_t n = 0; n < work->n_sets; n++) {
        input_set *set = &work->sets[n];
        if (!like_q(work, desc, &set->in.q) || !like_k(work, desc, &set->in.k) ||
            !like_k(work, desc, &set->in.v) || !like_q(work, desc, &set->d_out))
            return false;
    }
    work->exec.stream = work->device->stream();
    work->exec.scratch_bytes =
        max_size(work->sizes.mask_scratch,
                 max_size(work->sizes.forward_scratch, work->sizes.backward_scratch));
    work->exec.scratch = work->device->allocate(work->exec.scratch_bytes);
    work->mask = work->device->allocate(work->sizes.mask);
    return work->mask && work->exec.scratch && like_q(work, desc, &work->out.out) &&
           like_q(work, desc, &work->grads.dq) && like_k(work, desc, &work->grads.dk) &&
           like_k(work, desc, &work->grads.dv) &&
           tensor_alloc(work->device, &work->out.lse, lse_dtype, desc->batch, desc->heads_q,
                        desc->seq_q, 0);
}

static void release(const workload *work, void *memory)
{
    if (memory)
        work->device->release(memory);
}

static void workload_free(workload *work)
{
    void *buffers[] = {work->out.out.data,  work->out.lse.data,  work->grads.dq.data,
                       work->grads.dk.data, work->grads.dv.data, work->exec.scratch,
                       work->mask};
    for (size_t n = 0; n < sizeof buffers / sizeof *buffers; n++)
        release(work, buffers[n]);
    for (int64_t n = 0; n < work->n_sets; n++) {
        release(work, work->sets[n].in.q.data);
        release(work, work->sets[n].in.k.data);
        release(work, work->sets[n].in.v.data);
        release(work, work->sets[n].d_out.data);
    }
    hpa_plan_destroy(work->plan);
    hpa_plan_destroy(work->search_plan);
}

/* Random inputs: a pattern over and over, of a length that is no multiple of any row's. */

#define PATTERN INT64_C(4194301)

static bool fill_random(const workload *work, const hpa_tensor *tensor, void *pattern,
                        uint64_t seed)
{
    const size_t element = bench_dtype_bytes(tensor->dtype);
    const int64_t n = tensor->shape[0] * tensor->stride[0];
    bench_random(pattern, tensor->dtype, n < PATTERN ? n : PATTERN, seed);
    bool ok = true;
    for (int64_t first = 0; ok && first < n; first += PATTERN) {
        const int64_t count = n - first < PATTERN ? n - first : PATTERN;
        ok = work->device->write((char *)tensor->data + (size_t)first * element, pattern,
                                 (size_t)count * element);
    }
    return ok;
}

static bool fill_sets(const workload *work)
{
    void *pattern = malloc((size_t)PATTERN * sizeof(double));
    bool ok = pattern;
    for (int64_t n = 0; ok && n < work->n_sets; n++) {
        const input_set *set = &work->sets[n];
        const uint64_t seed = 4 * (uint64_t)n;
        ok = fill_random(work, &set->in.q, pattern, seed + 1) &&
             fill_random(work, &set->in.k, pattern, seed + 2) &&
             fill_random(work, &set->in.v, pattern, seed + 3) &&
             fill_random(work, &set->d_out, pattern, seed + 4);
    }
    free(pattern);
    return ok;
}

/* Measuring */

static bool succeeded(hpa_status status, const char *call)
{
    if (status == HPA_OK)
        return true;
    fprintf(stderr, "hpa-bench: %s: %s: %s\n", call, hpa_status_name(status), hpa_last_error());
    return false;
}

/* Times of the parts of every step. */
typedef struct step_times {
    double *mask_ms, *forward_ms, *backward_ms, *search_ms;
} step_times;

/* One training step; the time of each call goes to its own array. */
static bool run_step(workload *work, const input_set *set, const step_times *times, int64_t r)
{
    const bench_device *device = work->device;
    work->grads.d_out = set->d_out;
    const bool ok =
        device->mark(0) &&
        succeeded(hpa_mask_build(work->plan, &set->in, work->mask, &work->exec),
                  "hpa_mask_build") &&
        device->mark(1) &&
        succeeded(hpa_forward(work->plan, work->mask, &set->in, &work->out, &work->exec),
                  "hpa_forward") &&
        device->mark(2) &&
        succeeded(
            hpa_backward(work->plan, work->mask, &set->in, &work->out, &work->grads, &work->exec),
            "hpa_backward") &&
        device->mark(3) && device->wait();
    if (!ok)
        return false;
    times->mask_ms[r] = device->elapsed_ms(0, 1);
    times->forward_ms[r] = device->elapsed_ms(1, 2);
    times->backward_ms[r] = device->elapsed_ms(2, 3);
    return true;
}

/* The mask alone, without its transpose. The mask has room for more. */
static bool run_search(workload *work, const input_set *set, const step_times *times, int64_t r)
{
    const bench_device *device = work->device;
    if (!device->mark(0) ||
        !succeeded(hpa_mask_build(work->search_plan, &set->in, work->mask, &work->exec),
                   "hpa_mask_build") ||
        !device->mark(1) || !device->wait())
        return false;
    times->search_ms[r] = device->elapsed_ms(0, 1);
    return true;
}

/* The search alone, on the inputs of the next round, so that the step finds none of its own in cache,
 * and then a whole step: both at the clock that the step before leaves, and with the step's mask as
 * the one that is looked into afterwards. The first round warms up: its times are written over. */
static bool time_rounds(workload *work, int64_t repeat, const step_times *times)
{
    bool ok = true;
    for (int64_t r = -1; ok && r < repeat; r++) {
        const input_set *sets = work->sets;
        const int64_t place = r < 0 ? 0 : r, now = r + 1, n_sets = work->n_sets;
        ok = (!work->search_plan || run_search(work, &sets[(now + 1) % n_sets], times, place)) &&
             run_step(work, &sets[now % n_sets], times, place);
    }
    return ok;
}

static bool time_steps(workload *work, int64_t repeat, bench_result *result)
{
    double *all = calloc(4 * (size_t)repeat, sizeof *all);
    const step_times times = {all, all + repeat, all + 2 * repeat, all + 3 * repeat};
    const bool ok = all && time_rounds(work, repeat, &times);
    if (ok) {
        result->mask_ms = bench_median(times.mask_ms, repeat);
        result->forward_ms = bench_median(times.forward_ms, repeat);
        result->backward_ms = bench_median(times.backward_ms, repeat);
        result->transpose_ms =
            work->search_plan ? result->mask_ms - bench_median(times.search_ms, repeat) : 0;
    }
    free(all);
    return ok;
}

/* Equal inputs, equal bits */

#define RESULTS 5

/* What a step writes, in host memory: as the first step wrote it, and room for a later one's. */
typedef struct kept_results {
    const hpa_tensor *tensors[RESULTS];
    void *first[RESULTS], *again;
} kept_results;

static const char *const result_names[RESULTS] = {"out", "lse", "dq", "dk", "dv"};

static size_t tensor_bytes(const hpa_tensor *tensor)
{
    return (size_t)(tensor->shape[0] * tensor->stride[0]) * bench_dtype_bytes(tensor->dtype);
}

static bool out_of_memory(void)
{
    fprintf(stderr, "hpa-bench: not enough memory to keep results\n");
    return false;
}

static bool keep_results(const workload *work, kept_results *kept)
{
    size_t most = 0;
    for (int n = 0; n < RESULTS; n++) {
        const size_t bytes = tensor_bytes(kept->tensors[n]);
        most = max_size(most, bytes);
        kept->first[n] = malloc(bytes);
        if (!kept->first[n])
            return out_of_memory();
        if (!work->device->read(kept->first[n], kept->tensors[n]->data, bytes))
            return false;
    }
    kept->again = malloc(most);
    return kept->again || out_of_memory();
}

static bool compare_results(const workload *work, const kept_results *kept, int64_t step)
{
    for (int n = 0; n < RESULTS; n++) {
        const size_t bytes = tensor_bytes(kept->tensors[n]);
        if (!work->device->read(kept->again, kept->tensors[n]->data, bytes))
            return false;
        if (memcmp(kept->again, kept->first[n], bytes)) {
            fprintf(stderr, "hpa-bench: %lld tokens: %s of step %lld differs from the first\n",
                    (long long)kept->tensors[n]->shape[2], result_names[n], (long long)step);
            return false;
        }
    }
    return true;
}

static bool check_repeats(workload *work, int64_t repeats)
{
    double unused[4];
    const step_times times = {unused, unused + 1, unused + 2, unused + 3};
    const hpa_gradients *grads = &work->grads;
    kept_results kept = {
        .tensors = {&work->out.out, &work->out.lse, &grads->dq, &grads->dk, &grads->dv}};
    bool ok = run_step(work, work->sets, &times, 0) && keep_results(work, &kept);
    for (int64_t n = 1; ok && n <= repeats; n++)
        ok = run_step(work, work->sets, &times, 0) && compare_results(work, &kept, n);
    for (int n = 0; n < RESULTS; n++)
        free(kept.first[n]);
    free(kept.again);
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

static bool measure_workload(workload *work, const hpa_desc *desc, const bench_options *options,
                             bench_result *result)
{
    hpa_mask_stats stats;
    if (!fill_sets(work) || !time_steps(work, options->repeat, result) ||
        (options->check_repeats > 0 && !check_repeats(work, options->check_repeats)) ||
        !succeeded(hpa_mask_statistics(work->plan, work->mask, &stats, &work->exec),
                   "hpa_mask_statistics"))
        return false;
    result->density = stats.density;
    result->pairs = stats.density * dense_pairs(desc);
    return true;
}

/* On CUDA, where the mask's cost is small, its transpose is told apart. */
static bool create_plans(workload *work, const hpa_desc *desc)
{
    hpa_desc search = *desc;
    search.training = false;
    return succeeded(hpa_plan_create(&work->plan, desc), "hpa_plan_create") &&
           succeeded(hpa_plan_sizes(work->plan, &work->sizes), "hpa_plan_sizes") &&
           (desc->device == HPA_CPU ||
            succeeded(hpa_plan_create(&work->search_plan, &search), "hpa_plan_create"));
}

bool bench_measure(const bench_options *options, const bench_device *device, int64_t seq,
                   bench_result *result)
{
    hpa_desc desc = bench_desc(options, seq);
    workload work = {.device = device};
    bool ok = create_plans(&work, &desc);
    if (ok && !workload_alloc(&work, &desc)) {
        fprintf(stderr, "hpa-bench: not enough memory for %lld tokens\n", (long long)seq);
        ok = false;
    }
    if (ok) {
        *result = (bench_result){.seq = seq,
                                 .tree_levels = tree_levels(&desc),
                                 .mask_bytes = work.sizes.mask,
                                 .scratch_bytes = work.exec.scratch_bytes};
        ok = measure_workload(&work, &desc, options, result);
    }
    workload_free(&work);
    return ok;
}
