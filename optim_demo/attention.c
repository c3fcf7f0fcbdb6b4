#include "attention.h"

#include <hpa/hpa.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SPARSE, DENSE, N_PLANS };

struct attention {
    attention_shape shape;
    uint64_t dense_layers;
    bool share_heads;
    hpa_plan *plan[N_PLANS]; /* whole sequences, for training and evaluation */
    hpa_plan *step[N_PLANS]; /* one query, for sampling */
    size_t mask_bytes[N_PLANS];
    size_t step_mask_bytes;
    void *mask[MAX_LAYERS];         /* the layer's own */
    void *spare[MAX_LAYERS];        /* MASK_EVALUATE's */
    const void *latest[MAX_LAYERS]; /* whichever the last forward used */
    bool built[MAX_LAYERS];
    void *step_mask;
    hpa_exec exec; /* one scratch buffer serves every call */
};

/* From settings to plans */

static hpa_desc describe(const attention_settings *s, const attention_shape *shape, int which)
{
    hpa_desc desc = hpa_desc_default();
    bool dense = which == DENSE || s->kind == ATTENTION_DENSE;
    bool window = !dense && s->kind == ATTENTION_WINDOW;
    desc.dtype = REAL_DTYPE;
    desc.batch = shape->batch;
    desc.heads_q = shape->heads;
    desc.heads_kv = shape->kv_heads;
    desc.head_dim = shape->head_dim;
    desc.seq_q = desc.seq_kv = shape->context;
    desc.causal = true;
    desc.block_q = (int32_t)s->block_q;
    desc.block_k = (int32_t)s->block_k;
    desc.top_k = (int32_t)(dense ? shape->context : window ? 0 : s->top_k);
    desc.window = (int32_t)(window ? s->window + s->top_k : s->window);
    desc.sink = (int32_t)s->sink;
    desc.beam = (int32_t)s->beam;
    desc.rep_tokens = (int32_t)s->rep_tokens;
    desc.leaf_tokens = (int32_t)s->leaf_tokens;
    desc.query_stride = (int32_t)s->query_stride;
    desc.share_heads = s->share_heads;
    desc.reference = s->reference;
    desc.training = true;
    return desc;
}

/* One query that sees as many keys as cu_seqlens_kv says at the call: a packed batch of one. */
static hpa_desc describe_step(hpa_desc desc)
{
    desc.batch = 1;
    desc.packed = true;
    desc.total_kv = desc.seq_kv;
    desc.total_q = desc.seq_q = 1;
    desc.training = false;
    return desc;
}

