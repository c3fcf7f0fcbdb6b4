/* Where a workload lives and how its time is taken: the host, or a CUDA device. */
#ifndef HPA_BENCH_DEVICE_H
#define HPA_BENCH_DEVICE_H

#include "bench.h"

#define BENCH_MARKS 4

typedef struct bench_device {
    void *(*allocate)(size_t bytes); /* aligned for any kernel; NULL when there is not enough */
    void (*release)(void *memory);
    bool (*write)(void *to, const void *host, size_t bytes);
    bool (*read)(void *host, const void *from, size_t bytes);
    void *(*stream)(void); /* for hpa_exec */
    bool (*mark)(int n);   /* here, after the work so far, is point n of time */
    bool (*wait)(void);    /* for the work so far: false after one line on stderr */
    double (*elapsed_ms)(int from, int to); /* between two marks, after wait */
    /* Rate of the vendor's library on one square product of the workload's dtype, in GFLOP/s. False
     * after one line on stderr. */
    bool (*gemm_gflops)(const bench_options *options, double *gflops);
    /* Rate of a copy within its memory, bytes read and written, in GB/s; 0: not measured. */
    bool (*copy_gbytes)(const bench_options *options, double *gbytes);
    const char *(*gemm_name)(const bench_options *options);
    size_t
        input_bytes; /* inputs are spread over sets until they are so large: caches are smaller */
} bench_device;

/* NULL after one line on stderr: this build cannot reach it. */
const bench_device *bench_device_of(hpa_device device);

/* random.c: n elements, nearly normal with mean 0 and variance 1, into host memory. */
void bench_random(void *data, hpa_dtype dtype, int64_t n, uint64_t seed);
size_t bench_dtype_bytes(hpa_dtype dtype);

#endif
