#include "model.h"

#include "layers.h"
#include "random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Shapes */

static bool in_range(const char *name, int64_t value, int64_t low, int64_t high, failure *why)
{
    if (value >= low && value <= high)
        return true;
    return fail(why, "%s is %" PRId64 ", expected %" PRId64 " to %" PRId64, name, value, low, high);
}

bool model_shape_check(const model_shape *s, failure *why)
{
    if (!in_range("batch", s->batch, 1, 1 << 16, why) ||
        !in_range("context", s->context, 2, 1 << 24, why) ||
        !in_range("batch * context", s->batch * s->context, 2, 1 << 26, why) ||
        !in_range("layers", s->layers, 1, MAX_LAYERS, why) ||
        !in_range("dim", s->dim, 1, 1 << 16, why) ||
        !in_range("heads", s->heads, 1, 1 << 10, why) ||
        !in_range("kv-heads", s->kv_heads, 1, s->heads, why) ||
        !in_range("head-dim", s->head_dim, 8, 256, why) ||
        !in_range("hidden", s->hidden, 1, 1 << 20, why))
        return false;
    if (s->heads % s->kv_heads != 0)
        return fail(why,
                    "heads is %" PRId64 " and kv-heads %" PRId64
                    ", expected heads to be a multiple of kv-heads",
                    s->heads, s->kv_heads);
    if (s->head_dim % 8 != 0)
        return fail(why, "head-dim is %" PRId64 ", expected a multiple of 8", s->head_dim);
    if (!(s->rope_base >= 1 && s->rope_base <= 1e12))
        return fail(why, "rope-base is %g, expected 1 to 1e12", s->rope_base);
    return true;
}

static int64_t qkv_width(const model_shape *s)
{
    return (s->heads + 2 * s->kv_heads) * s->head_dim;
}

/* Weights */

enum { WEIGHTS_IN_LAYER = 9 };

static void add_info(weight_info *infos, int64_t *n, const char *name, int64_t rows,
                     int64_t columns)
{
    if (infos) {
        weight_info *info = &infos[*n];
        snprintf(info->name, sizeof info->name, "%s", name);
        info->rows = rows;
        info->columns = columns;
        info->count = columns ? rows * columns : rows;
        info->offset = *n ? info[-1].offset + info[-1].count : 0;
    }
    (*n)++;
}

int64_t model_weight_infos(const model_shape *s, weight_info *infos)
{
    const struct {
        const char *name;
        int64_t rows, columns;
    } parts[WEIGHTS_IN_LAYER] = {
        {"input_layernorm", s->dim, 0},
        {"self_attn.q_proj", s->heads * s->head_dim, s->dim},
        {"self_attn.k_proj", s->kv_heads * s->head_dim, s->dim},
        {"self_attn.v_proj", s->kv_heads * s->head_dim, s->dim},
        {"self_attn.o_proj", s->dim, s->heads * s->head_dim},
        {"post_attention_layernorm", s->dim, 0},
        {"mlp.gate_proj", s->hidden, s->dim},
        {"mlp.up_proj", s->hidden, s->dim},
        {"mlp.down_proj", s->dim, s->hidden},
    };
    int64_t n = 0;
    add_info(infos, &n, "model.embed_tokens.weight", VOCABULARY, s->dim);
    for (int64_t l = 0; l < s->layers; l++)
        for (int64_t p = 0; p < WEIGHTS_IN_LAYER; p++) {
            char name[sizeof infos->name];
            snprintf(name, sizeof name, "model.layers.%" PRId64 ".%s.weight", l, parts[p].name);
            add_info(infos, &n, name, parts[p].rows, parts[p].columns);
        }
    add_info(infos, &n, "model.norm.weight", s->dim, 0);
    return n;
}

static void point_weights(model_weights *w, const weight_info *infos, const model_shape *s)
{
    const weight_info *info = infos;
    w->embedding = w->all + info++->offset;
    for (int64_t l = 0; l < s->layers; l++, info += WEIGHTS_IN_LAYER)
        w->layer[l] = (layer_weights){.attention_norm = w->all + info[0].offset,
                                      .qkv = w->all + info[1].offset,
                                      .attention_out = w->all + info[4].offset,
                                      .mlp_norm = w->all + info[5].offset,
                                      .gate_up = w->all + info[6].offset,
                                      .down = w->all + info[8].offset};
    w->final_norm = w->all + info->offset;
}

void model_initialize(model *self, uint64_t seed)
{
    random_source source = {seed};
    /* Each layer adds two terms to the residual stream: keep their sum as large as one. */
    double residual = 1 / sqrt(2.0 * (double)self->shape.layers);
    for (int64_t n = 0; n < self->n_infos; n++) {
        const weight_info *info = &self->infos[n];
        real *w = self->weights.all + info->offset;
        bool ends_branch = strstr(info->name, "o_proj") || strstr(info->name, "down_proj");
        double deviation = n == 0 ? 0.02 : 1 / sqrt((double)info->columns);
        deviation *= ends_branch ? residual : 1;
        for (int64_t i = 0; i < info->count; i++)
            w[i] = info->columns ? (real)(deviation * random_normal(&source)) : 1;
    }
}

