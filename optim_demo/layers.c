/* The layers of the transformer on the CPU, each forward followed by its backward. backend.h says
 * what they do; numbers and operands are both `real` here. */
#include "cpu.h"
#include "real.h"

#include <cblas.h>
#include <omp.h>
#include <string.h>
#include <tgmath.h>

/* c (m, n) = beta * c + op(a) op(b), with k between them. Each thread makes some rows of c with a
 * BLAS that main told to use one thread: for the small products of a toy model that is more than
 * twice as fast as letting the BLAS share out the work. */
static void product(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, int64_t m, int64_t n, int64_t k,
                    const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c)
{
#pragma omp parallel
    {
        int64_t first = m * omp_get_thread_num() / omp_get_num_threads();
        int64_t last = m * (omp_get_thread_num() + 1) / omp_get_num_threads();
        const real *a_rows = a + (op_a == CblasNoTrans ? first * lda : first);
        if (first < last)
            cblas_gemm(CblasRowMajor, op_a, op_b, (int)(last - first), (int)n, (int)k, 1, a_rows,
                       (int)lda, b, (int)ldb, beta, c + first * n, (int)n);
    }
}

static void linear_forward(backend *on, into where, void *out, const void *in, const void *weight,
                           int64_t N, int64_t K, int64_t O)
{
    phase before = cpu_enter(on, PHASE_PRODUCTS);
    product(CblasNoTrans, CblasTrans, N, O, K, in, K, weight, K, where == ONTO_NUMBERS ? 1 : 0,
            out);
    cpu_enter(on, before);
}

static void linear_backward(backend *on, void *d_in, void *d_weight, const void *d_out,
                            const void *in, const void *weight, int64_t N, int64_t K, int64_t O)
{
    phase before = cpu_enter(on, PHASE_PRODUCTS);
    /* forward: out = in weight^T   =>   d_in = d_out weight,   d_weight += d_out^T in */
    product(CblasNoTrans, CblasNoTrans, N, K, O, d_out, O, weight, K, 0, d_in);
    product(CblasTrans, CblasNoTrans, O, K, N, d_out, O, in, K, 1, d_weight);
    cpu_enter(on, before);
}

static void round_numbers(backend *on, void *to, const void *from, int64_t n)
{
    cpu_copy(on, to, from, n * (int64_t)sizeof(real));
}

static const real epsilon = (real)NORM_EPSILON;

static void rmsnorm_forward(backend *on, void *out_, void *scale_, void *sum_, const void *in_,
                            const void *branch_, const void *weight_, int64_t N, int64_t C)
{
    real *out = out_, *scale = scale_, *sum = sum_;
    const real *in = in_, *branch = branch_, *weight = weight_;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        for (int64_t c = 0; branch && c < C; c++)
            sum[n * C + c] = in[n * C + c] + branch[n * C + c];
        const real *x = (branch ? sum : in) + n * C;
        real squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < C; c++)
            squares += x[c] * x[c];
        real s = 1 / sqrt(squares / (real)C + epsilon);
        for (int64_t c = 0; c < C; c++)
            out[n * C + c] = weight[c] * x[c] * s;
        scale[n] = s;
    }
}

static void rmsnorm_backward(backend *on, into where, void *d_in_, void *rounded, void *d_weight_,
                             const void *d_out_, const void *in_, const void *scale_,
                             const void *weight_, int64_t N, int64_t C)
{
    real *d_in = d_in_, *d_weight = d_weight_;
    const real *d_out = d_out_, *in = in_, *scale = scale_, *weight = weight_;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const real *x = in + n * C, *dy = d_out + n * C;
        real s = scale[n], dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t c = 0; c < C; c++)
            dot += dy[c] * weight[c] * x[c];
        /* forward: y = w x s,   s = (mean x^2 + epsilon)^-1/2   =>   ds/dx = -s^3 x / C */
        real pull = s * s * s * dot / (real)C;
        for (int64_t c = 0; c < C; c++)
            d_in[n * C + c] =
                (where == ONTO_NUMBERS ? d_in[n * C + c] : 0) + dy[c] * weight[c] * s - pull * x[c];
    }
    if (rounded != d_in)
        round_numbers(on, rounded, d_in, N * C);
    /* forward: y = w x s   =>   dw += sum over rows of dy x s. A thread owns some columns. */
    enum { COLUMNS = 16 };
