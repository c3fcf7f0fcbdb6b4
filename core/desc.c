#include "core/desc.h"

#include <inttypes.h>
#include <math.h>

#define MAX_LENGTH INT64_C(1073741824) /* 2^30: token and block indices fit 32 bits with room */
#define MAX_HEADS INT64_C(65536)

hpa_desc hpa_desc_default(void)
{
    return (hpa_desc){
        .struct_size = sizeof(hpa_desc),
        .device = HPA_CPU,
        .dtype = HPA_F32,
        .batch = 1,
        .heads_q = 1,
        .heads_kv = 1,
        .head_dim = 64,
        .causal = true,
        .block_q = 128,
        .block_k = 64,
        .top_k = 1024,
        .sink = 64,
        .window = 512,
        .beam = 2,
        .rep_tokens = 4,
        .leaf_tokens = 8,
        .query_stride = 1,
        .search_span = 1,
        .training = true,
    };
}

static hpa_status check_struct(const hpa_desc *desc)
{
    if (!desc)
        return hpa_fail(HPA_INVALID_ARGUMENT, "desc is NULL");
    if (desc->struct_size == sizeof(hpa_desc))
        return HPA_OK;
    return hpa_fail(HPA_INVALID_STRUCT_SIZE,
                    "desc.struct_size is %zu, expected %zu: start with hpa_desc_default() of the "
                    "header of this library, version %d",
                    desc->struct_size, sizeof(hpa_desc), HPA_VERSION);
}

/* block_q, block_k, beam, rep_tokens, leaf_tokens, query_stride, search_span, share_heads */
static const struct {
    int32_t block_q, block_k, beam, rep_tokens, leaf_tokens, query_stride, search_span;
    bool share_heads;
} presets[] = {
    [HPA_PRESET_FAST] = {128, 128, 2, 4, 16, 1, 1, true},
    [HPA_PRESET_BALANCED] = {128, 64, 2, 4, 8, 1, 1, false},
    [HPA_PRESET_FAITHFUL] = {128, 64, 2, 32, 64, 1, 1, false},
};

hpa_status hpa_desc_set_preset(hpa_desc *desc, hpa_preset preset)
{
    HPA_TRY(check_struct(desc));
    if (preset < HPA_PRESET_FAST || preset > HPA_PRESET_FAITHFUL)
        return hpa_fail(HPA_INVALID_ARGUMENT,
                        "preset is %d, expected HPA_PRESET_FAST (%d), HPA_PRESET_BALANCED (%d) or "
                        "HPA_PRESET_FAITHFUL (%d)",
                        (int)preset, HPA_PRESET_FAST, HPA_PRESET_BALANCED, HPA_PRESET_FAITHFUL);
    desc->block_q = presets[preset].block_q;
    desc->block_k = presets[preset].block_k;
    desc->beam = presets[preset].beam;
    desc->rep_tokens = presets[preset].rep_tokens;
    desc->leaf_tokens = presets[preset].leaf_tokens;
    desc->query_stride = presets[preset].query_stride;
    desc->search_span = presets[preset].search_span;
    desc->share_heads = presets[preset].share_heads;
    return HPA_OK;
}

static hpa_status check_range(const char *field, int64_t value, int64_t low, int64_t high)
{
    if (value >= low && value <= high)
        return HPA_OK;
    return hpa_fail(HPA_INVALID_ARGUMENT,
                    "desc.%s is %" PRId64 ", expected %" PRId64 " to %" PRId64, field, value, low,
                    high);
}

static hpa_status check_lengths(const hpa_desc *desc)
{
    HPA_TRY(check_range("batch", desc->batch, 1, MAX_LENGTH));
    HPA_TRY(check_range("seq_q", desc->seq_q, 0, MAX_LENGTH));
    HPA_TRY(check_range("seq_kv", desc->seq_kv, 0, MAX_LENGTH));
    if (desc->packed) {
        HPA_TRY(check_range("total_q", desc->total_q, 0, MAX_LENGTH));
        HPA_TRY(check_range("total_kv", desc->total_kv, 0, MAX_LENGTH));
        return HPA_OK;
    }
    HPA_TRY(check_range("batch * seq_q", desc->batch * desc->seq_q, 0, MAX_LENGTH));
    return check_range("batch * seq_kv", desc->batch * desc->seq_kv, 0, MAX_LENGTH);
}

