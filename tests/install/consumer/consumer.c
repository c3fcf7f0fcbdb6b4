/* A user's program, in the language that C11 and C++17 share: attention over values that are all
 * 1 must give 1. Built against the installed library in every way that the README promises. */
#include <hpa/hpa.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define TOKENS 300
#define DIM 16

static float q[TOKENS * DIM], k[TOKENS * DIM], v[TOKENS * DIM], out[TOKENS * DIM], lse[TOKENS];

static hpa_tensor tensor_of(float *data, int32_t ndim)
{
    hpa_tensor tensor = {data, HPA_F32, ndim, {1, 1, TOKENS, DIM}, {0, 0, DIM, 1}};
    if (ndim == 3)
        tensor.stride[2] = 1;
    return tensor;
}

static int fail(const char *call)
{
    fprintf(stderr, "%s: %s\n", call, hpa_last_error());
    return 1;
}

int main(void)
{
    hpa_desc desc = hpa_desc_default();
    hpa_plan *plan;
    hpa_sizes sizes;
    hpa_inputs in;
    hpa_outputs outputs;
    hpa_exec exec;
    void *mask;
    int i;

    if (hpa_version() != HPA_VERSION) {
        fprintf(stderr, "header %d, library %d\n", HPA_VERSION, hpa_version());
        return 1;
    }
    for (i = 0; i < TOKENS * DIM; i++) {
        q[i] = (float)(i % 7) - 3;
        k[i] = (float)(i % 11) - 5;
        v[i] = 1;
        out[i] = -1;
    }
    desc.seq_q = desc.seq_kv = TOKENS;
    desc.head_dim = DIM;
    desc.top_k = 64;
    desc.window = 32;
    desc.training = false;
    if (hpa_plan_create(&plan, &desc) != HPA_OK || hpa_plan_sizes(plan, &sizes) != HPA_OK)
        return fail("plan");

    exec.stream = NULL;
    exec.scratch_bytes =
        sizes.mask_scratch > sizes.forward_scratch ? sizes.mask_scratch : sizes.forward_scratch;
    exec.scratch = malloc(exec.scratch_bytes);
    mask = malloc(sizes.mask);
    in.q = tensor_of(q, 4);
    in.k = tensor_of(k, 4);
    in.v = tensor_of(v, 4);
    in.cu_seqlens_q = in.cu_seqlens_kv = NULL;
    outputs.out = tensor_of(out, 4);
    outputs.lse = tensor_of(lse, 3);
    if (hpa_mask_build(plan, &in, mask, &exec) != HPA_OK)
        return fail("mask");
    if (hpa_forward(plan, mask, &in, &outputs, &exec) != HPA_OK)
        return fail("forward");
    for (i = 0; i < TOKENS * DIM; i++) {
        if (!(fabs((double)out[i] - 1) < 1e-5)) {
            fprintf(stderr, "out[%d] is %g, not 1\n", i, (double)out[i]);
            return 1;
        }
    }
    free(mask);
    free(exec.scratch);
    hpa_plan_destroy(plan);
    puts(hpa_build_info());
    return 0;
}
