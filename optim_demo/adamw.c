#include "adamw.h"

#include <tgmath.h>

void adamw_update(const adamw *self, int64_t offset, real *weights, const real *gradients,
                  int64_t n, int64_t step, double learning_rate, int decay)
{
    real *first = self->first + offset, *second = self->second + offset;
    real beta1 = (real)self->beta1, beta2 = (real)self->beta2;
    /* The running means start at zero: undo that bias. */
    real unbias1 = (real)(1 / (1 - pow(self->beta1, (double)step)));
    real unbias2 = (real)(1 / (1 - pow(self->beta2, (double)step)));
    real rate = (real)learning_rate;
    real keep = decay ? (real)(1 - learning_rate * self->weight_decay) : 1;
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) {
        real g = gradients[i];
        first[i] = beta1 * first[i] + (1 - beta1) * g;
        second[i] = beta2 * second[i] + (1 - beta2) * g * g;
        real root = sqrt(second[i] * unbias2);
        weights[i] = keep * weights[i] - rate * first[i] * unbias1 / (root + (real)1e-8);
    }
}

double gradient_norm(const real *gradients, int64_t n)
{
    double squares = 0;
    enum { CHUNK = 1 << 15 };
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t last = first + CHUNK < n ? first + CHUNK : n;
        double chunk = 0;
#pragma omp simd reduction(+ : chunk)
        for (int64_t i = first; i < last; i++)
            chunk += (double)gradients[i] * (double)gradients[i];
        squares += chunk;
    }
    return sqrt(squares);
}

double learning_rate_at(int64_t step, int64_t steps, int64_t warmup, double highest, double lowest)
{
    if (step < warmup)
        return highest * (double)(step + 1) / (double)warmup;
    if (step >= steps)
        return lowest;
    double done = (double)(step - warmup) / (double)(steps - warmup);
    return lowest + (highest - lowest) * 0.5 * (1 + cos(3.141592653589793 * done));
}
