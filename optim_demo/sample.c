#include "sample.h"

#include "interrupt.h"
#include "layers.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The forward of model.c for one token, with the keys and values of all earlier tokens at hand. */
typedef struct decoder {
    model *m;
    real *cache[MAX_LAYERS]; /* (T, 2 Hkv, D) */
    real *stream, *normed;   /* (C) */
    real *qkv;               /* (Hq + 2 Hkv, D) */
    real *attended;          /* (Hq, D) */
    real *gate_up;           /* (2 F) */
    real *activated;         /* (F) */
    real logits[VOCABULARY];
    void *memory;
} decoder;

static bool decoder_open(decoder *self, model *m, failure *why)
{
    const model_shape *s = &m->shape;
    int64_t A = s->heads * s->head_dim, KV = 2 * s->kv_heads * s->head_dim;
    int64_t count = s->layers * s->context * KV + 2 * s->dim + A + KV + A + 3 * s->hidden;
    *self = (decoder){.m = m, .memory = calloc((size_t)count, sizeof(real))};
    if (!self->memory)
        return fail(why, "out of memory for the sample");
    real *next = self->memory;
    for (int64_t l = 0; l < s->layers; l++, next += s->context * KV)
        self->cache[l] = next;
    self->stream = next;
    self->normed = self->stream + s->dim;
    self->qkv = self->normed + s->dim;
    self->attended = self->qkv + A + KV;
    self->gate_up = self->attended + A;
    self->activated = self->gate_up + 2 * s->hidden;
    return true;
}

static bool decode_layer(decoder *self, int64_t l, int64_t position, failure *why)
{
    model *m = self->m;
    const model_shape *s = &m->shape;
    const layer_weights *w = &m->weights.layer[l];
    int64_t C = s->dim, F = s->hidden, D = s->head_dim, A = s->heads * D, KV = 2 * s->kv_heads * D;
    real scale;

    rmsnorm_forward(self->normed, &scale, self->stream, w->attention_norm, 1, C);
    linear_forward(self->qkv, self->normed, w->qkv, 1, C, A + KV, 0);
    rope(self->qkv, m->rope, 1, 1, position, A + KV, s->heads + s->kv_heads, D, 1);
    memcpy(self->cache[l] + position * KV, self->qkv + A, (size_t)KV * sizeof(real));
    if (!attention_step(m->attention, l, self->qkv, self->cache[l], position + 1, self->attended,
                        why))
        return false;
    linear_forward(self->stream, self->attended, w->attention_out, 1, A, C, 1);

    rmsnorm_forward(self->normed, &scale, self->stream, w->mlp_norm, 1, C);
    linear_forward(self->gate_up, self->normed, w->gate_up, 1, C, 2 * F, 0);
    swiglu_forward(self->activated, self->gate_up, 1, F);
    linear_forward(self->stream, self->activated, w->down, 1, F, C, 1);
    return true;
}

/* Leaves the logits of the byte that follows. */
static bool decode(decoder *self, uint8_t token, int64_t position, failure *why)
{
    const model *m = self->m;
    int64_t C = m->shape.dim;
    real scale;
    embedding_forward(self->stream, &token, m->weights.embedding, 1, C);
    for (int64_t l = 0; l < m->shape.layers; l++)
        if (!decode_layer(self, l, position, why))
            return false;
    rmsnorm_forward(self->normed, &scale, self->stream, m->weights.final_norm, 1, C);
    linear_forward(self->logits, self->normed, m->weights.embedding, 1, C, VOCABULARY, 0);
    return true;
}

static uint8_t choose(const real *logits, double temperature, random_source *source)
{
    double weights[VOCABULARY], sum = 0;
    int best = 0;
    for (int v = 1; v < VOCABULARY; v++)
        best = logits[v] > logits[best] ? v : best;
    if (temperature == 0)
        return (uint8_t)best;
    for (int v = 0; v < VOCABULARY; v++)
        sum += weights[v] = exp((double)(logits[v] - logits[best]) / temperature);
    double point = random_unit(source) * sum;
    for (int v = 0; v < VOCABULARY; v++)
        if ((point -= weights[v]) < 0)
            return (uint8_t)v;
    return (uint8_t)best;
}

bool sample_text(model *m, const uint8_t *prompt, int64_t n_prompt, int64_t n_new,
                 double temperature, random_source source, FILE *out, failure *why)
{
    decoder d;
    if (!decoder_open(&d, m, why))
        return false;
    uint8_t token = prompt[0];
    bool done = true;
    for (int64_t n = 0; done && n < n_prompt + n_new - 1 && !interrupt_signal(); n++) {
        done = decode(&d, token, n, why);
        token = n + 1 < n_prompt ? prompt[n + 1] : choose(d.logits, temperature, &source);
        if (n + 1 >= n_prompt)
            fputc(iscntrl(token) && token != '\n' && token != '\t' ? '?' : token, out);
    }
    fputc('\n', out);
    free(d.memory);
    return done;
}