/* Memory */

/* Hands out pieces of one block; with base NULL it only counts. Pieces start on cache lines. */
typedef struct arena {
    char *base;
    int64_t used;
} arena;

static real *take(arena *a, int64_t count)
{
    int64_t start = a->used, bytes = count * (int64_t)sizeof(real);
    a->used += (bytes + 63) / 64 * 64;
    return a->base ? (real *)(void *)(a->base + start) : NULL;
}

static void lay_out(model *self, arena *a)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim, F = s->hidden, A = s->heads * s->head_dim;
    self->weights.all = take(a, self->n_weights);
    self->gradients.all = take(a, self->n_weights);
    self->rope = take(a, s->context * s->head_dim);
    for (int64_t l = 0; l < s->layers; l++)
        self->layer[l] = (layer_activations){.in = take(a, N * C),
                                             .attention_normed = take(a, N * C),
                                             .attention_scale = take(a, N),
                                             .qkv = take(a, N * qkv_width(s)),
                                             .attended = take(a, N * A),
                                             .lse = take(a, N * s->heads),
                                             .middle = take(a, N * C),
                                             .mlp_normed = take(a, N * C),
                                             .mlp_scale = take(a, N),
                                             .gate_up = take(a, N * 2 * F),
                                             .activated = take(a, N * F)};
    self->last = take(a, N * C);
    self->last_normed = take(a, N * C);
    self->last_scale = take(a, N);
    self->probabilities = take(a, N * VOCABULARY);
    self->losses = take(a, N);
    self->d_stream = take(a, N * C);
    self->d_normed = take(a, N * C);
    self->d_attended = take(a, N * A);
    self->d_qkv = take(a, N * qkv_width(s));
    self->d_gate_up = take(a, N * 2 * F);
    self->d_activated = take(a, N * F);
}

static bool allocate(model *self, failure *why)
{
    arena a = {NULL, 0};
    lay_out(self, &a);
    double needed = (double)a.used / 0x1p30;
    double present = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / 0x1p30;
    if (needed <= present)
        self->memory = aligned_alloc(64, (size_t)a.used);
    if (!self->memory)
        return fail(why,
                    "these dimensions need %.1f GiB of memory and this machine has %.1f: lower "
                    "batch, context, layers, dim or hidden",
                    needed, present);
    a = (arena){self->memory, 0};
    lay_out(self, &a);
    memset(self->memory, 0, (size_t)a.used);
    return true;
}

static bool set_up(model *self, const attention_settings *settings, failure *why)
{
    const model_shape *s = &self->shape;
    self->n_infos = model_weight_infos(s, NULL);
    self->infos = calloc((size_t)self->n_infos, sizeof *self->infos);
    if (!self->infos)
        return fail(why, "out of memory");
    model_weight_infos(s, self->infos);
    const weight_info *end = &self->infos[self->n_infos - 1];
    self->n_weights = end->offset + end->count;
    if (!allocate(self, why))
        return false;
    point_weights(&self->weights, self->infos, s);
    point_weights(&self->gradients, self->infos, s);
    rope_table(self->rope, s->context, s->head_dim, s->rope_base);
    attention_shape heads = {s->layers, s->batch, s->context, s->heads, s->kv_heads, s->head_dim};
    return attention_create(&self->attention, settings, &heads, why);
}

bool model_create(model **self, const model_shape *shape, const attention_settings *settings,
                  failure *why)
{
    *self = NULL;
    if (!model_shape_check(shape, why))
        return false;
    model *m = calloc(1, sizeof *m);
    if (!m)
        return fail(why, "out of memory");
    m->shape = *shape;
    if (!set_up(m, settings, why))
        return model_destroy(m), false;
    *self = m;
    return true;
}

void model_destroy(model *self)
{
    if (!self)
        return;
    attention_destroy(self->attention);
    free(self->memory);
    free(self->infos);
    free(self);
}

void model_zero_gradients(model *self)
{
    memset(self->gradients.all, 0, (size_t)self->n_weights * sizeof(real));
}

void model_scale_gradients(model *self, double factor)
{
    real *g = self->gradients.all;
#pragma omp parallel for simd
    for (int64_t n = 0; n < self->n_weights; n++)
        g[n] *= (real)factor;
}

/* Forward */

