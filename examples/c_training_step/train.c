/* train.c - a GPT of one block that learns the bytes of a file, in the manner of llm.c: one packed
 * buffer of activations, one of parameters, plain loops, dense attention.
 *
 *     train FILE [STEPS [TOP_K [GRADIENTS]]]
 *
 * TOP_K is not used here: README.md shows what makes it count. GRADIENTS: a file that the first step's
 * gradients are written to. */
#include "attention.h"
#include "layers.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, T = 512, NH = 4, HS = 16, C = NH * HS, V = 256, N = B * T };

typedef struct parameters {
    float wte[V * C], wpe[T * C];
    float ln1w[C], ln1b[C], qkvw[3 * C * C], qkvb[3 * C], projw[C * C], projb[C];
    float ln2w[C], ln2b[C], fcw[4 * C * C], fcb[4 * C], outw[4 * C * C], outb[C];
    float lnfw[C], lnfb[C];
} parameters;

typedef struct activations {
    float x0[N * C], ln1[N * C], mean1[N], rstd1[N];
    float qkv[N * 3 * C], atty[N * C]; /* (B, T, 3, NH, HS) and (B, T, NH, HS) */
    float proj[N * C], x1[N * C], ln2[N * C], mean2[N], rstd2[N];
    float fc[N * 4 * C], gelu[N * 4 * C], out[N * C];
    float x2[N * C], lnf[N * C], meanf[N], rstdf[N], logits[N * V];
} activations;

/* Attention: what it keeps from forward to backward, and its two halves. */

typedef struct attention {
    const activations *a;
    float *att; /* (B, NH, T, T) */
} attention;

static bool attention_new(attention *self, int top_k)
{
    (void)top_k;
    self->att = calloc((size_t)B * NH * T * T, sizeof(float));
    return self->att;
}

static bool attend(attention *self, activations *a)
{
    self->a = a;
    attention_forward(a->atty, self->att, a->qkv, B, T, NH, HS);
    return true;
}

static bool attend_backward(attention *self, activations *d)
{
    attention_backward(d->qkv, d->atty, self->a->atty, self->a->qkv, self->att, B, T, NH, HS);
    return true;
}

/* The model */

/* The loss; NaN where attention failed. */
static float forward(const parameters *p, activations *a, attention *att,
                     const unsigned char *tokens, const unsigned char *targets)
{
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            a->x0[n * C + c] = p->wte[tokens[n] * C + c] + p->wpe[n % T * C + c];
    layernorm_forward(a->ln1, a->mean1, a->rstd1, a->x0, p->ln1w, p->ln1b, N, C);
    matmul_forward(a->qkv, a->ln1, p->qkvw, p->qkvb, N, C, 3 * C);
    if (!attend(att, a))
        return NAN;
    matmul_forward(a->proj, a->atty, p->projw, p->projb, N, C, C);
    add(a->x1, a->x0, a->proj, N * C);
    layernorm_forward(a->ln2, a->mean2, a->rstd2, a->x1, p->ln2w, p->ln2b, N, C);
    matmul_forward(a->fc, a->ln2, p->fcw, p->fcb, N, C, 4 * C);
    gelu_forward(a->gelu, a->fc, N * 4 * C);
    matmul_forward(a->out, a->gelu, p->outw, p->outb, N, 4 * C, C);
    add(a->x2, a->x1, a->out, N * C);
    layernorm_forward(a->lnf, a->meanf, a->rstdf, a->x2, p->lnfw, p->lnfb, N, C);
    matmul_forward(a->logits, a->lnf, p->wte, NULL, N, C, V);
    return cross_entropy(a->logits, targets, N, V); /* logits are now their gradient */
}

static bool backward(const parameters *p, parameters *g, activations *a, activations *d,
                     attention *att, const unsigned char *tokens)
{
    memset(g, 0, sizeof *g);
    memset(d, 0, sizeof *d);
    matmul_backward(d->lnf, g->wte, NULL, a->logits, a->lnf, p->wte, N, C, V);
    layernorm_backward(d->x2, g->lnfw, g->lnfb, d->lnf, a->x2, p->lnfw, a->meanf, a->rstdf, N, C);
    matmul_backward(d->gelu, g->outw, g->outb, d->x2, a->gelu, p->outw, N, 4 * C, C);
    gelu_backward(d->fc, a->fc, d->gelu, N * 4 * C);
    matmul_backward(d->ln2, g->fcw, g->fcb, d->fc, a->ln2, p->fcw, N, C, 4 * C);
    layernorm_backward(d->x1, g->ln2w, g->ln2b, d->ln2, a->x1, p->ln2w, a->mean2, a->rstd2, N, C);
    add(d->x1, d->x1, d->x2, N * C);
    matmul_backward(d->atty, g->projw, g->projb, d->x1, a->atty, p->projw, N, C, C);
    if (!attend_backward(att, d))
        return false;
    matmul_backward(d->ln1, g->qkvw, g->qkvb, d->qkv, a->ln1, p->qkvw, N, C, 3 * C);
    layernorm_backward(d->x0, g->ln1w, g->ln1b, d->ln1, a->x0, p->ln1w, a->mean1, a->rstd1, N, C);
    add(d->x0, d->x0, d->x1, N * C);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) {
            g->wte[tokens[n] * C + c] += d->x0[n * C + c];
            g->wpe[n % T * C + c] += d->x0[n * C + c];
        }
    return true;
}