#pragma omp parallel for
    for (int64_t first = 0; first < C; first += COLUMNS) {
        int64_t last = first + COLUMNS < C ? first + COLUMNS : C;
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = first; c < last; c++)
                d_weight[c] += d_out[n * C + c] * in[n * C + c] * scale[n];
    }
}

static void rope(backend *on, void *x_, const void *table_, int64_t N, int64_t T, int64_t first,
                 int64_t stride, int64_t heads, int64_t D, int direction)
{
    real *x = x_;
    const real *table = table_;
    int64_t half = D / 2;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const real *turn = table + (first + n % T) * half * 2;
        for (int64_t h = 0; h < heads; h++) {
            real *a = x + n * stride + h * D, *b = a + half;
            for (int64_t i = 0; i < half; i++) {
                real c = turn[2 * i], s = (real)direction * turn[2 * i + 1];
                real a_i = a[i], b_i = b[i];
                a[i] = a_i * c - b_i * s;
                b[i] = b_i * c + a_i * s;
            }
        }
    }
}

static void swiglu_forward(backend *on, void *out_, const void *gate_up_, int64_t N, int64_t F)
{
    real *out = out_;
    const real *gate_up = gate_up_;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const real *gate = gate_up + n * 2 * F, *up = gate + F;
#pragma omp simd
        for (int64_t f = 0; f < F; f++)
            out[n * F + f] = gate[f] / (1 + exp(-gate[f])) * up[f];
    }
}

static void swiglu_backward(backend *on, void *d_gate_up_, const void *d_out_, const void *gate_up_,
                            int64_t N, int64_t F)
{
    real *d_gate_up = d_gate_up_;
    const real *d_out = d_out_, *gate_up = gate_up_;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const real *gate = gate_up + n * 2 * F, *up = gate + F, *dy = d_out + n * F;
        real *d_gate = d_gate_up + n * 2 * F, *d_up = d_gate + F;
#pragma omp simd
        for (int64_t f = 0; f < F; f++) {
            /* forward: y = g sigmoid(g) u   =>   du = dy g sigmoid(g),
             *                                    dg = dy u sigmoid(g) (1 + g (1 - sigmoid(g))) */
            real sigmoid = 1 / (1 + exp(-gate[f]));
            d_up[f] = dy[f] * gate[f] * sigmoid;
            d_gate[f] = dy[f] * up[f] * sigmoid * (1 + gate[f] * (1 - sigmoid));
        }
    }
}

static void embedding_forward(backend *on, void *out_, const uint8_t *tokens, const void *table_,
                              int64_t N, int64_t C)
{
    real *out = out_;
    const real *table = table_;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        memcpy(out + n * C, table + tokens[n] * C, (size_t)C * sizeof *out);
}

static void embedding_backward(backend *on, void *d_table_, const void *d_out_,
                               const uint8_t *tokens, int64_t N, int64_t C)
{
    real *d_table = d_table_;
    const real *d_out = d_out_;
    (void)on;
    /* forward: out[n] = table[token[n]]   =>   d_table[token[n]] += d_out[n]. A thread owns some
     * columns, because a token may come many times. */
    enum { COLUMNS = 16 };
#pragma omp parallel for
    for (int64_t first = 0; first < C; first += COLUMNS) {
        int64_t last = first + COLUMNS < C ? first + COLUMNS : C;
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = first; c < last; c++)
                d_table[tokens[n] * C + c] += d_out[n * C + c];
    }
}

static void cross_entropy(backend *on, void *losses_, void *d_logits_, void *logits_,
                          const uint8_t *targets, double factor, int64_t N, int64_t V)
{
    real *losses = losses_, *d_logits = d_logits_, *logits = logits_;
    (void)on;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        real *x = logits + n * V;
        real largest = x[0], sum = 0, wanted = x[targets[n]];
        for (int64_t v = 1; v < V; v++)
            largest = x[v] > largest ? x[v] : largest;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < V; v++) {
            x[v] = exp(x[v] - largest);
            sum += x[v];
        }
        losses[n] = log(sum) + largest - wanted;
        if (!d_logits)
            continue;
        /* forward: loss = log(sum exp x) - x[target]   =>   dx = probability - [v == target] */
        real *dx = d_logits + n * V;
        for (int64_t v = 0; v < V; v++)
            dx[v] = x[v] / sum;
        dx[targets[n]] -= 1;
        for (int64_t v = 0; v < V; v++)
            dx[v] *= (real)factor;
    }
}

