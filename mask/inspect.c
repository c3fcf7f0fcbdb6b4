/* The front door of the calls that look into a mask: check, look up, run. */
#include "mask/inspect.h"
#include "core/check.h"

#include <inttypes.h>
#include <limits.h>

static const hpa_mask_inspector *inspector_of(const hpa_plan *plan)
{
#ifdef HPA_WITH_CUDA
    if (plan->desc.device == HPA_CUDA)
        return &hpa_mask_inspect_cuda;
#endif
    (void)plan;
    return &hpa_mask_inspect_cpu;
}

static hpa_status check_inspect(const hpa_plan *plan, const void *mask, const hpa_exec *exec)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    if (plan->desc.device != HPA_CPU)
        HPA_TRY(hpa_check_scratch(exec, plan->sizes.mask_scratch));
    return hpa_check_mask(plan, mask, true);
}

hpa_status hpa_mask_statistics(const hpa_plan *plan, const void *mask, hpa_mask_stats *stats,
                               const hpa_exec *exec)
{
    HPA_TRY(check_inspect(plan, mask, exec));
    HPA_TRY(hpa_check_pointer("stats", stats));
    return inspector_of(plan)->statistics(plan, mask, stats, exec);
}

hpa_status hpa_mask_validate(const hpa_plan *plan, const void *mask, const hpa_exec *exec)
{
    HPA_TRY(check_inspect(plan, mask, exec));
    return inspector_of(plan)->validate(plan, mask, exec);
}

hpa_status hpa_mask_export_csr(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                               int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec)
{
    HPA_TRY(check_inspect(plan, mask, exec));
    HPA_TRY(hpa_check_pointer("n_blocks", n_blocks));
    return inspector_of(plan)->export_csr(plan, mask, row_ptr, blocks, n_blocks, exec);
}

/* blocks is checked later, when row_ptr has said whether there are any. */
static hpa_status check_import(const hpa_plan *plan, const hpa_inputs *in, const void *mask,
                               const int64_t *row_ptr, const hpa_exec *exec)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    HPA_TRY(hpa_check_mask(plan, mask, false));
    HPA_TRY(hpa_check_pointer("row_ptr", row_ptr));
    if (plan->geometry.packed) {
        HPA_TRY(hpa_check_pointer("in", in));
        HPA_TRY(hpa_check_pointer("in.cu_seqlens_q", in->cu_seqlens_q));
        HPA_TRY(hpa_check_pointer("in.cu_seqlens_kv", in->cu_seqlens_kv));
    }
    return plan->desc.device == HPA_CPU ? HPA_OK
                                        : hpa_check_scratch(exec, plan->sizes.mask_scratch);
}

hpa_status hpa_mask_import_csr(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                               const int64_t *row_ptr, const int32_t *blocks, const hpa_exec *exec)
{
    HPA_TRY(check_import(plan, in, mask, row_ptr, exec));
    return inspector_of(plan)->import_csr(plan, in, mask, row_ptr, blocks, exec);
}

static hpa_status check_snprint(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head,
                                const char *text, size_t size, const hpa_exec *exec)
{
    HPA_TRY(check_inspect(plan, mask, exec));
    const hpa_geometry *g = &plan->geometry;
    if (batch < 0 || batch >= g->batch)
        return hpa_fail(HPA_INVALID_ARGUMENT, "batch is %" PRId64 ", expected 0 to %" PRId64, batch,
                        g->batch - 1);
    if (head < 0 || head >= g->mask_heads)
        return hpa_fail(HPA_INVALID_ARGUMENT, "head is %" PRId64 ", expected 0 to %" PRId64, head,
                        g->mask_heads - 1);
    if (size > 0)
        HPA_TRY(hpa_check_pointer("text", text));
    return HPA_OK;
}

int hpa_mask_snprint(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head,
                     char *text, size_t size, const hpa_exec *exec)
{
    if (check_snprint(plan, mask, batch, head, text, size, exec) != HPA_OK)
        return -1;
    return inspector_of(plan)->snprint(plan, mask, batch, head, text, size, exec);
}

hpa_status hpa_mask_fail_row(const row_view *r, const row_problem *problem)
{
    if (!problem->found)
        return HPA_OK;
    if (problem->number < 0)
        return hpa_fail(HPA_INVALID_MASK,
                        "sequence %" PRId64 ", mask head %" PRId64 ", query block %" PRId64
                        " keeps %" PRId64 " blocks, expected %" PRId64 " to %" PRId64,
                        r->sequence->batch, r->mask_head, r->query_block, r->length, problem->low,
                        problem->high);
    return hpa_fail(HPA_INVALID_MASK,
                    "sequence %" PRId64 ", mask head %" PRId64 ", query block %" PRId64
                    ": kept block number %" PRId64 " is %d, expected %" PRId64 " to %" PRId64,
                    r->sequence->batch, r->mask_head, r->query_block, problem->number,
                    problem->value, problem->low, problem->high);
}

int hpa_mask_text_length(const hpa_sequence *s)
{
    const int64_t length = s->query_blocks * (s->key_blocks + 1);
    if (length <= INT_MAX)
        return (int)length;
    hpa_fail(HPA_INVALID_ARGUMENT, "the drawing has %" PRId64 " characters, more than an int",
             length);
    return -1;
}
