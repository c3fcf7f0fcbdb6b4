/* hpa-bench - how fast is libhpa on this machine, and how close to what the machine can do?
 * Exit status: 0 measured, 1 failed while measuring, 2 arguments or a description that cannot be. */
#include "bench.h"

#include <stdio.h>

/* Before anything slow: would the library take each length? */
static bool check_lengths(const bench_options *options)
{
    for (int64_t n = 0; n < options->n_lengths; n++) {
        hpa_desc desc = bench_desc(options, options->lengths[n]);
        hpa_plan *plan;
        hpa_status status = hpa_plan_create(&plan, &desc);
        if (status != HPA_OK) {
            fprintf(stderr, "hpa-bench: hpa_plan_create: %s: %s\n", hpa_status_name(status),
                    hpa_last_error());
            return false;
        }
        hpa_plan_destroy(plan);
    }
    return true;
}

static bool measure_and_report(const bench_options *options)
{
    bench_result results[BENCH_MAX_LENGTHS];
    double gemm_gflops = bench_gemm_gflops(options);
    if (!(gemm_gflops > 0))
        return false;
    for (int64_t n = 0; n < options->n_lengths; n++) {
        if (!bench_measure(options, options->lengths[n], &results[n]))
            return false;
    }
    bool written = options->json ? bench_report_json(options, gemm_gflops, results)
                                 : bench_report_table(options, gemm_gflops, results);
    if (!written)
        fprintf(stderr, "hpa-bench: the report could not be written\n");
    return written;
}

int main(int argc, char **argv)
{
    bench_options options;
    if (!bench_parse(&options, argc, argv))
        return 2;
    if (options.help) {
        bench_print_help();
        return 0;
    }
    if (!check_lengths(&options))
        return 2;
    return measure_and_report(&options) ? 0 : 1;
}
