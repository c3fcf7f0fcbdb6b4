#include "adamw.h"

#include <math.h>

bool adamw_clip(model *m, double longest, double *norm, failure *why)
{
    double squares;
    if (!m->on->op->sum_of_squares(m->on, m->gradients.all, m->n_weights, &squares, why))
        return false;
    *norm = sqrt(squares);
    if (longest > 0 && *norm > longest)
        m->on->op->scale(m->on, m->gradients.all, longest / *norm, m->n_weights);
    return true;
}

void adamw_update(model *m, adamw_step step)
{
    step.decayed = m->n_decayed;
    m->on->op->adamw(m->on, m->weights.all, m->weights.operands, m->first_moments,
                     m->second_moments, m->gradients.all, m->n_weights, &step);
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
