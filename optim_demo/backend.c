#include "backend.h"

#include <math.h>
#include <stdlib.h>

#ifndef DEMO_WITH_CUDA
bool backend_cuda_is_there(void)
{
    return false;
}

bool backend_open_cuda(backend **on, hpa_dtype operand, failure *why)
{
    (void)operand;
    *on = NULL;
    return fail(why, "--backend cuda: this program was built for the CPU alone");
}
#endif

bool backend_open(backend **on, backend_choice where, dtype_choice dtype, failure *why)
{
    *on = NULL;
    if (where == BACKEND_AUTO)
        where = dtype != DTYPE_F64 && backend_cuda_is_there() ? BACKEND_CUDA : BACKEND_CPU;
    if (where == BACKEND_CPU && dtype == DTYPE_BF16)
        return fail(why, "--dtype bf16: expected f32 or f64 on the CPU");
    if (where == BACKEND_CPU)
        return backend_open_cpu(on, dtype == DTYPE_F64 ? HPA_F64 : HPA_F32, why);
    if (dtype == DTYPE_F64)
        return fail(why, "--dtype f64: expected f32 or bf16 on a CUDA device");
    return backend_open_cuda(on, dtype == DTYPE_F32 ? HPA_F32 : HPA_BF16, why);
}

void backend_close(backend *on)
{
    if (on)
        on->op->close(on);
}

const char *backend_dtype_name(const backend *on)
{
    return on->operand == HPA_F64 ? "f64" : on->operand == HPA_BF16 ? "bf16" : "f32";
}

double number_get(const backend *on, const void *host, int64_t n)
{
    return on->number == HPA_F64 ? ((const double *)host)[n] : (double)((const float *)host)[n];
}

void number_set(const backend *on, void *host, int64_t n, double value)
{
    if (on->number == HPA_F64)
        ((double *)host)[n] = value;
    else
        ((float *)host)[n] = (float)value;
}

bool rope_table(backend *on, void *table, int64_t T, int64_t D, double base, failure *why)
{
    void *host = malloc((size_t)(T * D * on->number_bytes));
    if (!host)
        return fail(why, "out of memory for the rotary positions");
#pragma omp parallel for
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < D / 2; i++) {
            double angle = (double)t * pow(base, -2.0 * (double)i / (double)D);
            number_set(on, host, t * D + 2 * i, cos(angle));
            number_set(on, host, t * D + 2 * i + 1, sin(angle));
        }
    on->op->write(on, table, host, T * D * on->number_bytes);
    free(host);
    return true;
}
