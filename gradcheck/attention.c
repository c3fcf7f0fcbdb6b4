/* hpa_gradcheck_attention: sets the stage, runs the code under test once, and asks for the lines of
 * the report. */
#include "attention.h"

#include "convert.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const written_names[N_WRITTEN] = {"out", "lse", "dq", "dk", "dv"};

/* A failure of the library, in its own words. */
static hpa_status library_error(struct attention *attention, hpa_status status, const char *call)
{
    return report_error(attention->report, status, "%s: %s: %s", call, hpa_status_name(status),
                        hpa_last_error());
}

/* The status of a call whose work may still be under way: waits for it. */
static hpa_status finish(struct attention *attention, hpa_status status, const char *call)
{
    if (status != HPA_OK)
        return library_error(attention, status, call);
    if (!memory_of(attention->desc.device)->wait())
        return report_error(attention->report, HPA_CUDA_ERROR, "%s: its kernels failed", call);
    return HPA_OK;
}

static hpa_exec exec_of(const struct attention *attention)
{
    return (hpa_exec){.scratch = attention->scratch.data,
                      .scratch_bytes = attention->scratch.bytes};
}

static hpa_inputs inputs_of(const struct attention *attention)
{
    return (hpa_inputs){.q = attention->q.view,
                        .k = attention->k.view,
                        .v = attention->v.view,
                        .cu_seqlens_q = attention->cu_seqlens_q.data,
                        .cu_seqlens_kv = attention->cu_seqlens_kv.data};
}

hpa_status attention_forward(struct attention *attention)
{
    hpa_exec exec = exec_of(attention);
    hpa_inputs in = inputs_of(attention);
    hpa_outputs out = {.out = attention->written[OUT].view, .lse = attention->written[LSE].view};
    tensor_fill(&attention->written[OUT], NAN);
    tensor_fill(&attention->written[LSE], NAN);
    hpa_status status = hpa_forward(attention->plan, attention->mask.data, &in, &out, &exec);
    return finish(attention, status, "hpa_forward");
}

void attention_fill_gradients(struct attention *attention, double value)
{
    for (int n = DQ; n <= DV; n++)
        tensor_fill(&attention->written[n], value);
}

hpa_status attention_backward(struct attention *attention, bool accumulate)
{
    hpa_exec exec = exec_of(attention);
    hpa_inputs in = inputs_of(attention);
    hpa_outputs out = {.out = attention->written[OUT].view, .lse = attention->written[LSE].view};
    hpa_gradients gradients = {.d_out = attention->d_out.view,
                               .d_lse = attention->d_lse.view,
                               .dq = attention->written[DQ].view,
                               .dk = attention->written[DK].view,
                               .dv = attention->written[DV].view,
                               .accumulate = accumulate};
    const hpa_gradcheck_backward *backward = &attention->backward;
    if (backward->run) {
        hpa_status status = backward->run(backward->context, attention->plan, attention->mask.data,
                                          &in, &out, &gradients, &exec);
        return status == HPA_OK
                   ? HPA_OK
                   : report_error(attention->report, status, "the backward under test: %s",
                                  hpa_status_name(status));
    }
    hpa_status status =
        hpa_backward(attention->plan, attention->mask.data, &in, &out, &gradients, &exec);
    return finish(attention, status, "hpa_backward");
}

static hpa_status check_offsets(const struct attention *attention, const char *name,
                                const int32_t *offsets, int64_t total, int64_t longest)
{
    hpa_gradcheck_report *report = attention->report;
    int64_t batch = attention->desc.batch;
    if (!offsets)
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "%s is NULL; expected %" PRId64 " offsets for a packed description",
                            name, batch + 1);
    if (offsets[0] != 0)
        return report_error(report, HPA_INVALID_ARGUMENT, "%s[0] is %" PRId32 "; expected 0", name,
                            offsets[0]);
    for (int64_t b = 0; b < batch; b++) {
        int64_t length = (int64_t)offsets[b + 1] - offsets[b];
        if (length < 0 || length > longest)
            return report_error(report, HPA_INVALID_ARGUMENT,
                                "%s gives sequence %" PRId64 " a length of %" PRId64
                                "; expected 0 to %" PRId64,
                                name, b, length, longest);
    }
    if (offsets[batch] != total)
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "%s ends at %" PRId32 "; expected the total of %" PRId64, name,
                            offsets[batch], total);
    return HPA_OK;
}