/* Training */

static unsigned random_bits(void)
{
    static unsigned long long state = 1;
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(state >> 33);
}

static void fill(float *weights, size_t n, float value, float spread)
{
    for (size_t i = 0; i < n; i++)
        weights[i] = value + spread * ((float)random_bits() / (float)(1U << 30) - 1);
}

static void parameters_init(parameters *p)
{
    fill((float *)p, sizeof *p / sizeof(float), 0, 0.05F);
    fill(p->ln1w, C, 1, 0);
    fill(p->ln2w, C, 1, 0);
    fill(p->lnfw, C, 1, 0);
}

static void adam(float *p, const float *g, float *m, float *v, size_t n, int step)
{
    const float rate = 3e-3F / (1 - powf(0.9F, (float)step));
    for (size_t i = 0; i < n; i++) {
        m[i] = 0.9F * m[i] + 0.1F * g[i];
        v[i] = 0.99F * v[i] + 0.01F * g[i] * g[i];
        p[i] -= rate * m[i] / (sqrtf(v[i] / (1 - powf(0.99F, (float)step))) + 1e-8F);
    }
}

/* At most limit bytes of a file; 0 where it cannot be read. */
static size_t read_file(const char *name, unsigned char *text, size_t limit)
{
    FILE *file = fopen(name, "rb");
    if (!file)
        return 0;
    const size_t size = fread(text, 1, limit, file);
    fclose(file);
    return size;
}

static void next_batch(unsigned char *tokens, unsigned char *targets, const unsigned char *text,
                       size_t size)
{
    for (int b = 0; b < B; b++) {
        const size_t start = random_bits() % (size - T - 1);
        memcpy(tokens + b * T, text + start, T);
        memcpy(targets + b * T, text + start + 1, T);
    }
}

static bool write_file(const char *name, const void *data, size_t size)
{
    FILE *file = fopen(name, "wb");
    const bool written = file && fwrite(data, size, 1, file) == 1;
    return file && fclose(file) == 0 && written;
}

/* Parameters, their gradients, Adam's two averages; activations and their gradients. */
typedef struct state {
    parameters p, g, m, v;
    activations a, d;
    attention att;
    unsigned char tokens[N], targets[N], text[1 << 20];
} state;

static bool train(state *s, size_t size, int steps, const char *gradients)
{
    for (int step = 1; step <= steps; step++) {
        next_batch(s->tokens, s->targets, s->text, size);
        const float loss = forward(&s->p, &s->a, &s->att, s->tokens, s->targets);
        if (!(loss < INFINITY) || !backward(&s->p, &s->g, &s->a, &s->d, &s->att, s->tokens))
            return false;
        if (step == 1 && gradients && !write_file(gradients, &s->g, sizeof s->g))
            return false;
        adam((float *)&s->p, (const float *)&s->g, (float *)&s->m, (float *)&s->v,
             sizeof s->p / sizeof(float), step);
        if (step == 1 || step % 10 == 0)
            printf("step %d, loss %.4f\n", step, loss);
    }
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return fprintf(stderr, "usage: %s FILE [STEPS [TOP_K [GRADIENTS]]]\n", argv[0]), 2;
    const int steps = argc > 2 ? atoi(argv[2]) : 100, top_k = argc > 3 ? atoi(argv[3]) : T;
    state *s = calloc(1, sizeof *s);
    if (!s)
        return fprintf(stderr, "out of memory\n"), 1;
    const size_t size = read_file(argv[1], s->text, sizeof s->text);
    if (size < T + 2)
        return fprintf(stderr, "%s: expected a file of more than %d bytes\n", argv[1], T + 1), 1;
    parameters_init(&s->p);
    if (!attention_new(&s->att, top_k) || !train(s, size, steps, argc > 4 ? argv[4] : NULL))
        return fprintf(stderr, "training failed\n"), 1;
    free(s);
    return 0;
}
