/* The roof: checks a description, asks each operation for its kernel, adds up the sizes. */
#include "core/check.h"
#include "core/cpu/kernels.h"
#include "core/desc.h"
#include "core/plan.h"
#include "mask/rules.h"

#include <inttypes.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

static hpa_status choose_cuda_device(hpa_plan *plan)
{
#ifdef HPA_WITH_CUDA
    HPA_TRY(hpa_cuda_device_query(plan->desc.device_id, &plan->cuda));
    if (plan->desc.reference)
        return hpa_fail(HPA_UNSUPPORTED,
                        "desc.reference is true, but the plain loops run on the CPU alone");
    return HPA_OK;
#else
    (void)plan;
    return hpa_fail(HPA_BACKEND_NOT_BUILT,
                    "desc.device is HPA_CUDA, but this library was built for the CPU alone");
#endif
}

static hpa_status choose_device(hpa_plan *plan)
{
    if (plan->desc.device == HPA_CUDA)
        return choose_cuda_device(plan);
    plan->cpu = hpa_cpu_select();
    plan->num_threads = plan->desc.num_threads ? plan->desc.num_threads : omp_get_max_threads();
    return HPA_OK;
}

static hpa_status choose_kernels(hpa_plan *plan)
{
    HPA_TRY(hpa_mask_select(plan, &plan->mask));
    HPA_TRY(hpa_forward_select(plan, &plan->forward));
    if (plan->desc.training)
        HPA_TRY(hpa_backward_select(plan, &plan->backward));
    return HPA_OK;
}

static void add_up_sizes(hpa_plan *plan)
{
    plan->sizes.mask = hpa_mask_bytes(&plan->geometry);
    plan->sizes.mask_scratch = plan->mask->scratch_bytes(plan);
    plan->sizes.forward_scratch = plan->forward->scratch_bytes(plan);
    plan->sizes.backward_scratch = plan->backward ? plan->backward->scratch_bytes(plan) : 0;
}

static void describe_device(const hpa_plan *plan, char *text, size_t size)
{
    if (plan->desc.device == HPA_CUDA)
        snprintf(text, size, "cuda %d, %s, compute capability %d.%d, %d multiprocessors",
                 plan->cuda.id, plan->cuda.name, plan->cuda.architecture / 10,
                 plan->cuda.architecture % 10, plan->cuda.multiprocessors);
    else
        snprintf(text, size, "cpu, %s, %d threads", plan->cpu->name, plan->num_threads);
}

static const char *why_these(const hpa_plan *plan)
{
    if (plan->desc.reference)
        return ": the plain loops, because desc.reference is true";
    if (plan->desc.device == HPA_CUDA && hpa_dtype_size(plan->desc.dtype) == 2)
        return "; the any-shape kernels for tensors whose rows do not begin at multiples of 16 "
               "bytes";
    return "";
}

/* "" or how many levels of the longest search are shared. */
static void describe_span(const hpa_geometry *g, int64_t key_blocks, char *text, size_t size)
{
    const int64_t shared = hpa_shared_levels(g, key_blocks);
    text[0] = 0;
    if (shared > 0)
        snprintf(text, size, ", %" PRId64 " of them for %" PRId64 " rows at once", shared,
                 g->search_span);
}

static void describe(hpa_plan *plan)
{
    char device[160], span[64];
    describe_device(plan, device, sizeof device);
    const hpa_geometry *g = &plan->geometry;
    const int64_t key_blocks = hpa_ceil_div(g->seq_kv, g->block_k);
    const bool searches = g->tree_blocks > 0 && key_blocks > g->tree_blocks;
    const int64_t levels = searches ? hpa_tree_levels(key_blocks, g->beam_nodes) : 0;
    describe_span(g, key_blocks, span, sizeof span);
    snprintf(plan->description, sizeof plan->description,
             "device: %s\n"
             "kernels: %s, %s, %s%s\n"
             "mask: %" PRId64 " rows of at most %" PRId64 " blocks, search of at most %" PRId64
             " levels%s, %zu bytes\n",
             device, plan->mask->name, plan->forward->name,
             plan->backward ? plan->backward->name : "no backward (training is false)",
             why_these(plan), g->rows, g->capacity, levels, span, plan->sizes.mask);
}

/* Rows times blocks of a row can exceed 64 bits, long after they exceed any memory. */
static hpa_status check_mask_size(const hpa_geometry *g)
{
    const double bytes = (double)g->rows * (double)g->capacity * 2 * sizeof(int32_t);
    if (bytes < 0x1p60)
        return HPA_OK;
    return hpa_fail(HPA_INVALID_ARGUMENT,
                    "desc asks for a mask of %" PRId64 " rows of %" PRId64
                    " blocks, expected less than 2^60 bytes",
                    g->rows, g->capacity);
}

hpa_status hpa_plan_create(hpa_plan **plan_out, const hpa_desc *desc)
{
    HPA_TRY(hpa_check_pointer("plan", plan_out));
    *plan_out = NULL;
    HPA_TRY(hpa_desc_check(desc));
    hpa_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return hpa_fail(HPA_OUT_OF_MEMORY, "no memory for a plan of %zu bytes", sizeof *plan);
    plan->desc = *desc;
    plan->geometry = hpa_geometry_of(desc);
    hpa_status status = check_mask_size(&plan->geometry);
    if (status == HPA_OK)
        status = choose_device(plan);
    if (status == HPA_OK)
        status = choose_kernels(plan);
    if (status != HPA_OK) {
        hpa_plan_destroy(plan);
        return status;
    }
    add_up_sizes(plan);
    describe(plan);
    *plan_out = plan;
    return HPA_OK;
}

void hpa_plan_destroy(hpa_plan *plan)
{
    free(plan);
}

hpa_status hpa_plan_sizes(const hpa_plan *plan, hpa_sizes *sizes)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    HPA_TRY(hpa_check_pointer("sizes", sizes));
    *sizes = plan->sizes;
    return HPA_OK;
}

const char *hpa_plan_describe(const hpa_plan *plan)
{
    return plan ? plan->description : "";
}
