#include "layers.h"

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

void linear_forward(real *out, const real *in, const real *weight, int64_t N, int64_t K, int64_t O,
                    int add)
{
    product(CblasNoTrans, CblasTrans, N, O, K, in, K, weight, K, add ? 1 : 0, out);
}

void linear_backward(real *d_in, real *d_weight, const real *d_out, const real *in,
                     const real *weight, int64_t N, int64_t K, int64_t O, int add)
{
    /* forward: out = in weight^T   =>   d_in = d_out weight,   d_weight += d_out^T in */
    product(CblasNoTrans, CblasNoTrans, N, K, O, d_out, O, weight, K, add ? 1 : 0, d_in);
    product(CblasTrans, CblasNoTrans, O, K, N, d_out, O, in, K, 1, d_weight);
}

static const real epsilon = (real)1e-5; /* keeps a row of zeros finite */

void rmsnorm_forward(real *out, real *scale, const real *in, const real *weight, int64_t N,
                     int64_t C)
{
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const real *x = in + n * C;
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

void rmsnorm_backward(real *d_in, real *d_weight, const real *d_out, const real *in,
                      const real *scale, const real *weight, int64_t N, int64_t C)
{
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
            d_in[n * C + c] += dy[c] * weight[c] * s - pull * x[c];
    }
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

void rope_table(real *table, int64_t T, int64_t D, double base)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < D / 2; i++) {
            double angle = (double)t * pow(base, -2.0 * (double)i / (double)D);
            table[(t * (D / 2) + i) * 2] = (real)cos(angle);
            table[(t * (D / 2) + i) * 2 + 1] = (real)sin(angle);
        }
}

void rope(real *x, const real *table, int64_t N, int64_t T, int64_t first, int64_t stride,
          int64_t heads, int64_t D, int direction)
{
    int64_t half = D / 2;
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

void swiglu_forward(real *out, const real *gate_up, int64_t N, int64_t F)
{
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const real *gate = gate_up + n * 2 * F, *up = gate + F;
#pragma omp simd
        for (int64_t f = 0; f < F; f++)
            out[n * F + f] = gate[f] / (1 + exp(-gate[f])) * up[f];
    }
}

void swiglu_backward(real *d_gate_up, const real *d_out, const real *gate_up, int64_t N, int64_t F)
{
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

void embedding_forward(real *out, const uint8_t *tokens, const real *table, int64_t N, int64_t C)
{
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        memcpy(out + n * C, table + tokens[n] * C, (size_t)C * sizeof *out);
}

void embedding_backward(real *d_table, const real *d_out, const uint8_t *tokens, int64_t N,
                        int64_t C)
{
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

void cross_entropy_forward(real *losses, real *logits, const uint8_t *targets, int64_t N, int64_t V)
{
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
        for (int64_t v = 0; v < V; v++)
            x[v] /= sum;
        losses[n] = log(sum) + largest - wanted;
    }
}

void cross_entropy_backward(real *probabilities, const uint8_t *targets, double factor, int64_t N,
                            int64_t V)
{
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        /* forward: loss = log(sum exp x) - x[target]   =>   dx = probability - [v == target] */
        real *x = probabilities + n * V;
        x[targets[n]] -= 1;
        for (int64_t v = 0; v < V; v++)
            x[v] *= (real)factor;
    }
}
