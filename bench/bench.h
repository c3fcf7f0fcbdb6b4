/* bench.h - hpa-bench: options -> measurements -> report. */
#ifndef HPA_BENCH_H
#define HPA_BENCH_H

#include <hpa/hpa.h>

#define BENCH_MAX_LENGTHS 32

typedef struct bench_options {
    hpa_desc desc; /* seq_q, seq_kv and, with dense, top_k come from bench_desc */
    int64_t lengths[BENCH_MAX_LENGTHS];
    int64_t n_lengths;
    int64_t repeat;        /* timed repetitions; the median is reported */
    int64_t check_repeats; /* steps on equal inputs that must give equal bits */
    int64_t gemm_size;     /* rows and columns of the matrices of the product to compare with */
    bool dense;            /* top_k is the length: every visible key is kept */
    bool json;
    bool help;
} bench_options;

/* What one length took. Times are medians in milliseconds. */
typedef struct bench_result {
    int64_t seq;
    int64_t tree_levels;
    double mask_ms;      /* with its transpose */
    double transpose_ms; /* 0: not told apart */
    double forward_ms;
    double backward_ms;
    double density;
    double pairs; /* query-key pairs attended to, over all sequences and query heads */
    size_t mask_bytes;
    size_t scratch_bytes; /* one buffer for all three calls */
} bench_result;

/* options.c: false when the arguments are wrong, after one line on stderr. */
bool bench_parse(bench_options *options, int argc, char **argv);
void bench_print_help(void);

/* The description of one length. */
hpa_desc bench_desc(const bench_options *options, int64_t seq);
const char *bench_backend_name(hpa_device device);
const char *bench_dtype_name(hpa_dtype dtype);

/* What the machine can do at best. */
typedef struct bench_ceilings {
    const char *gemm_name;
    double gemm_gflops;
    double copy_gbytes; /* read and written, a second; 0: not measured */
} bench_ceilings;

/* workload.c: false after one line on stderr. */
struct bench_device;
bool bench_measure(const bench_options *options, const struct bench_device *device, int64_t seq,
                   bench_result *result);
double bench_median(double *values, int64_t n);

/* host.c: memory aligned for any kernel, NULL when there is not enough; the clock. */
void *bench_alloc(size_t bytes);
double bench_now_ms(void);

/* gemm.c: the rate of OpenBLAS on one square product with as many threads, in GFLOP/s. dgemm for
 * f64, else sgemm. Negative after one line on stderr. */
double bench_gemm_gflops(const bench_options *options);

/* report.c. False when the report could not be written. */
bool bench_report_table(const bench_options *options, const bench_ceilings *ceilings,
                        const bench_result *results);
bool bench_report_json(const bench_options *options, const bench_ceilings *ceilings,
                       const bench_result *results);

#endif
