/* All that comes before the first forward: dimensions, names and first values of the weights, and
 * the memory of everything. */
#include "model.h"
#include "random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    }
    (*n)++;
}

/* Gives places to the matrices, or to the vectors, from `offset` on; where they end. */
static int64_t place(weight_info *infos, int64_t n, bool matrices, int64_t offset)
{
    for (weight_info *info = infos; info < infos + n; info++)
        if ((info->columns > 0) == matrices) {
            info->offset = offset;
            offset += info->count;
        }
    return offset;
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
    if (infos)
        place(infos, n, false, place(infos, n, true, 0));
    return n;
}

/* From w->all and w->operands, whose elements have so many bytes, to the single weights. */
static void point_weights(model_weights *w, const model *m, int64_t operand_bytes)
{
    const weight_info *info = m->infos;
#define NUMBERS(n) ((char *)w->all + info[n].offset * m->on->number_bytes)
#define OPERANDS(n) ((char *)w->operands + info[n].offset * operand_bytes)
    w->embedding = NUMBERS(0);
    w->output = OPERANDS(0);
    info++;
    for (int64_t l = 0; l < m->shape.layers; l++, info += WEIGHTS_IN_LAYER)
        w->layer[l] = (layer_weights){.attention_norm = NUMBERS(0),
                                      .qkv = OPERANDS(1),
                                      .attention_out = OPERANDS(4),
                                      .mlp_norm = NUMBERS(5),
                                      .gate_up = OPERANDS(6),
                                      .down = OPERANDS(8)};
    w->final_norm = NUMBERS(0);
#undef NUMBERS
#undef OPERANDS
}

bool model_initialize(model *self, uint64_t seed, failure *why)
{
    random_source source = {seed};
    int64_t bytes = self->n_weights * self->on->number_bytes;
    void *host = malloc((size_t)bytes);
    if (!host)
        return fail(why, "out of memory for the first weights");
    /* Each layer adds two terms to the residual stream: keep their sum as large as one. */
    double residual = 1 / sqrt(2.0 * (double)self->shape.layers);
    for (int64_t n = 0; n < self->n_infos; n++) {
        const weight_info *info = &self->infos[n];
        bool ends_branch = strstr(info->name, "o_proj") || strstr(info->name, "down_proj");
        double deviation = n == 0 ? 0.02 : 1 / sqrt((double)info->columns);
        deviation *= ends_branch ? residual : 1;
        for (int64_t i = 0; i < info->count; i++)
            number_set(self->on, host, info->offset + i,
                       info->columns ? deviation * random_normal(&source) : 1);
    }
    self->on->op->write(self->on, self->weights.all, host, bytes);
    free(host);
    model_weights_changed(self);
    return true;
}

void model_weights_changed(model *self)
{
    if (self->weights.operands != self->weights.all)
        self->on->op->round(self->on, self->weights.operands, self->weights.all, self->n_weights);
}

/* Memory */

static layer_activations lay_out_layer(const model *self, arena *a)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim, F = s->hidden, A = s->heads * s->head_dim;
    int64_t number = self->on->number_bytes, operand = self->on->operand_bytes;
    return (layer_activations){.attention_normed = arena_take(a, N * C * operand),
                               .attention_scale = arena_take(a, N * number),
                               .qkv = arena_take(a, N * model_qkv_width(s) * operand),
                               .attended = arena_take(a, N * A * operand),
                               .lse = arena_take(a, N * s->heads * number),
                               .middle = arena_take(a, N * C * number),
                               .mlp_normed = arena_take(a, N * C * operand),
                               .mlp_scale = arena_take(a, N * number),
                               .gate_up = arena_take(a, N * 2 * F * operand),
                               .activated = arena_take(a, N * F * operand)};
}

static void lay_out_weights(model *self, arena *a)
{
    int64_t n = self->n_weights, number = self->on->number_bytes, operand = self->on->operand_bytes;
    model_weights *w = &self->weights, *d = &self->gradients;
    w->all = arena_take(a, n * number);
    w->operands = self->on->operand == self->on->number ? w->all : arena_take(a, n * operand);
    d->all = d->operands = arena_take(a, n * number);
    self->first_moments = arena_take(a, n * number);
    self->second_moments = arena_take(a, n * number);
}

