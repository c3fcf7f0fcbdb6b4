/* attention.h - dense causal attention over a packed buffer, forward and backward.
 *
 * inp, dinp    (B, T, 3, NH, HS): query, key and value of every head
 * out, dout    (B, T, NH, HS)
 * att, datt    (B, NH, T, T): what a long context cannot afford */
#ifndef ATTENTION_H
#define ATTENTION_H

#include <math.h>
#include <stdint.h>

static void attention_forward(float *out, float *att, const float *inp, int B, int T, int NH,
                              int HS)
{
    const int64_t C = (int64_t)NH * HS;
#pragma omp parallel for collapse(2)
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                const float *q = inp + ((int64_t)b * T + i) * 3 * C + (int64_t)h * HS;
                float *p = att + (((int64_t)b * NH + h) * T + i) * T, max = -INFINITY, sum = 0;
                float *o = out + ((int64_t)b * T + i) * C + (int64_t)h * HS;
                for (int j = 0; j <= i; j++) {
                    const float *k = inp + ((int64_t)b * T + j) * 3 * C + C + (int64_t)h * HS;
                    p[j] = 0;
                    for (int d = 0; d < HS; d++)
                        p[j] += q[d] * k[d] / sqrtf((float)HS);
                    max = fmaxf(max, p[j]);
                }
                for (int j = 0; j <= i; j++)
                    sum += p[j] = expf(p[j] - max);
                for (int d = 0; d < HS; d++)
                    o[d] = 0;
                for (int j = 0; j <= i; j++) {
                    const float *v = inp + ((int64_t)b * T + j) * 3 * C + 2 * C + (int64_t)h * HS;
                    p[j] /= sum;
                    for (int d = 0; d < HS; d++)
                        o[d] += p[j] * v[d];
                }
            }
}

static void attention_backward(float *dinp, const float *dout, const float *out, const float *inp,
                               const float *att, int B, int T, int NH, int HS)
{
    const int64_t C = (int64_t)NH * HS;
#pragma omp parallel for collapse(2)
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                const int64_t query = ((int64_t)b * T + i) * 3 * C + (int64_t)h * HS;
                const float *p = att + (((int64_t)b * NH + h) * T + i) * T;
                const float *d_o = dout + ((int64_t)b * T + i) * C + (int64_t)h * HS;
                const float *o = out + ((int64_t)b * T + i) * C + (int64_t)h * HS;
                float delta = 0;
                for (int d = 0; d < HS; d++)
                    delta += d_o[d] * o[d];
                for (int j = 0; j <= i; j++) {
                    const int64_t key = ((int64_t)b * T + j) * 3 * C + C + (int64_t)h * HS;
                    const int64_t value = key + C;
                    float dp = 0;
                    /* forward: o += p[j] * v[j]   =>   dv[j] += p[j] * d_o,   dp[j] = d_o . v[j] */
                    for (int d = 0; d < HS; d++) {
                        dinp[value + d] += p[j] * d_o[d];
                        dp += d_o[d] * inp[value + d];
                    }
                    /* forward: p = softmax(s), s[j] = q . k[j] / sqrt(HS)
                     * =>   ds[j] = p[j] (dp[j] - delta),   dq += ds[j] k[j],   dk[j] += ds[j] q */
                    const float ds = p[j] * (dp - delta) / sqrtf((float)HS);
                    for (int d = 0; d < HS; d++) {
                        dinp[query + d] += ds * inp[key + d];
                        dinp[key + d] += ds * inp[query + d];
                    }
                }
            }
}

#endif
