/* host.c - the CPU as a device: its memory, its clock. */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double marks[BENCH_MARKS];

double bench_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

void *bench_alloc(size_t bytes)
{
    const size_t alignment = 64;
    return aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
}

static bool write_host(void *to, const void *host, size_t bytes)
{
    memcpy(to, host, bytes);
    return true;
}

static bool read_host(void *host, const void *from, size_t bytes)
{
    memcpy(host, from, bytes);
    return true;
}

static void *no_stream(void)
{
    return NULL;
}

static bool mark(int n)
{
    marks[n] = bench_now_ms();
    return true;
}

static bool wait(void)
{
    return true;
}

static double elapsed_ms(int from, int to)
{
    return marks[to] - marks[from];
}

static bool gemm_gflops(const bench_options *options, double *gflops)
{
    *gflops = bench_gemm_gflops(options);
    return *gflops > 0;
}

static const char *gemm_name(const bench_options *options)
{
    return options->desc.dtype == HPA_F64 ? "OpenBLAS dgemm" : "OpenBLAS sgemm";
}

static bool no_copy(const bench_options *options, double *gbytes)
{
    (void)options;
    *gbytes = 0;
    return true;
}

static const bench_device host = {
    .allocate = bench_alloc,
    .release = free,
    .write = write_host,
    .read = read_host,
    .stream = no_stream,
    .mark = mark,
    .wait = wait,
    .elapsed_ms = elapsed_ms,
    .gemm_gflops = gemm_gflops,
    .copy_gbytes = no_copy,
    .gemm_name = gemm_name,
};

#ifdef HPA_WITH_CUDA
extern const bench_device bench_cuda;
#endif

const bench_device *bench_device_of(hpa_device device)
{
#ifdef HPA_WITH_CUDA
    if (device == HPA_CUDA)
        return &bench_cuda;
#endif
    if (device == HPA_CPU)
        return &host;
    fprintf(stderr, "hpa-bench: this build has no CUDA backend\n");
    return NULL;
}