static void adamw(backend *on, void *weights_, void *rounded, void *first_, void *second_,
                  const void *gradients_, int64_t n, const adamw_step *step)
{
    real *weights = weights_, *first = first_, *second = second_;
    const real *gradients = gradients_;
    real beta1 = (real)step->beta1, beta2 = (real)step->beta2;
    /* The running means start at zero: undo that bias. */
    real unbias1 = (real)(1 / (1 - pow(step->beta1, (double)step->number)));
    real unbias2 = (real)(1 / (1 - pow(step->beta2, (double)step->number)));
    real rate = (real)step->learning_rate;
    real keep = (real)(1 - step->learning_rate * step->weight_decay);
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) {
        real g = gradients[i];
        first[i] = beta1 * first[i] + (1 - beta1) * g;
        second[i] = beta2 * second[i] + (1 - beta2) * g * g;
        real root = sqrt(second[i] * unbias2);
        weights[i] = (i < step->decayed ? keep : 1) * weights[i] -
                     rate * first[i] * unbias1 / (root + (real)ADAMW_EPSILON);
    }
    if (rounded != weights)
        round_numbers(on, rounded, weights, n);
}

static void scale(backend *on, void *x_, double factor, int64_t n)
{
    real *x = x_;
    (void)on;
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++)
        x[i] *= (real)factor;
}

/* In an order that does not depend on the number of threads. */
static double sum_in_chunks(const real *x, int64_t n, bool squared)
{
    enum { CHUNK = 1 << 15 };
    double sum = 0;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t last = first + CHUNK < n ? first + CHUNK : n;
        double chunk = 0;
#pragma omp simd reduction(+ : chunk)
        for (int64_t i = first; i < last; i++)
            chunk += (double)x[i] * (squared ? (double)x[i] : 1);
        sum += chunk;
    }
    return sum;
}

static bool sum(backend *on, const void *x, int64_t n, double *sum, failure *why)
{
    (void)on, (void)why;
    *sum = sum_in_chunks(x, n, false);
    return true;
}

static bool sum_of_squares(backend *on, const void *x, int64_t n, double *sum, failure *why)
{
    (void)on, (void)why;
    *sum = sum_in_chunks(x, n, true);
    return true;
}

static bool draw(backend *on, const void *logits_, int64_t V, double temperature,
                 random_source *source, uint8_t *drawn, failure *why)
{
    const real *logits = logits_;
    int64_t best = 0;
    double sum = 0;
    (void)on, (void)why;
    for (int64_t v = 1; v < V; v++)
        best = logits[v] > logits[best] ? v : best;
    *drawn = (uint8_t)best;
    if (temperature == 0)
        return true;
    for (int64_t v = 0; v < V; v++)
        sum += exp((double)(logits[v] - logits[best]) / temperature);
    double point = random_unit(source) * sum;
    for (int64_t v = 0; v < V; v++)
        if ((point -= exp((double)(logits[v] - logits[best]) / temperature)) < 0) {
            *drawn = (uint8_t)v;
            break;
        }
    return true;
}

const operations CPU_OPERATIONS = {.close = cpu_close,
                                   .allocate = cpu_allocate,
                                   .release = cpu_release,
                                   .available = cpu_available,
                                   .clear = cpu_clear,
                                   .copy = cpu_copy,
                                   .write = cpu_copy,
                                   .read = cpu_read,
                                   .enter = cpu_enter,
                                   .read_clock = cpu_read_clock,
                                   .linear_forward = linear_forward,
                                   .linear_backward = linear_backward,
                                   .round = round_numbers,
                                   .rmsnorm_forward = rmsnorm_forward,
                                   .rmsnorm_backward = rmsnorm_backward,
                                   .rope = rope,
                                   .swiglu_forward = swiglu_forward,
                                   .swiglu_backward = swiglu_backward,
                                   .embedding_forward = embedding_forward,
                                   .embedding_backward = embedding_backward,
                                   .cross_entropy = cross_entropy,
                                   .adamw = adamw,
                                   .scale = scale,
                                   .sum = sum,
                                   .sum_of_squares = sum_of_squares,
                                   .draw = draw};