static hpa_status create_plan(struct attention *attention, const int32_t *cu_seqlens_q,
                              const int32_t *cu_seqlens_kv)
{
    const hpa_desc *desc = &attention->desc;
    hpa_status status = hpa_plan_create(&attention->plan, desc);
    if (status != HPA_OK)
        return report_error(attention->report, status, "%s", hpa_last_error());
    if (!memory_of(desc->device))
        return report_error(attention->report, HPA_UNSUPPORTED,
                            "desc.device is %d; this build of the checker cannot reach its memory",
                            (int)desc->device);
    attention->device_before = memory_of(desc->device)->enter(desc->device_id);
    attention->entered = true;
    if (desc->packed)
        status = check_offsets(attention, "cu_seqlens_q", cu_seqlens_q, desc->total_q, desc->seq_q);
    if (desc->packed && status == HPA_OK)
        status =
            check_offsets(attention, "cu_seqlens_kv", cu_seqlens_kv, desc->total_kv, desc->seq_kv);
    return status;
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

static hpa_status create_offsets(struct buffer *buffer, const struct attention *attention,
                                 const int32_t *offsets)
{
    size_t bytes = (size_t)(attention->desc.batch + 1) * sizeof(int32_t);
    hpa_status status = buffer_create(buffer, attention->desc.device, bytes);
    if (status == HPA_OK)
        buffer_write(buffer, offsets);
    return status;
}

static hpa_status create_buffers(struct attention *attention, const int32_t *cu_seqlens_q,
                                 const int32_t *cu_seqlens_kv)
{
    hpa_device device = attention->desc.device;
    hpa_sizes sizes;
    hpa_status status = hpa_plan_sizes(attention->plan, &sizes);
    size_t scratch =
        largest(sizes.mask_scratch, largest(sizes.forward_scratch, sizes.backward_scratch));
    if (status == HPA_OK)
        status = buffer_create(&attention->mask, device, sizes.mask);
    if (status == HPA_OK)
        status = buffer_create(&attention->scratch, device, scratch);
    if (status == HPA_OK && attention->desc.packed)
        status = create_offsets(&attention->cu_seqlens_q, attention, cu_seqlens_q);
    if (status == HPA_OK && attention->desc.packed)
        status = create_offsets(&attention->cu_seqlens_kv, attention, cu_seqlens_kv);
    return status;
}

/* A tensor with values from the host, or without: a copy of what the library writes will be kept. */
static hpa_status create_input(struct attention *attention, struct tensor *tensor,
                               const struct tensor_form *form, const double *values)
{
    hpa_status status = tensor_create(tensor, attention->desc.device, form);
    if (status == HPA_OK)
        tensor_write(tensor, values);
    return status;
}

static hpa_status create_written(struct attention *attention, int which,
                                 const struct tensor_form *form)
{
    struct tensor *tensor = &attention->written[which];
    hpa_status status = tensor_create(tensor, attention->desc.device, form);
    attention->first[which] = calloc((size_t)tensor->elements + 1, sizeof(double));
    attention->first_stored[which] = calloc(tensor->memory.bytes + 1, 1);
    if (status == HPA_OK && !(attention->first[which] && attention->first_stored[which]))
        return HPA_OUT_OF_MEMORY;
    return status;
}

enum { N_INPUTS = 5 }; /* q, k, v, d_out and d_lse */

static hpa_status create_tensors(struct attention *attention)
{
    const hpa_desc *desc = &attention->desc;
    const struct problem *problem = &attention->problem;
    struct tensor_form query = {.dtype = desc->dtype,
                                .packed = desc->packed,
                                .batch = desc->batch,
                                .tokens = problem->tokens_q,
                                .heads = desc->heads_q,
                                .dim = desc->head_dim};
    struct tensor_form key = query, lse = query;
    key.tokens = problem->tokens_kv;
    key.heads = desc->heads_kv;
    lse.dim = 0;
    lse.dtype = desc->dtype == HPA_F64 ? HPA_F64 : HPA_F32;

    const struct {
        struct tensor *tensor;
        const struct tensor_form *form;
        const double *values;
    } inputs[N_INPUTS] = {{&attention->q, &query, problem->q},
                          {&attention->k, &key, problem->k},
                          {&attention->v, &key, problem->v},
                          {&attention->d_out, &query, problem->d_out},
                          {&attention->d_lse, &lse, problem->d_lse}};
    const struct tensor_form *written[N_WRITTEN] = {&query, &lse, &query, &key, &key};

    hpa_status status = HPA_OK;
    for (int n = 0; n < N_INPUTS && status == HPA_OK; n++)
        status = create_input(attention, inputs[n].tensor, inputs[n].form, inputs[n].values);
    for (int n = 0; n < N_WRITTEN && status == HPA_OK; n++)
        status = create_written(attention, n, written[n]);
    return status;
}

static hpa_status set_stage(struct attention *attention, const int32_t *cu_seqlens_q,
                            const int32_t *cu_seqlens_kv)
{
    hpa_status status = create_plan(attention, cu_seqlens_q, cu_seqlens_kv);
    if (status != HPA_OK)
        return status;
    status = create_buffers(attention, cu_seqlens_q, cu_seqlens_kv);
    if (status == HPA_OK)
        status = problem_create(&attention->problem, &attention->desc, cu_seqlens_q, cu_seqlens_kv,
                                &attention->random);
    if (status == HPA_OK)
        status = create_tensors(attention);
    if (status == HPA_OUT_OF_MEMORY)
        return report_error(attention->report, status, "no memory for the tensors of the check");
    return status;
}

static void strike_stage(struct attention *attention)
{
    struct tensor *const inputs[N_INPUTS] = {&attention->q, &attention->k, &attention->v,
                                             &attention->d_out, &attention->d_lse};
    for (int n = 0; n < N_INPUTS; n++)
        tensor_destroy(inputs[n]);
    for (int n = 0; n < N_WRITTEN; n++) {
        tensor_destroy(&attention->written[n]);
        free(attention->first[n]);
        free(attention->first_stored[n]);
    }
    problem_destroy(&attention->problem);
    buffer_destroy(&attention->mask);
    buffer_destroy(&attention->scratch);
    buffer_destroy(&attention->cu_seqlens_q);
    buffer_destroy(&attention->cu_seqlens_kv);
    hpa_plan_destroy(attention->plan);
    if (attention->entered)
        memory_of(attention->desc.device)->enter(attention->device_before);
}

static hpa_status export_mask(struct attention *attention)
{
    hpa_exec exec = exec_of(attention);
    const void *mask = attention->mask.data;
    int64_t n_blocks = 0;
    hpa_status status = hpa_mask_export_csr(attention->plan, mask, NULL, NULL, &n_blocks, &exec);
    if (status != HPA_OK)
        return library_error(attention, status, "hpa_mask_export_csr");

    int64_t rows = problem_mask_rows(&attention->problem);
    int64_t *row_ptr = calloc((size_t)rows + 1, sizeof *row_ptr);
    int32_t *blocks = calloc((size_t)n_blocks + 1, sizeof *blocks);
    if (row_ptr && blocks)
        status = hpa_mask_export_csr(attention->plan, mask, row_ptr, blocks, &n_blocks, &exec);
    else
        status = report_error(attention->report, HPA_OUT_OF_MEMORY, "no memory for the mask");
    if (row_ptr && blocks && status != HPA_OK)
        status = library_error(attention, status, "hpa_mask_export_csr");
    if (status == HPA_OK)
        problem_set_mask(&attention->problem, row_ptr, blocks);
    free(row_ptr);
    free(blocks);
    return status;
}

static hpa_status build_mask(struct attention *attention)
{
    hpa_exec exec = exec_of(attention);
    hpa_inputs in = inputs_of(attention);
    hpa_mask_stats stats;
    hpa_status status = hpa_mask_build(attention->plan, &in, attention->mask.data, &exec);
    status = finish(attention, status, "hpa_mask_build");
    if (status != HPA_OK)
        return status;
    status = hpa_mask_validate(attention->plan, attention->mask.data, &exec);
    if (status != HPA_OK)
        return library_error(attention, status, "hpa_mask_validate");
    status = hpa_mask_statistics(attention->plan, attention->mask.data, &stats, &exec);
    if (status != HPA_OK)
        return library_error(attention, status, "hpa_mask_statistics");
    attention->report->fingerprint = stats.fingerprint;
    attention->report->density = stats.density;
    return export_mask(attention);
}

/* Whether the mask is valid and the one that was built. If not, the report's message says so. */
static bool mask_unchanged(struct attention *attention, int64_t *blocks)
{
    hpa_exec exec = exec_of(attention);
    hpa_mask_stats stats = {0};
    hpa_gradcheck_report *report = attention->report;
    const void *mask = attention->mask.data;
    if (hpa_mask_validate(attention->plan, mask, &exec) != HPA_OK ||
        hpa_mask_statistics(attention->plan, mask, &stats, &exec) != HPA_OK) {
        report_error(report, HPA_INVALID_MASK,
                     "the mask was damaged while gradients were computed: %s", hpa_last_error());
        return false;
    }
    *blocks = stats.blocks;
    if (stats.fingerprint == report->fingerprint)
        return true;
    report_error(report, HPA_INVALID_MASK,
                 "the mask's fingerprint was %016" PRIx64 " and became %016" PRIx64
                 " while gradients were computed",
                 report->fingerprint, stats.fingerprint);
    return false;
}

static void add_fingerprint(struct attention *attention, bool unchanged, int64_t blocks)
{
    hpa_gradcheck_result *result = report_next(attention->report);
    struct shape shape = {.ndim = 1, .length = {blocks}};
    result_start(result, "mask fingerprint", HPA_GRADCHECK_PROPERTY, &shape);
    result->checked = blocks;
    result->passed = unchanged;
}

static hpa_status run_first(struct attention *attention)
{
    hpa_status status = attention_forward(attention);
    attention_fill_gradients(attention, NAN);
    if (status == HPA_OK)
        status = attention_backward(attention, false);
    for (int n = 0; n < N_WRITTEN && status == HPA_OK; n++) {
        struct tensor *tensor = &attention->written[n];
        tensor_read(tensor, attention->first[n]);
        memcpy(attention->first_stored[n], tensor->stored, tensor->memory.bytes);
    }
    return status;
}

static hpa_status run_check(struct attention *attention)
{
    int64_t blocks = 0;
    hpa_status status = build_mask(attention);
    if (status == HPA_OK)
        status = run_first(attention);
    if (status != HPA_OK)
        return status;
    bool unchanged = mask_unchanged(attention, &blocks);
    status = attention_compare(attention);
    if (status == HPA_OK && unchanged) { /* else more calls would only refuse the mask */
        status = attention_properties(attention);
        unchanged = status == HPA_OK && mask_unchanged(attention, &blocks);
    }
    if (status == HPA_OK)
        add_fingerprint(attention, unchanged, blocks);
    return status;
}

hpa_status hpa_gradcheck_attention(const hpa_desc *desc, const int32_t *cu_seqlens_q,
                                   const int32_t *cu_seqlens_kv,
                                   const hpa_gradcheck_backward *backward,
                                   const hpa_gradcheck_options *options,
                                   hpa_gradcheck_report *report)
{
    if (!report)
        return HPA_INVALID_ARGUMENT;
    *report = (hpa_gradcheck_report){0};
    if (!desc)
        return report_error(report, HPA_INVALID_ARGUMENT, "desc is NULL; expected a description");
    struct attention attention = {
        .desc = *desc,
        .options = options ? *options : hpa_gradcheck_attention_options(),
        .backward = backward ? *backward : (hpa_gradcheck_backward){0},
        .report = report,
    };
    attention.desc.training = true;
    attention.random.state = attention.options.seed;
    hpa_status status = check_options(&attention.options, report);
    if (status == HPA_OK)
        status = set_stage(&attention, cu_seqlens_q, cu_seqlens_kv);
    if (status == HPA_OK)
        status = run_check(&attention);
    if (status == HPA_OK)
        report_finish(report);
    strike_stage(&attention);
    return status;
}