static bool hpa_failed(failure *why)
{
    return fail(why, "%s", hpa_last_error());
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* A plan, the size of its mask, and room for it in the scratch. */
static bool make_plan(attention *self, hpa_plan **plan, const hpa_desc *desc, size_t *mask_bytes,
                      failure *why)
{
    hpa_sizes sizes;
    if (hpa_plan_create(plan, desc) != HPA_OK || hpa_plan_sizes(*plan, &sizes) != HPA_OK)
        return hpa_failed(why);
    *mask_bytes = sizes.mask;
    size_t scratch = largest(sizes.mask_scratch, sizes.forward_scratch);
    self->exec.scratch_bytes =
        largest(self->exec.scratch_bytes, largest(scratch, sizes.backward_scratch));
    return true;
}

static int plan_of(const attention *self, int64_t layer)
{
    return self->dense_layers >> layer & 1 ? DENSE : SPARSE;
}

static bool allocate(void **memory, size_t bytes, failure *why)
{
    *memory = calloc(1, bytes ? bytes : 1);
    return *memory || fail(why, "out of memory: attention needs %zu more bytes", bytes);
}

static bool set_up(attention *self, const attention_settings *settings, failure *why)
{
    for (int which = 0; which < N_PLANS; which++) {
        hpa_desc desc = describe(settings, &self->shape, which);
        hpa_desc step = describe_step(desc);
        size_t step_mask_bytes = 0;
        if (!make_plan(self, &self->plan[which], &desc, &self->mask_bytes[which], why) ||
            !make_plan(self, &self->step[which], &step, &step_mask_bytes, why))
            return false;
        self->step_mask_bytes = largest(self->step_mask_bytes, step_mask_bytes);
    }
    for (int64_t l = 0; l < self->shape.layers; l++) {
        size_t bytes = self->mask_bytes[plan_of(self, l)];
        if (!allocate(&self->mask[l], bytes, why) || !allocate(&self->spare[l], bytes, why))
            return false;
    }
    return allocate(&self->step_mask, self->step_mask_bytes, why) &&
           allocate(&self->exec.scratch, self->exec.scratch_bytes, why);
}

bool attention_create(attention **self, const attention_settings *settings,
                      const attention_shape *shape, failure *why)
{
    *self = NULL;
    attention *a = calloc(1, sizeof *a);
    if (!a)
        return fail(why, "out of memory");
    a->shape = *shape;
    a->dense_layers = settings->dense_layers;
    a->share_heads = settings->share_heads;
    if (!set_up(a, settings, why))
        return attention_destroy(a), false;
    *self = a;
    return true;
}

void attention_destroy(attention *self)
{
    if (!self)
        return;
    for (int which = 0; which < N_PLANS; which++) {
        hpa_plan_destroy(self->plan[which]);
        hpa_plan_destroy(self->step[which]);
    }
    for (int64_t l = 0; l < MAX_LAYERS; l++) {
        free(self->mask[l]);
        free(self->spare[l]);
    }
    free(self->step_mask);
    free(self->exec.scratch);
    free(self);
}

/* Views */

/* data (B, T, heads of a row, D), of which `heads` heads from `first` on are seen as [B, H, T, D].
 * hpa's views are not const, because outputs are views too. */
static hpa_tensor view(const attention *self, const real *data, int64_t heads_in_row, int64_t first,
                       int64_t heads)
{
    int64_t D = self->shape.head_dim, row = heads_in_row * D, T = self->shape.context;
    return (hpa_tensor){.data = (real *)(uintptr_t)(data + first * D),
                        .dtype = REAL_DTYPE,
                        .ndim = 4,
                        .shape = {self->shape.batch, heads, T, D},
                        .stride = {T * row, D, row, 1}};
}

static hpa_inputs view_qkv(const attention *self, const real *qkv)
{
    int64_t Hq = self->shape.heads, Hkv = self->shape.kv_heads, row = Hq + 2 * Hkv;
    return (hpa_inputs){.q = view(self, qkv, row, 0, Hq),
                        .k = view(self, qkv, row, Hq, Hkv),
                        .v = view(self, qkv, row, Hq + Hkv, Hkv)};
}

static hpa_outputs view_outputs(const attention *self, const real *out, const real *lse)
{
    int64_t Hq = self->shape.heads, T = self->shape.context;
    hpa_tensor lse_view = {.data = (real *)(uintptr_t)lse,
                           .dtype = REAL_DTYPE,
                           .ndim = 3,
                           .shape = {self->shape.batch, Hq, T},
                           .stride = {Hq * T, T, 1}};
    return (hpa_outputs){.out = view(self, out, Hq, 0, Hq), .lse = lse_view};
}

/* Training and evaluation */

bool attention_forward(attention *self, int64_t layer, mask_use use, const real *qkv, real *out,
                       real *lse, failure *why)
{
    const hpa_plan *plan = self->plan[plan_of(self, layer)];
    void *mask = use == MASK_EVALUATE ? self->spare[layer] : self->mask[layer];
    hpa_inputs in = view_qkv(self, qkv);
    hpa_outputs outputs = view_outputs(self, out, lse);
    self->latest[layer] = mask;
    if (use != MASK_REUSE || !self->built[layer]) {
        if (hpa_mask_build(plan, &in, mask, &self->exec) != HPA_OK)
            return hpa_failed(why);
        self->built[layer] = self->built[layer] || use != MASK_EVALUATE;
    }
    return hpa_forward(plan, mask, &in, &outputs, &self->exec) == HPA_OK || hpa_failed(why);
}

bool attention_backward(attention *self, int64_t layer, const real *qkv, const real *out,
                        const real *lse, const real *d_out, real *d_qkv, failure *why)
{
    hpa_inputs in = view_qkv(self, qkv);
    hpa_inputs d_in = view_qkv(self, d_qkv);
    hpa_outputs outputs = view_outputs(self, out, lse);
    hpa_gradients gradients = {.d_out = view(self, d_out, self->shape.heads, 0, self->shape.heads),
                               .dq = d_in.q,
                               .dk = d_in.k,
                               .dv = d_in.v};
    return hpa_backward(self->plan[plan_of(self, layer)], self->mask[layer], &in, &outputs,
                        &gradients, &self->exec) == HPA_OK ||
           hpa_failed(why);
}

/* Sampling */

/* data (rows, heads of a row, D), seen as the packed [rows, H, D]. */
static hpa_tensor view_packed(const real *data, int64_t rows, int64_t heads_in_row, int64_t heads,
                              int64_t D)
{
    return (hpa_tensor){.data = (real *)(uintptr_t)data,
                        .dtype = REAL_DTYPE,
                        .ndim = 3,
                        .shape = {rows, heads, D},
                        .stride = {heads_in_row * D, D, 1}};
}

bool attention_step(attention *self, int64_t layer, const real *q, const real *cache,
                    int64_t length, real *out, failure *why)
{
    int64_t Hq = self->shape.heads, Hkv = self->shape.kv_heads, D = self->shape.head_dim;
    int64_t T = self->shape.context;
    real lse[1024];
    const int32_t queries[2] = {0, 1}, keys[2] = {0, (int32_t)length};
    hpa_inputs in = {.q = view_packed(q, 1, Hq, Hq, D),
                     .k = view_packed(cache, T, 2 * Hkv, Hkv, D),
                     .v = view_packed(cache + Hkv * D, T, 2 * Hkv, Hkv, D),
                     .cu_seqlens_q = queries,
                     .cu_seqlens_kv = keys};
    hpa_outputs outputs = {.out = view_packed(out, 1, Hq, Hq, D),
                           .lse = {lse, REAL_DTYPE, 2, {1, Hq}, {Hq, 1}}};
    const hpa_plan *plan = self->step[plan_of(self, layer)];
    if (hpa_mask_build(plan, &in, self->step_mask, &self->exec) != HPA_OK ||
        hpa_forward(plan, self->step_mask, &in, &outputs, &self->exec) != HPA_OK)
        return hpa_failed(why);
    return true;
}

/* Looking at masks */

bool attention_density(attention *self, int64_t layer, double *density, failure *why)
{
    hpa_mask_stats stats;
    if (hpa_mask_statistics(self->plan[plan_of(self, layer)], self->latest[layer], &stats,
                            &self->exec) != HPA_OK)
        return hpa_failed(why);
    *density = stats.density;
    return true;
}

const void *attention_mask(const attention *self, int64_t layer, int64_t *bytes)
{
    *bytes = (int64_t)self->mask_bytes[plan_of(self, layer)];
    return self->built[layer] ? self->mask[layer] : NULL;
}

bool attention_set_mask(attention *self, int64_t layer, const void *mask, int64_t bytes,
                        failure *why)
{
    int which = plan_of(self, layer);
    if (bytes != (int64_t)self->mask_bytes[which])
        return fail(why,
                    "the mask of layer %" PRId64 " has %" PRId64 " bytes, expected %zu: "
                    "resume with the attention options of the run that saved it",
                    layer, bytes, self->mask_bytes[which]);
    memcpy(self->mask[layer], mask, (size_t)bytes);
    if (hpa_mask_validate(self->plan[which], self->mask[layer], &self->exec) != HPA_OK)
        return hpa_failed(why);
    self->built[layer] = true;
    return true;
}

bool attention_draw_mask(attention *self, int64_t layer, int64_t head, char **text, failure *why)
{
    const hpa_plan *plan = self->plan[plan_of(self, layer)];
    const void *mask = self->latest[layer];
    int64_t group = self->shape.heads / self->shape.kv_heads;
    int64_t mask_head = self->share_heads ? head / group : head;
    int length = hpa_mask_snprint(plan, mask, 0, mask_head, NULL, 0, &self->exec);
    if (length < 0)
        return hpa_failed(why);
    *text = malloc((size_t)length + 1);
    if (!*text)
        return fail(why, "out of memory");
    hpa_mask_snprint(plan, mask, 0, mask_head, *text, (size_t)length + 1, &self->exec);
    return true;
}
