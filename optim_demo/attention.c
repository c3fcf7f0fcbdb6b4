#include "attention.h"

#include <hpa/hpa.h>

#include <inttypes.h>
#include <stdlib.h>

enum { SPARSE, DENSE, N_PLANS };

struct attention {
    backend *on;
    attention_shape shape;
    attention_settings settings;
    hpa_plan *plan[N_PLANS]; /* whole sequences, for training and evaluation; NULL: no such layer */
    hpa_plan *step[N_PLANS]; /* one query, for sampling */
    size_t mask_bytes[N_PLANS];
    size_t step_mask_bytes;
    void *mask[MAX_LAYERS];  /* the layer's own; dense layers share one, for theirs are all equal */
    void *spare[MAX_LAYERS]; /* MASK_EVALUATE's */
    void *latest[MAX_LAYERS]; /* whichever the last forward used */
    bool built[MAX_LAYERS];
    void *step_mask;
    void *step_lse;        /* (Hq) */
    int32_t *step_lengths; /* of queries and of keys: 0, 1; 0, length */
    hpa_exec exec;         /* one scratch buffer serves every call */
};

/* From settings to plans */

static hpa_desc describe(const backend *on, const attention_settings *s,
                         const attention_shape *shape, int which)
{
    hpa_desc desc = hpa_desc_default();
    bool dense = which == DENSE;
    bool window = !dense && s->kind == ATTENTION_WINDOW;
    desc.device = on->device;
    desc.dtype = on->operand;
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
    desc.search_span = (int32_t)s->search_span;
    desc.share_heads = s->share_heads;
    desc.reference = s->reference;
    desc.training = true;
    /* Which blocks dense attention keeps does not depend on their size, but the length of its lists
     * does, and its time on a device. */
    if (dense && on->device == HPA_CUDA)
        desc.block_q = desc.block_k = 128;
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
    bool dense = self->settings.kind == ATTENTION_DENSE || self->settings.dense_layers >> layer & 1;
    return dense ? DENSE : SPARSE;
}

static bool make_plans(attention *self, failure *why)
{
    for (int64_t l = 0; l < self->shape.layers; l++) {
        int which = plan_of(self, l);
        if (self->plan[which])
            continue;
        hpa_desc desc = describe(self->on, &self->settings, &self->shape, which);
        hpa_desc step = describe_step(desc);
        size_t step_mask_bytes = 0;
        if (!make_plan(self, &self->plan[which], &desc, &self->mask_bytes[which], why) ||
            !make_plan(self, &self->step[which], &step, &step_mask_bytes, why))
            return false;
        self->step_mask_bytes = largest(self->step_mask_bytes, step_mask_bytes);
    }
    return true;
}

bool attention_create(attention **self, backend *on, const attention_settings *settings,
                      const attention_shape *shape, failure *why)
{
    *self = NULL;
    if (shape->layers < MAX_LAYERS && settings->dense_layers >> shape->layers != 0)
        return fail(why,
                    "--dense-layers names a layer that is not there, expected 0 to %" PRId64
                    " of these %" PRId64 " layers",
                    shape->layers - 1, shape->layers);
    attention *a = calloc(1, sizeof *a);
    if (!a)
        return fail(why, "out of memory");
    a->on = on;
    a->shape = *shape;
    a->settings = *settings;
    a->exec.stream = on->stream;
    if (!make_plans(a, why))
        return attention_destroy(a), false;
    *self = a;
    return true;
}

void attention_lay_out(attention *self, arena *a)
{
    void *dense = arena_take(a, (int64_t)self->mask_bytes[DENSE]);
    for (int64_t l = 0; l < self->shape.layers; l++) {
        int64_t bytes = (int64_t)self->mask_bytes[SPARSE];
        bool is_dense = plan_of(self, l) == DENSE;
        self->mask[l] = is_dense ? dense : arena_take(a, bytes);
        self->spare[l] = is_dense ? dense : arena_take(a, bytes);
    }
    self->step_mask = arena_take(a, (int64_t)self->step_mask_bytes);
    self->step_lse = arena_take(a, self->shape.heads * self->on->number_bytes);
    self->step_lengths = arena_take(a, 4 * (int64_t)sizeof(int32_t));
    self->exec.scratch = arena_take(a, (int64_t)self->exec.scratch_bytes);
}

void attention_set_up(attention *self)
{
    const int32_t lengths[4] = {0, 1, 0, 1};
    self->on->op->write(self->on, self->step_lengths, lengths, sizeof lengths);
}

void attention_destroy(attention *self)
{
    if (!self)
        return;
    for (int which = 0; which < N_PLANS; which++) {
        hpa_plan_destroy(self->plan[which]);
        hpa_plan_destroy(self->step[which]);
    }
    free(self);
}

/* Views */

/* data (B, T, heads of a row, D), of which `heads` heads from `first` on are seen as
 * [B, H, T, D]. */
static hpa_tensor view(const attention *self, void *data, int64_t heads_in_row, int64_t first,
                       int64_t heads)
{
    int64_t D = self->shape.head_dim, row = heads_in_row * D, T = self->shape.context;
    return (hpa_tensor){.data = operand_at(self->on, data, first * D),
                        .dtype = self->on->operand,
                        .ndim = 4,
                        .shape = {self->shape.batch, heads, T, D},
                        .stride = {T * row, D, row, 1}};
}

