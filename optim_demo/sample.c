#include "sample.h"

#include "arena.h"
#include "interrupt.h"

#include <ctype.h>

/* The forward of model.c for one token, with the keys and values of all earlier tokens at hand.
 * (N) is an array of numbers, [N] one of operands. */
typedef struct decoder {
    model *m;
    void *cache[MAX_LAYERS]; /* [T, 2 Hkv, D] */
    uint8_t *token;
    void *stream;    /* (C) */
    void *normed;    /* [C] */
    void *scale;     /* (1) */
    void *qkv;       /* [Hq + 2 Hkv, D] */
    void *attended;  /* [Hq, D] */
    void *gate_up;   /* [2 F] */
    void *activated; /* [F] */
    void *logits;    /* (V) */
    void *memory;
} decoder;

static void lay_out(decoder *self, arena *a)
{
    const model_shape *s = &self->m->shape;
    int64_t number = self->m->on->number_bytes, operand = self->m->on->operand_bytes;
    int64_t A = s->heads * s->head_dim, KV = 2 * s->kv_heads * s->head_dim;
    for (int64_t l = 0; l < s->layers; l++)
        self->cache[l] = arena_take(a, s->context * KV * operand);
    self->token = arena_take(a, 1);
    self->stream = arena_take(a, s->dim * number);
    self->normed = arena_take(a, s->dim * operand);
    self->scale = arena_take(a, number);
    self->qkv = arena_take(a, (A + KV) * operand);
    self->attended = arena_take(a, A * operand);
    self->gate_up = arena_take(a, 2 * s->hidden * operand);
    self->activated = arena_take(a, s->hidden * operand);
    self->logits = arena_take(a, VOCABULARY * number);
}

static bool decoder_open(decoder *self, model *m, failure *why)
{
    arena a = {NULL, 0};
    *self = (decoder){.m = m};
    lay_out(self, &a);
    self->memory = m->on->op->allocate(m->on, a.used);
    if (!self->memory)
        return fail(why, "out of memory for the sample, which needs %.1f MiB",
                    (double)a.used / 0x1p20);
    a = (arena){self->memory, 0};
    lay_out(self, &a);
    return true;
}

static bool decode_layer(decoder *self, int64_t l, int64_t position, failure *why)
{
    model *m = self->m;
    const model_shape *s = &m->shape;
    const layer_weights *w = &m->weights.layer[l];
    int64_t C = s->dim, F = s->hidden, D = s->head_dim, A = s->heads * D, KV = 2 * s->kv_heads * D;
    backend *on = m->on;
    const operations *op = on->op;

    op->rmsnorm_forward(on, self->normed, self->scale, NULL, self->stream, NULL, w->attention_norm,
                        1, C);
    op->linear_forward(on, INTO_OPERANDS, self->qkv, self->normed, w->qkv, 1, C, A + KV);
    op->rope(on, self->qkv, m->rope, 1, 1, position, A + KV, s->heads + s->kv_heads, D, 1);
    op->copy(on, operand_at(on, self->cache[l], position * KV), operand_at(on, self->qkv, A),
             KV * on->operand_bytes);
    if (!attention_step(m->attention, l, self->qkv, self->cache[l], position + 1, self->attended,
                        why))
        return false;
    op->linear_forward(on, ONTO_NUMBERS, self->stream, self->attended, w->attention_out, 1, A, C);

    op->rmsnorm_forward(on, self->normed, self->scale, NULL, self->stream, NULL, w->mlp_norm, 1, C);
    op->linear_forward(on, INTO_OPERANDS, self->gate_up, self->normed, w->gate_up, 1, C, 2 * F);
    op->swiglu_forward(on, self->activated, self->gate_up, 1, F);
    op->linear_forward(on, ONTO_NUMBERS, self->stream, self->activated, w->down, 1, F, C);
    return true;
}

/* Leaves the logits of the byte that follows. */
static bool decode(decoder *self, uint8_t token, int64_t position, failure *why)
{
    const model *m = self->m;
    int64_t C = m->shape.dim;
    backend *on = m->on;
    const operations *op = on->op;
    op->write(on, self->token, &token, 1);
    op->embedding_forward(on, self->stream, self->token, m->weights.embedding, 1, C);
    for (int64_t l = 0; l < m->shape.layers; l++)
        if (!decode_layer(self, l, position, why))
            return false;
    op->rmsnorm_forward(on, self->normed, self->scale, NULL, self->stream, NULL,
                        m->weights.final_norm, 1, C);
    op->linear_forward(on, INTO_NUMBERS, self->logits, self->normed, m->weights.output, 1, C,
                       VOCABULARY);
    return true;
}

bool sample_text(model *m, const uint8_t *prompt, int64_t n_prompt, int64_t n_new,
                 double temperature, random_source source, FILE *out, failure *why)
{
    decoder d;
    if (!decoder_open(&d, m, why))
        return false;
    const operations *op = m->on->op;
    uint8_t token = prompt[0];
    bool done = true;
    for (int64_t n = 0; done && n < n_prompt + n_new - 1 && !interrupt_signal(); n++) {
        done = decode(&d, token, n, why);
        if (n + 1 < n_prompt) {
            token = prompt[n + 1];
            continue;
        }
        done = done && op->draw(m->on, d.logits, VOCABULARY, temperature, &source, &token, why);
        if (done)
            fputc(iscntrl(token) && token != '\n' && token != '\t' ? '?' : token, out);
    }
    fputc('\n', out);
    op->release(m->on, d.memory);
    return done;
}
