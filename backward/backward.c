/* The front door of the backward pass: check, look up, run. */
#include "backward/kernels.h"
#include "core/check.h"

#include <inttypes.h>

#ifdef HPA_WITH_CUDA
/* What a kernel serves; 0: any. The first row that fits is taken. */
typedef struct cuda_row {
    int32_t dtype;
    int64_t head_dim;
    int32_t minimum_architecture;
    bool hopper_alone; /* code for sm_90a */
    int64_t block_q_multiple;
    const hpa_backward_kernel *kernel;
} cuda_row;

#define SM90_ROW(dtype, name, type, head_dim) \
    {dtype, head_dim, 90, true, 128, &hpa_backward_sm90_##name##_##head_dim},
#define MMA_ROW(dtype, name, type, head_dim) \
    {dtype, head_dim, 80, false, 16, &hpa_backward_mma_##name##_##head_dim},
static const cuda_row cuda_rows[] = {HPA_SM90_INSTANCES(SM90_ROW) HPA_MMA_INSTANCES(MMA_ROW){
    0, 0, 0, false, 16, &hpa_backward_simt}};

static const hpa_backward_kernel *select_cuda(const hpa_plan *plan)
{
    for (const cuda_row *row = cuda_rows;; row++)
        if ((row->dtype == 0 || row->dtype == (int32_t)plan->desc.dtype) &&
            (row->head_dim == 0 || row->head_dim == plan->desc.head_dim) &&
            row->minimum_architecture <= plan->cuda.architecture &&
            (!row->hopper_alone || plan->cuda.sm90a) &&
            plan->desc.block_q % row->block_q_multiple == 0)
            return row->kernel;
}

static hpa_status check_shared_memory(const hpa_plan *plan, const hpa_backward_kernel *kernel)
{
    const int64_t needed = hpa_backward_simt_shared_bytes(&plan->desc);
    if (kernel != &hpa_backward_simt || needed <= plan->cuda.shared_bytes)
        return HPA_OK;
    return hpa_fail(
        HPA_UNSUPPORTED,
        "backward_simt needs %" PRId64 " bytes of shared memory for desc.head_dim %" PRId64
        " in %s, but the device has %" PRId64,
        needed, plan->desc.head_dim, hpa_dtype_name(plan->desc.dtype), plan->cuda.shared_bytes);
}
#endif

static const hpa_backward_kernel *select_cpu(const hpa_plan *plan)
{
    if (plan->desc.reference)
        return &hpa_backward_ref;
    return plan->desc.dtype == HPA_F64 ? &hpa_backward_cpu_f64 : &hpa_backward_cpu_f32;
}

hpa_status hpa_backward_select(const hpa_plan *plan, const hpa_backward_kernel **kernel)
{
    *kernel = select_cpu(plan);
#ifdef HPA_WITH_CUDA
    if (plan->desc.device == HPA_CUDA) {
        *kernel = select_cuda(plan);
        return check_shared_memory(plan, *kernel);
    }
#endif
    return HPA_OK;
}

static hpa_status check_outputs(const hpa_plan *plan, const hpa_outputs *out)
{
    const hpa_geometry *g = &plan->geometry;
    const hpa_dtype dtype = plan->desc.dtype;
    HPA_TRY(hpa_check_pointer("out", out));
    const hpa_expected o = hpa_expect(g, "out.out", dtype, true, true, false);
    const hpa_expected lse = hpa_expect(g, "out.lse", hpa_lse_dtype(dtype), true, false, false);
    HPA_TRY(hpa_tensor_check(&out->out, &o));
    return hpa_tensor_check(&out->lse, &lse);
}

/* What the gradients must look like; those that may be absent are checked when they are there. */
static hpa_status check_gradient_views(const hpa_plan *plan, const hpa_gradients *grads)
{
    const hpa_geometry *g = &plan->geometry;
    const hpa_dtype dtype = plan->desc.dtype;
    HPA_TRY(hpa_check_pointer("grads", grads));
    const hpa_expected d_out = hpa_expect(g, "grads.d_out", dtype, true, true, false);
    const hpa_expected d_lse =
        hpa_expect(g, "grads.d_lse", hpa_lse_dtype(dtype), true, false, false);
    const hpa_expected dq = hpa_expect(g, "grads.dq", dtype, true, true, true);
    const hpa_expected dk = hpa_expect(g, "grads.dk", dtype, false, true, true);
    const hpa_expected dv = hpa_expect(g, "grads.dv", dtype, false, true, true);
    HPA_TRY(hpa_tensor_check(&grads->d_out, &d_out));
    if (grads->d_lse.data)
        HPA_TRY(hpa_tensor_check(&grads->d_lse, &d_lse));
    if (grads->dq.data)
        HPA_TRY(hpa_tensor_check(&grads->dq, &dq));
    if (grads->dk.data)
        HPA_TRY(hpa_tensor_check(&grads->dk, &dk));
    if (grads->dv.data)
        HPA_TRY(hpa_tensor_check(&grads->dv, &dv));
    return HPA_OK;
}

/* No gradient may lie on another, or on anything that the pass reads. */
static hpa_status check_apart(const hpa_inputs *in, const hpa_outputs *out,
                              const hpa_gradients *grads)
{
    const hpa_tensor *const views[] = {&grads->dq,    &grads->dk,   &grads->dv, &in->q,
                                       &in->k,        &in->v,       &out->out,  &out->lse,
                                       &grads->d_out, &grads->d_lse};
    const char *const names[] = {"grads.dq", "grads.dk", "grads.dv", "in.q",        "in.k",
                                 "in.v",     "out.out",  "out.lse",  "grads.d_out", "grads.d_lse"};
    for (int written = 0; written < 3; written++)
        for (int other = written + 1; other < 10; other++)
            HPA_TRY(
                hpa_tensor_check_apart(views[written], names[written], views[other], names[other]));
    return HPA_OK;
}

static hpa_status check_backward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                                 const hpa_outputs *out, const hpa_gradients *grads,
                                 const hpa_exec *exec)
{
    HPA_TRY(hpa_check_pointer("plan", plan));
    if (!plan->backward)
        return hpa_fail(HPA_INVALID_ARGUMENT,
                        "plan was made with desc.training false, expected true for hpa_backward");
    HPA_TRY(hpa_check_inputs(plan, in, true));
    HPA_TRY(check_outputs(plan, out));
    HPA_TRY(check_gradient_views(plan, grads));
    HPA_TRY(check_apart(in, out, grads));
    HPA_TRY(hpa_check_mask(plan, mask, true));
    HPA_TRY(hpa_check_same_lengths(plan, mask, in));
    return hpa_check_scratch(exec, plan->sizes.backward_scratch);
}

hpa_status hpa_backward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                        const hpa_outputs *out, const hpa_gradients *grads, const hpa_exec *exec)
{
    HPA_TRY(check_backward(plan, mask, in, out, grads, exec));
    return plan->backward->run(plan, mask, in, out, grads, exec);
}