static hpa_status check_heads(const hpa_desc *desc)
{
    HPA_TRY(check_range("heads_q", desc->heads_q, 1, MAX_HEADS));
    HPA_TRY(check_range("heads_kv", desc->heads_kv, 1, MAX_HEADS));
    if (desc->heads_q % desc->heads_kv != 0)
        return hpa_fail(HPA_INVALID_ARGUMENT,
                        "desc.heads_q is %" PRId64 ", expected a multiple of heads_kv, %" PRId64,
                        desc->heads_q, desc->heads_kv);
    HPA_TRY(check_range("head_dim", desc->head_dim, 8, 256));
    if (desc->head_dim % 8 != 0)
        return hpa_fail(HPA_INVALID_ARGUMENT,
                        "desc.head_dim is %" PRId64 ", expected a multiple of 8", desc->head_dim);
    return HPA_OK;
}

static hpa_status check_blocks(const hpa_desc *desc)
{
    HPA_TRY(check_range("block_q", desc->block_q, 16, 256));
    if (desc->block_q % 16 != 0)
        return hpa_fail(HPA_INVALID_ARGUMENT, "desc.block_q is %d, expected a multiple of 16",
                        desc->block_q);
    HPA_TRY(check_range("block_k", desc->block_k, 16, 128));
    if ((desc->block_k & (desc->block_k - 1)) != 0)
        return hpa_fail(HPA_INVALID_ARGUMENT, "desc.block_k is %d, expected 16, 32, 64 or 128",
                        desc->block_k);
    HPA_TRY(check_range("top_k", desc->top_k, 0, INT32_MAX));
    HPA_TRY(check_range("sink", desc->sink, 0, INT32_MAX));
    return check_range("window", desc->window, 0, INT32_MAX);
}

static hpa_status check_search(const hpa_desc *desc)
{
    HPA_TRY(check_range("beam", desc->beam, 1, INT32_MAX));
    HPA_TRY(check_range("rep_tokens", desc->rep_tokens, 1, INT32_MAX));
    HPA_TRY(check_range("leaf_tokens", desc->leaf_tokens, 1, INT32_MAX));
    HPA_TRY(check_range("query_stride", desc->query_stride, 1, INT32_MAX));
    return check_range("search_span", desc->search_span, 1, 64);
}

static hpa_status check_device(const hpa_desc *desc)
{
    if (desc->device != HPA_CPU && desc->device != HPA_CUDA)
        return hpa_fail(HPA_INVALID_DEVICE,
                        "desc.device is %d, expected HPA_CPU (%d) or HPA_CUDA (%d)",
                        (int)desc->device, HPA_CPU, HPA_CUDA);
    if (desc->device_id < 0 || (desc->device == HPA_CPU && desc->device_id != 0))
        return hpa_fail(HPA_INVALID_DEVICE, "desc.device_id is %d, expected %s", desc->device_id,
                        desc->device == HPA_CPU ? "0 for the CPU" : "0 or more");
    return check_range("num_threads", desc->num_threads, 0, 4096);
}

hpa_status hpa_desc_check(const hpa_desc *desc)
{
    HPA_TRY(check_struct(desc));
    if (desc->dtype < HPA_F64 || desc->dtype > HPA_BF16)
        return hpa_fail(HPA_INVALID_DTYPE,
                        "desc.dtype is %d, expected HPA_F64, HPA_F32, HPA_F16 or HPA_BF16",
                        (int)desc->dtype);
    HPA_TRY(check_device(desc));
    HPA_TRY(check_lengths(desc));
    HPA_TRY(check_heads(desc));
    HPA_TRY(check_blocks(desc));
    HPA_TRY(check_search(desc));
    if (!(desc->scale >= 0 && isfinite(desc->scale)))
        return hpa_fail(HPA_INVALID_ARGUMENT, "desc.scale is %g, expected a finite number >= 0",
                        desc->scale);
    return HPA_OK;
}