static hpa_inputs view_qkv(const attention *self, void *qkv)
{
    int64_t Hq = self->shape.heads, Hkv = self->shape.kv_heads, row = Hq + 2 * Hkv;
    return (hpa_inputs){.q = view(self, qkv, row, 0, Hq),
                        .k = view(self, qkv, row, Hq, Hkv),
                        .v = view(self, qkv, row, Hq + Hkv, Hkv)};
}

static hpa_outputs view_outputs(const attention *self, void *out, void *lse)
{
    int64_t Hq = self->shape.heads, T = self->shape.context;
    hpa_tensor lse_view = {.data = lse,
                           .dtype = self->on->number,
                           .ndim = 3,
                           .shape = {self->shape.batch, Hq, T},
                           .stride = {Hq * T, T, 1}};
    return (hpa_outputs){.out = view(self, out, Hq, 0, Hq), .lse = lse_view};
}

/* Training and evaluation */

bool attention_forward(attention *self, int64_t layer, mask_use use, void *qkv, void *out,
                       void *lse, failure *why)
{
    const hpa_plan *plan = self->plan[plan_of(self, layer)];
    void *mask = use == MASK_EVALUATE ? self->spare[layer] : self->mask[layer];
    hpa_inputs in = view_qkv(self, qkv);
    hpa_outputs outputs = view_outputs(self, out, lse);
    self->latest[layer] = mask;
    if (use != MASK_REUSE || !self->built[layer]) {
        phase before = self->on->op->enter(self->on, PHASE_MASK);
        bool built = hpa_mask_build(plan, &in, mask, &self->exec) == HPA_OK;
        self->on->op->enter(self->on, before);
        if (!built)
            return hpa_failed(why);
        self->built[layer] = self->built[layer] || use != MASK_EVALUATE;
    }
    phase before = self->on->op->enter(self->on, PHASE_FORWARD);
    bool done = hpa_forward(plan, mask, &in, &outputs, &self->exec) == HPA_OK;
    self->on->op->enter(self->on, before);
    return done || hpa_failed(why);
}

bool attention_backward(attention *self, int64_t layer, void *qkv, void *out, void *lse,
                        void *d_out, void *d_qkv, failure *why)
{
    hpa_inputs in = view_qkv(self, qkv);
    hpa_inputs d_in = view_qkv(self, d_qkv);
    hpa_outputs outputs = view_outputs(self, out, lse);
    hpa_gradients gradients = {.d_out = view(self, d_out, self->shape.heads, 0, self->shape.heads),
                               .dq = d_in.q,
                               .dk = d_in.k,
                               .dv = d_in.v};
    phase before = self->on->op->enter(self->on, PHASE_BACKWARD);
    bool done = hpa_backward(self->plan[plan_of(self, layer)], self->mask[layer], &in, &outputs,
                             &gradients, &self->exec) == HPA_OK;
    self->on->op->enter(self->on, before);
    return done || hpa_failed(why);
}

/* Sampling */

/* data (rows, heads of a row, D), seen as the packed [rows, H, D]. */
static hpa_tensor view_packed(const attention *self, void *data, int64_t rows, int64_t heads_in_row,
                              int64_t heads)
{
    int64_t D = self->shape.head_dim;
    return (hpa_tensor){.data = data,
                        .dtype = self->on->operand,
                        .ndim = 3,
                        .shape = {rows, heads, D},
                        .stride = {heads_in_row * D, D, 1}};
}

bool attention_step(attention *self, int64_t layer, void *q, void *cache, int64_t length, void *out,
                    failure *why)
{
    int64_t Hq = self->shape.heads, Hkv = self->shape.kv_heads, D = self->shape.head_dim;
    int64_t T = self->shape.context;
    const int32_t keys = (int32_t)length;
    self->on->op->write(self->on, self->step_lengths + 3, &keys, sizeof keys);
    hpa_inputs in = {.q = view_packed(self, q, 1, Hq, Hq),
                     .k = view_packed(self, cache, T, 2 * Hkv, Hkv),
                     .v = view_packed(self, operand_at(self->on, cache, Hkv * D), T, 2 * Hkv, Hkv),
                     .cu_seqlens_q = self->step_lengths,
                     .cu_seqlens_kv = self->step_lengths + 2};
    hpa_outputs outputs = {.out = view_packed(self, out, 1, Hq, Hq),
                           .lse = {self->step_lse, self->on->number, 2, {1, Hq}, {Hq, 1}}};
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
    self->on->op->write(self->on, self->mask[layer], mask, bytes);
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
    int64_t mask_head = self->settings.share_heads ? head / group : head;
    int length = hpa_mask_snprint(plan, mask, 0, mask_head, NULL, 0, &self->exec);
    if (length < 0)
        return hpa_failed(why);
    *text = malloc((size_t)length + 1);
    if (!*text)
        return fail(why, "out of memory");
    hpa_mask_snprint(plan, mask, 0, mask_head, *text, (size_t)length + 1, &self->exec);
    return true;
}