static void lay_out_layers(model *self, arena *a)
{
    const model_shape *s = &self->shape;
    int64_t stream = s->batch * s->context * s->dim * self->on->number_bytes;
    for (int64_t l = 0; l < s->layers; l++) {
        bool shares = l > 0 && s->checkpoint_layers;
        self->layer[l] = shares ? self->layer[0] : lay_out_layer(self, a);
        self->layer[l].in = arena_take(a, stream);
    }
}

static void lay_out(model *self, arena *a)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim, F = s->hidden, A = s->heads * s->head_dim;
    int64_t number = self->on->number_bytes, operand = self->on->operand_bytes;
    int64_t head_rows = N < HEAD_ROWS ? N : HEAD_ROWS;
    lay_out_weights(self, a);
    self->rope = arena_take(a, s->context * s->head_dim * number);
    self->tokens = arena_take(a, N);
    self->targets = arena_take(a, N);
    lay_out_layers(self, a);
    self->last = arena_take(a, N * C * number);
    self->last_normed = arena_take(a, N * C * operand);
    self->last_scale = arena_take(a, N * number);
    self->logits = arena_take(a, head_rows * VOCABULARY * number);
    self->d_logits = arena_take(a, head_rows * VOCABULARY * operand);
    self->losses = arena_take(a, N * number);
    self->d_stream = arena_take(a, N * C * number);
    self->d_rounded =
        self->on->operand == self->on->number ? self->d_stream : arena_take(a, N * C * operand);
    self->branch = self->d_normed = arena_take(a, N * C * operand);
    self->d_attended = arena_take(a, N * A * operand);
    self->d_qkv = arena_take(a, N * model_qkv_width(s) * operand);
    self->d_gate_up = arena_take(a, N * 2 * F * operand);
    self->d_activated = arena_take(a, N * F * operand);
    attention_lay_out(self->attention, a);
}

static bool allocate(model *self, failure *why)
{
    backend *on = self->on;
    arena a = {NULL, 0};
    lay_out(self, &a);
    int64_t available = on->op->available(on);
    if (a.used <= available)
        self->memory = on->op->allocate(on, a.used);
    if (!self->memory)
        return fail(why,
                    "these dimensions need %.2f GiB of memory and %s has %.2f: lower batch, "
                    "context, layers, dim or hidden%s",
                    (double)a.used / 0x1p30, on->place, (double)available / 0x1p30,
                    self->shape.checkpoint_layers ? "" : ", or give --checkpoint-layers");
    a = (arena){self->memory, 0};
    lay_out(self, &a);
    int64_t N = self->shape.batch * self->shape.context;
    self->host_losses = malloc((size_t)(N * on->number_bytes));
    return self->host_losses || fail(why, "out of memory");
}

static bool set_up(model *self, const attention_settings *settings, failure *why)
{
    const model_shape *s = &self->shape;
    self->n_infos = model_weight_infos(s, NULL);
    self->infos = calloc((size_t)self->n_infos, sizeof *self->infos);
    if (!self->infos)
        return fail(why, "out of memory");
    model_weight_infos(s, self->infos);
    for (int64_t n = 0; n < self->n_infos; n++) {
        self->n_weights += self->infos[n].count;
        self->n_decayed += self->infos[n].columns > 0 ? self->infos[n].count : 0;
    }
    attention_shape heads = {s->layers, s->batch, s->context, s->heads, s->kv_heads, s->head_dim};
    if (!attention_create(&self->attention, self->on, settings, &heads, why) ||
        !allocate(self, why))
        return false;
    point_weights(&self->weights, self, self->on->operand_bytes);
    point_weights(&self->gradients, self, self->on->number_bytes);
    attention_set_up(self->attention);
    return rope_table(self->on, self->rope, s->context, s->head_dim, s->rope_base, why);
}

bool model_create(model **self, backend *on, const model_shape *shape,
                  const attention_settings *settings, failure *why)
{
    *self = NULL;
    if (!model_shape_check(shape, why))
        return false;
    model *m = calloc(1, sizeof *m);
    if (!m)
        return fail(why, "out of memory");
    m->shape = *shape;
    m->on = on;
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
    self->on->op->release(self->on, self->memory);
    free(self->host_losses);
    free(self->infos);
    free(self);
}
