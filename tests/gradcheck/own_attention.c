#include "own_attention.h"

#include <math.h>
#include <string.h>

/* Numbers in (-1.5, 1.5) without any pattern that the attention could fall in with. */
static void fill(double *values, int n, double phase)
{
    for (int i = 0; i < n; i++)
        values[i] = 1.5 * sin(phase + 12.9898 * i * (1 + 0.01 * i));
}

void own_attention_fill(struct own_attention *attention)
{
    fill(&attention->q[0][0][0], OWN_HEADS * OWN_QUERIES * OWN_DIM, 0.1);
    fill(&attention->k[0][0], OWN_KEYS * OWN_DIM, 0.2);
    fill(&attention->v[0][0], OWN_KEYS * OWN_DIM, 0.3);
    fill(&attention->weights[0][0][0], OWN_HEADS * OWN_QUERIES * OWN_DIM, 0.4);
}

static double dot(const double *a, const double *b)
{
    double sum = 0;
    for (int d = 0; d < OWN_DIM; d++)
        sum += a[d] * b[d];
    return sum;
}

static void softmax_of_scores(const struct own_attention *attention, int head, int i, double *p)
{
    double sum = 0;
    for (int j = 0; j < OWN_KEYS; j++) {
        p[j] = exp(0.5 * dot(attention->q[head][i], attention->k[j]));
        sum += p[j];
    }
    for (int j = 0; j < OWN_KEYS; j++)
        p[j] /= sum;
}

double own_attention_loss(void *context)
{
    const struct own_attention *attention = context;
    double loss = 0, p[OWN_KEYS];
    for (int head = 0; head < OWN_HEADS; head++)
        for (int i = 0; i < OWN_QUERIES; i++) {
            softmax_of_scores(attention, head, i, p);
            for (int j = 0; j < OWN_KEYS; j++)
                loss += p[j] * dot(attention->weights[head][i], attention->v[j]);
        }
    return loss;
}

static void backward_row(struct own_attention *attention, int head, int i, enum own_fault fault)
{
    const double *w = attention->weights[head][i];
    double p[OWN_KEYS], delta = 0;
    softmax_of_scores(attention, head, i, p);
    for (int j = 0; j < OWN_KEYS; j++)
        delta += p[j] * dot(w, attention->v[j]);
    for (int j = 0; j < OWN_KEYS; j++) {
        double ds = p[j] * (dot(w, attention->v[j]) - (fault == OWN_NO_DELTA ? 0 : delta));
        for (int d = 0; d < OWN_DIM; d++) {
            attention->dv[j][d] += p[j] * w[d];
            attention->dq[head][i][d] += 0.5 * ds * attention->k[j][d];
            attention->dk[j][d] += 0.5 * ds * attention->q[head][i][d];
        }
    }
}

void own_attention_backward(struct own_attention *attention, enum own_fault fault)
{
    memset(attention->dq, 0, sizeof attention->dq);
    memset(attention->dk, 0, sizeof attention->dk);
    memset(attention->dv, 0, sizeof attention->dv);
    for (int head = 0; head < OWN_HEADS; head++) {
        if (fault == OWN_NO_ACCUMULATE)
            memset(attention->dk, 0, sizeof attention->dk);
        for (int i = 0; i < OWN_QUERIES; i++)
            backward_row(attention, head, i, fault);
    }
    if (fault == OWN_ONE_ELEMENT)
        attention->dv[3][2] += 1e-3 * fabs(attention->dv[3][2]) + 2e-3;
    if (fault == OWN_NAN)
        attention->dk[6][0] = NAN;
    if (fault == OWN_INFINITY)
        attention->dq[1][2][3] = INFINITY;
    for (int n = 0; fault == OWN_WRONG_SIGN && n < OWN_HEADS * OWN_QUERIES * OWN_DIM; n++)
        (&attention->dq[0][0][0])[n] *= -1;
}

static hpa_tensor view(double *data, int32_t ndim, int64_t a, int64_t b, int64_t c)
{
    hpa_tensor tensor = {.data = data, .dtype = HPA_F64, .ndim = ndim, .shape = {a, b, c}};
    tensor.stride[ndim - 1] = 1;
    for (int32_t n = ndim - 2; n >= 0; n--)
        tensor.stride[n] = tensor.stride[n + 1] * tensor.shape[n + 1];
    return tensor;
}

void own_attention_inputs(struct own_attention *attention, hpa_gradcheck_input inputs[3])
{
    inputs[0] =
        (hpa_gradcheck_input){"q", view(&attention->q[0][0][0], 3, OWN_HEADS, OWN_QUERIES, OWN_DIM),
                              view(&attention->dq[0][0][0], 3, OWN_HEADS, OWN_QUERIES, OWN_DIM)};
    inputs[1] = (hpa_gradcheck_input){"k", view(&attention->k[0][0], 2, OWN_KEYS, OWN_DIM, 0),
                                      view(&attention->dk[0][0], 2, OWN_KEYS, OWN_DIM, 0)};
    inputs[2] = (hpa_gradcheck_input){"v", view(&attention->v[0][0], 2, OWN_KEYS, OWN_DIM, 0),
                                      view(&attention->dv[0][0], 2, OWN_KEYS, OWN_DIM, 0)};
}
