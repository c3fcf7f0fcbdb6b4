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
    double decay = step.weight_decay;
    for (int64_t n = 0; n < m->n_infos; n++) {
        int64_t offset = m->infos[n].offset;
        step.weight_decay = m->infos[n].columns > 0 ? decay : 0;
        m->on->op->adamw(m->on, number_at(m->on, m->weights.all, offset),
                         number_at(m->on, m->first_moments, offset),
                         number_at(m->on, m->second_moments, offset),
                         number_at(m->on, m->gradients.all, offset), m->infos[n].count, &step);
    }
    model_weights_changed(m);
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
