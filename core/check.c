#include "core/check.h"

#include <inttypes.h>
#include <string.h>

hpa_status hpa_check_pointer(const char *name, const void *pointer)
{
    return pointer ? HPA_OK : hpa_fail(HPA_INVALID_ARGUMENT, "%s is NULL", name);
}

hpa_status hpa_check_header(const hpa_plan *plan, const void *mask)
{
    const hpa_mask_header expected = hpa_mask_header_of(&plan->geometry);
    hpa_mask_header header;
    memcpy(&header, mask, sizeof header);
    if (header.magic != expected.magic)
        return hpa_fail(HPA_INVALID_MASK,
                        "mask begins with %016" PRIx64 ", expected %016" PRIx64
                        ": it was not built, or is damaged",
                        header.magic, expected.magic);
    if (memcmp(&header, &expected, sizeof header) != 0)
        return hpa_fail(HPA_INVALID_MASK,
                        "mask was built by a plan of other shapes: batch %" PRId64
                        ", mask heads %" PRId64 ", seq_q %" PRId64 ", seq_kv %" PRId64
                        ", block_q %" PRId64 ", block_k %" PRId64 ", capacity %" PRId64,
                        header.batch, header.mask_heads, header.seq_q, header.seq_kv,
                        header.block_q, header.block_k, header.capacity);
    return HPA_OK;
}

hpa_status hpa_check_mask(const hpa_plan *plan, const void *mask, bool is_read)
{
    HPA_TRY(hpa_check_pointer("mask", mask));
    if ((uintptr_t)mask % HPA_BUFFER_ALIGNMENT != 0)
        return hpa_fail(HPA_INVALID_ALIGNMENT, "mask is %p, expected a multiple of %d bytes", mask,
                        HPA_BUFFER_ALIGNMENT);
    if (is_read && plan->desc.device == HPA_CPU)
        return hpa_check_header(plan, mask);
    return HPA_OK;
}

static hpa_status check_cu_seqlens(const char *name, const int32_t *cu_seqlens, int64_t batch,
                                   int64_t longest, int64_t total)
{
    if (cu_seqlens[0] != 0)
        return hpa_fail(HPA_INVALID_ARGUMENT, "%s[0] is %d, expected 0", name, cu_seqlens[0]);
    for (int64_t b = 0; b < batch; b++) {
        const int64_t length = (int64_t)cu_seqlens[b + 1] - cu_seqlens[b];
        if (length < 0 || length > longest)
            return hpa_fail(HPA_INVALID_ARGUMENT,
                            "%s[%" PRId64 "] - %s[%" PRId64 "] is %" PRId64
                            ", expected 0 to %" PRId64,
                            name, b + 1, name, b, length, longest);
    }
    if (cu_seqlens[batch] > total)
        return hpa_fail(HPA_INVALID_ARGUMENT, "%s[%" PRId64 "] is %d, expected at most %" PRId64,
                        name, batch, cu_seqlens[batch], total);
    return HPA_OK;
}

hpa_status hpa_check_lengths(const hpa_plan *plan, const hpa_inputs *in)
{
    const hpa_geometry *g = &plan->geometry;
    HPA_TRY(check_cu_seqlens("in.cu_seqlens_q", in->cu_seqlens_q, g->batch, g->seq_q, g->total_q));
    return check_cu_seqlens("in.cu_seqlens_kv", in->cu_seqlens_kv, g->batch, g->seq_kv,
                            g->total_kv);
}

hpa_status hpa_check_inputs(const hpa_plan *plan, const hpa_inputs *in, bool reads_v)
{
    const hpa_geometry *g = &plan->geometry;
    const hpa_dtype dtype = plan->desc.dtype;
    HPA_TRY(hpa_check_pointer("in", in));
    const hpa_expected q = hpa_expect(g, "in.q", dtype, true, true, false);
    const hpa_expected k = hpa_expect(g, "in.k", dtype, false, true, false);
    const hpa_expected v = hpa_expect(g, "in.v", dtype, false, true, false);
    HPA_TRY(hpa_tensor_check(&in->q, &q));
    HPA_TRY(hpa_tensor_check(&in->k, &k));
    if (reads_v)
        HPA_TRY(hpa_tensor_check(&in->v, &v));
    if (!g->packed)
        return HPA_OK;
    HPA_TRY(hpa_check_pointer("in.cu_seqlens_q", in->cu_seqlens_q));
    HPA_TRY(hpa_check_pointer("in.cu_seqlens_kv", in->cu_seqlens_kv));
    return plan->desc.device == HPA_CPU ? hpa_check_lengths(plan, in) : HPA_OK;
}

hpa_status hpa_check_same_lengths(const hpa_plan *plan, const void *mask, const hpa_inputs *in)
{
    const hpa_geometry *g = &plan->geometry;
    if (!g->packed || plan->desc.device != HPA_CPU)
        return HPA_OK;
    const hpa_mask m = hpa_mask_view_const(g, mask);
    const size_t bytes = sizeof(int32_t) * (size_t)(g->batch + 1);
    if (memcmp(m.cu_seqlens_q, in->cu_seqlens_q, bytes) != 0)
        return hpa_fail(HPA_INVALID_MASK, "in.cu_seqlens_q is not what the mask was built for");
    if (memcmp(m.cu_seqlens_kv, in->cu_seqlens_kv, bytes) != 0)
        return hpa_fail(HPA_INVALID_MASK, "in.cu_seqlens_kv is not what the mask was built for");
    return HPA_OK;
}

hpa_status hpa_check_scratch(const hpa_exec *exec, size_t needed)
{
    const size_t given = exec ? exec->scratch_bytes : 0;
    if (given < needed)
        return hpa_fail(HPA_BUFFER_TOO_SMALL, "exec.scratch_bytes is %zu, expected at least %zu",
                        given, needed);
    if (needed == 0)
        return HPA_OK;
    HPA_TRY(hpa_check_pointer("exec.scratch", exec->scratch));
    if ((uintptr_t)exec->scratch % HPA_BUFFER_ALIGNMENT != 0)
        return hpa_fail(HPA_INVALID_ALIGNMENT,
                        "exec.scratch is %p, expected a multiple of %d bytes", exec->scratch,
                        HPA_BUFFER_ALIGNMENT);
    return HPA_OK;
}
