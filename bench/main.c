/* hpa-bench - how fast is libhpa on this machine, and how close to what the machine can do?
 * Exit status: 0 measured, 1 failed while measuring, 2 arguments or a description that cannot be. */
#include "device.h"

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

static bool measure_and_report(const bench_options *options, const bench_device *device)
{
    bench_result results[BENCH_MAX_LENGTHS];
    bench_ceilings ceilings = {.gemm_name = device->gemm_name(options)};
    if (!device->gemm_gflops(options, &ceilings.gemm_gflops) ||
        !device->copy_gbytes(options, &ceilings.copy_gbytes))
        return false;
    for (int64_t n = 0; n < options->n_lengths; n++) {
        if (!bench_measure(options, device, options->lengths[n], &results[n]))
            return false;
    }
    bool written = options->json ? bench_report_json(options, &ceilings, results)
                                 : bench_report_table(options, &ceilings, results);
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
    const bench_device *device = bench_device_of(options.desc.device);
    return device && measure_and_report(&options, device) ? 0 : 1;
}
