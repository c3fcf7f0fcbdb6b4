/* gemm.c - what the machine can do: OpenBLAS on a square product. */
#include "bench.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>

static void fill_with_ones(void *data, int64_t n, bool f64)
{
    for (int64_t i = 0; i < n; i++) {
        if (f64)
            ((double *)data)[i] = 1;
        else
            ((float *)data)[i] = 1;
    }
}

static void multiply(int n, bool f64, const void *a, const void *b, void *c)
{
    if (f64)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, a, n, b, n, 0, c, n);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, a, n, b, n, 0, c, n);
}

static double median_ms(const bench_options *options, bool f64, const void *a, const void *b,
                        void *c, double *times)
{
    int n = (int)options->gemm_size;
    multiply(n, f64, a, b, c);
    for (int64_t r = 0; r < options->repeat; r++) {
        double start = bench_now_ms();
        multiply(n, f64, a, b, c);
        times[r] = bench_now_ms() - start;
    }
    return bench_median(times, options->repeat);
}

double bench_gemm_gflops(const bench_options *options)
{
    bool f64 = options->desc.dtype == HPA_F64;
    double size = (double)options->gemm_size;
    int64_t n_elements = options->gemm_size * options->gemm_size;
    size_t bytes = (size_t)n_elements * (f64 ? sizeof(double) : sizeof(float));
    void *a = bench_alloc(bytes);
    void *b = bench_alloc(bytes);
    void *c = bench_alloc(bytes);
    double *times = calloc((size_t)options->repeat, sizeof *times);
    double gflops = -1;

    if (a && b && c && times) {
        fill_with_ones(a, n_elements, f64);
        fill_with_ones(b, n_elements, f64);
        openblas_set_num_threads(options->desc.num_threads);
        gflops = 2 * size * size * size / median_ms(options, f64, a, b, c, times) * 1e-6;
    } else {
        fprintf(stderr, "hpa-bench: not enough memory for a product of %lld-square matrices\n",
                (long long)options->gemm_size);
    }
    free(times);
    free(c);
    free(b);
    free(a);
    return gflops;
}
