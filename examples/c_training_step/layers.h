/* layers.h - what a GPT is made of besides attention: plain loops over float, forward and backward.
 *
 * B batch, T tokens, C channels, OC channels out, N rows (B * T). Backward functions add to the
 * gradients that they are given. */
#ifndef LAYERS_H
#define LAYERS_H

#include <math.h>
#include <stdint.h>

/* out (N, OC) = inp (N, C) weight (OC, C)^T + bias (OC) */
static void matmul_forward(float *out, const float *inp, const float *weight, const float *bias,
                           int N, int C, int OC)
{
#pragma omp parallel for
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            float sum = bias ? bias[o] : 0;
            for (int c = 0; c < C; c++)
                sum += inp[(int64_t)n * C + c] * weight[(int64_t)o * C + c];
            out[(int64_t)n * OC + o] = sum;
        }
}

static void matmul_backward(float *dinp, float *dweight, float *dbias, const float *dout,
                            const float *inp, const float *weight, int N, int C, int OC)
{
    /* forward: out[n][o] += inp[n][c] * weight[o][c]   =>   dinp[n][c] += dout[n][o] * weight[o][c] */
#pragma omp parallel for
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++)
            for (int c = 0; c < C; c++)
                dinp[(int64_t)n * C + c] += dout[(int64_t)n * OC + o] * weight[(int64_t)o * C + c];
                /* forward: the same   =>   dweight[o][c] += dout[n][o] * inp[n][c],   dbias[o] += dout[n][o] */
#pragma omp parallel for
    for (int o = 0; o < OC; o++)
        for (int n = 0; n < N; n++) {
            const float d = dout[(int64_t)n * OC + o];
            if (dbias)
                dbias[o] += d;
            for (int c = 0; c < C; c++)
                dweight[(int64_t)o * C + c] += d * inp[(int64_t)n * C + c];
        }
}

/* out = (inp - mean) * rstd * weight + bias, over the channels of each row; mean and rstd (N) */
static void layernorm_forward(float *out, float *mean, float *rstd, const float *inp,
                              const float *weight, const float *bias, int N, int C)
{
    for (int n = 0; n < N; n++) {
        const float *x = inp + (int64_t)n * C;
        float sum = 0, squares = 0;
        for (int c = 0; c < C; c++)
            sum += x[c];
        mean[n] = sum / (float)C;
        for (int c = 0; c < C; c++)
            squares += (x[c] - mean[n]) * (x[c] - mean[n]);
        rstd[n] = 1 / sqrtf(squares / (float)C + 1e-5F);
        for (int c = 0; c < C; c++)
            out[(int64_t)n * C + c] = (x[c] - mean[n]) * rstd[n] * weight[c] + bias[c];
    }
}

static void layernorm_backward(float *dinp, float *dweight, float *dbias, const float *dout,
                               const float *inp, const float *weight, const float *mean,
                               const float *rstd, int N, int C)
{
    for (int n = 0; n < N; n++) {
        const float *x = inp + (int64_t)n * C, *d = dout + (int64_t)n * C;
        float sum = 0, sum_norm = 0;
        for (int c = 0; c < C; c++) {
            const float norm = (x[c] - mean[n]) * rstd[n];
            dbias[c] += d[c];
            dweight[c] += d[c] * norm;
            sum += d[c] * weight[c];
            sum_norm += d[c] * weight[c] * norm;
        }
        /* mean and rstd depend on every channel: the two sums are their share */
        for (int c = 0; c < C; c++) {
            const float norm = (x[c] - mean[n]) * rstd[n];
            dinp[(int64_t)n * C + c] +=
                (d[c] * weight[c] - sum / (float)C - norm * sum_norm / (float)C) * rstd[n];
        }
    }
}

/* GELU in its tanh form: out = x (1 + tanh(s (x + a x^3))) / 2 */
#define GELU_A 0.044715F
#define GELU_S 0.7978845608F

static void gelu_forward(float *out, const float *inp, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float x = inp[i];
        out[i] = 0.5F * x * (1 + tanhf(GELU_S * (x + GELU_A * x * x * x)));
    }
}

static void gelu_backward(float *dinp, const float *inp, const float *dout, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float x = inp[i], t = tanhf(GELU_S * (x + GELU_A * x * x * x));
        const float dt = (1 - t * t) * GELU_S * (1 + 3 * GELU_A * x * x);
        dinp[i] += dout[i] * 0.5F * (1 + t + x * dt);
    }
}

static void add(float *out, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] + b[i];
}

/* Mean cross-entropy of logits (N, V); logits become its gradient. */
static float cross_entropy(float *logits, const unsigned char *targets, int N, int V)
{
    double loss = 0;
    for (int n = 0; n < N; n++) {
        float *row = logits + (int64_t)n * V, max = row[0], sum = 0;
        for (int v = 1; v < V; v++)
            max = fmaxf(max, row[v]);
        for (int v = 0; v < V; v++)
            sum += expf(row[v] - max);
        loss += logf(sum) + max - row[targets[n]];
        for (int v = 0; v < V; v++)
            row[v] = (expf(row[v] - max) / sum - (v == targets[n])) / (float)N;
    }
    return (float)(loss / N);
}

#endif