static bool layer_forward(model *self, int64_t l, mask_use use, real *out, failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, T = s->context, C = s->dim, F = s->hidden;
    int64_t D = s->head_dim, rotated = s->heads + s->kv_heads, width = qkv_width(s);
    const layer_weights *w = &self->weights.layer[l];
    layer_activations *a = &self->layer[l];

    rmsnorm_forward(a->attention_normed, a->attention_scale, a->in, w->attention_norm, N, C);
    linear_forward(a->qkv, a->attention_normed, w->qkv, N, C, width, 0);
    rope(a->qkv, self->rope, N, T, 0, width, rotated, D, 1);
    if (!attention_forward(self->attention, l, use, a->qkv, a->attended, a->lse, why))
        return false;
    memcpy(a->middle, a->in, (size_t)(N * C) * sizeof(real));
    linear_forward(a->middle, a->attended, w->attention_out, N, s->heads * D, C, 1);

    rmsnorm_forward(a->mlp_normed, a->mlp_scale, a->middle, w->mlp_norm, N, C);
    linear_forward(a->gate_up, a->mlp_normed, w->gate_up, N, C, 2 * F, 0);
    swiglu_forward(a->activated, a->gate_up, N, F);
    memcpy(out, a->middle, (size_t)(N * C) * sizeof(real));
    linear_forward(out, a->activated, w->down, N, F, C, 1);
    return true;
}

bool model_forward(model *self, const uint8_t *tokens, const uint8_t *targets, mask_use use,
                   double *loss, failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim, V = VOCABULARY;
    const model_weights *w = &self->weights;

    embedding_forward(self->layer[0].in, tokens, w->embedding, N, C);
    for (int64_t l = 0; l < s->layers; l++)
        if (!layer_forward(self, l, use, l + 1 < s->layers ? self->layer[l + 1].in : self->last,
                           why))
            return false;
    rmsnorm_forward(self->last_normed, self->last_scale, self->last, w->final_norm, N, C);
    linear_forward(self->probabilities, self->last_normed, w->embedding, N, C, V, 0);
    cross_entropy_forward(self->losses, self->probabilities, targets, N, V);

    double sum = 0;
    for (int64_t n = 0; n < N; n++)
        sum += (double)self->losses[n];
    *loss = sum / (double)N;
    return true;
}

/* Backward: the forward's lines from last to first. d_stream carries the gradient of the residual
 * stream: a branch out = in + f(in) adds its f'(in) to it. */

static bool layer_backward(model *self, int64_t l, failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, T = s->context, C = s->dim, F = s->hidden;
    int64_t D = s->head_dim, rotated = s->heads + s->kv_heads, width = qkv_width(s);
    const layer_weights *w = &self->weights.layer[l];
    const layer_weights *d = &self->gradients.layer[l];
    const layer_activations *a = &self->layer[l];

    /* forward: out = middle + activated down^T */
    linear_backward(self->d_activated, d->down, self->d_stream, a->activated, w->down, N, F, C, 0);
    /* forward: activated = silu(gate) * up */
    swiglu_backward(self->d_gate_up, self->d_activated, a->gate_up, N, F);
    /* forward: gate_up = mlp_normed gate_up^T */
    linear_backward(self->d_normed, d->gate_up, self->d_gate_up, a->mlp_normed, w->gate_up, N, C,
                    2 * F, 0);
    /* forward: mlp_normed = rmsnorm(middle) */
    rmsnorm_backward(self->d_stream, d->mlp_norm, self->d_normed, a->middle, a->mlp_scale,
                     w->mlp_norm, N, C);

    /* forward: middle = in + attended attention_out^T */
    linear_backward(self->d_attended, d->attention_out, self->d_stream, a->attended,
                    w->attention_out, N, s->heads * D, C, 0);
    /* forward: attended = attention(qkv) */
    if (!attention_backward(self->attention, l, a->qkv, a->attended, a->lse, self->d_attended,
                            self->d_qkv, why))
        return false;
    /* forward: q and k turned by their positions   =>   their gradients turn back */
    rope(self->d_qkv, self->rope, N, T, 0, width, rotated, D, -1);
    /* forward: qkv = attention_normed qkv^T */
    linear_backward(self->d_normed, d->qkv, self->d_qkv, a->attention_normed, w->qkv, N, C, width,
                    0);
    /* forward: attention_normed = rmsnorm(in) */
    rmsnorm_backward(self->d_stream, d->attention_norm, self->d_normed, a->in, a->attention_scale,
                     w->attention_norm, N, C);
    return true;
}

bool model_backward(model *self, const uint8_t *tokens, const uint8_t *targets, double factor,
                    failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim, V = VOCABULARY;
    const model_weights *w = &self->weights, *d = &self->gradients;

    /* forward: loss = mean of losses */
    cross_entropy_backward(self->probabilities, targets, factor / (double)N, N, V);
    /* forward: logits = last_normed embedding^T */
    linear_backward(self->d_normed, d->embedding, self->probabilities, self->last_normed,
                    w->embedding, N, C, V, 0);
    /* forward: last_normed = rmsnorm(last) */
    memset(self->d_stream, 0, (size_t)(N * C) * sizeof(real));
    rmsnorm_backward(self->d_stream, d->final_norm, self->d_normed, self->last, self->last_scale,
                     w->final_norm, N, C);
    for (int64_t l = s->layers - 1; l >= 0; l--)
        if (!layer_backward(self, l, why))
            return false;
    /* forward: in of layer 0 = the embedding's rows */
    embedding_backward(d->embedding, self->d_stream, tokens, N, C);
    return true;
}
