/* report.c - the measurements as a table or as JSON. */
#include "bench.h"

#include <cjson/cJSON.h>
#include <stdio.h>

#define FORWARD_FLOPS 4   /* for each pair and element of a head: q k^T, p v */
#define BACKWARD_FLOPS 10 /* q k^T again, d_o v^T, and the three gradients */

static double gflops(const bench_options *options, const bench_result *result, int flops, double ms)
{
    return flops * result->pairs * (double)options->desc.head_dim / ms * 1e-6;
}

static double ns_per_token(const bench_options *options, const bench_result *result, double ms)
{
    return ms * 1e6 / (double)(options->desc.batch * result->seq);
}

static double keys_per_query(const bench_options *options, const bench_result *result)
{
    return result->pairs / (double)(options->desc.batch * options->desc.heads_q * result->seq);
}

static void print_header(const bench_options *options, double gemm_gflops)
{
    const hpa_desc *desc = &options->desc;
    printf("%s\n", hpa_build_info());
    printf("%s, %s, %d threads; batch %lld, %lld query heads and %lld key/value heads of %lld\n",
           bench_backend_name(desc->device), bench_dtype_name(desc->dtype), desc->num_threads,
           (long long)desc->batch, (long long)desc->heads_q, (long long)desc->heads_kv,
           (long long)desc->head_dim);
    printf("%s, blocks of %d queries and %d keys; ", desc->causal ? "causal" : "not causal",
           desc->block_q, desc->block_k);
    if (options->dense)
        printf("dense: every visible key is kept\n");
    else
        printf("top_k %d, window %d, sink %d, beam %d%s\n", desc->top_k, desc->window, desc->sink,
               desc->beam, desc->share_heads ? ", heads of a group share a mask" : "");
    printf("OpenBLAS %cgemm, %lld-square: %.1f GFLOP/s\n", desc->dtype == HPA_F64 ? 'd' : 's',
           (long long)options->gemm_size, gemm_gflops);
}

static void print_times(const bench_options *options, double gemm_gflops,
                        const bench_result *results)
{
    printf("\n%9s %9s %11s %10s %11s %13s %15s %16s\n", "seq", "density", "keys/query", "mask ms",
           "forward ms", "backward ms", "forward GF/s", "backward GF/s");
    for (int64_t n = 0; n < options->n_lengths; n++) {
        const bench_result *r = &results[n];
        double forward = gflops(options, r, FORWARD_FLOPS, r->forward_ms);
        double backward = gflops(options, r, BACKWARD_FLOPS, r->backward_ms);
        printf("%9lld %8.2f%% %11.1f %10.2f %11.2f %13.2f %7.1f (%.2fx) %8.1f (%.2fx)\n",
               (long long)r->seq, 100 * r->density, keys_per_query(options, r), r->mask_ms,
               r->forward_ms, r->backward_ms, forward, forward / gemm_gflops, backward,
               backward / gemm_gflops);
    }
}

static void print_per_token(const bench_options *options, const bench_result *results)
{
    printf("\n%9s %7s %12s %15s %16s %10s %12s\n", "seq", "levels", "mask ns/tok", "forward ns/tok",
           "backward ns/tok", "mask MB", "scratch MB");
    for (int64_t n = 0; n < options->n_lengths; n++) {
        const bench_result *r = &results[n];
        printf("%9lld %7lld %12.0f %15.0f %16.0f %10.2f %12.2f\n", (long long)r->seq,
               (long long)r->tree_levels, ns_per_token(options, r, r->mask_ms),
               ns_per_token(options, r, r->forward_ms), ns_per_token(options, r, r->backward_ms),
               (double)r->mask_bytes * 1e-6, (double)r->scratch_bytes * 1e-6);
    }
    printf("\n(x): of the rate of the matrix product. levels: of the tree search, for the last "
           "queries.\n");
}

bool bench_report_table(const bench_options *options, double gemm_gflops,
                        const bench_result *results)
{
    print_header(options, gemm_gflops);
    print_times(options, gemm_gflops, results);
    print_per_token(options, results);
    return fflush(stdout) == 0;
}

static void add_result(cJSON *array, const bench_options *options, double gemm_gflops,
                       const bench_result *r)
{
    double forward = gflops(options, r, FORWARD_FLOPS, r->forward_ms);
    double backward = gflops(options, r, BACKWARD_FLOPS, r->backward_ms);
    cJSON *object = cJSON_CreateObject();
    cJSON_AddNumberToObject(object, "seq", (double)r->seq);
    cJSON_AddNumberToObject(object, "mask_ms", r->mask_ms);
    cJSON_AddNumberToObject(object, "forward_ms", r->forward_ms);
    cJSON_AddNumberToObject(object, "backward_ms", r->backward_ms);
    cJSON_AddNumberToObject(object, "forward_gflops", forward);
    cJSON_AddNumberToObject(object, "backward_gflops", backward);
    cJSON_AddNumberToObject(object, "gemm_gflops", gemm_gflops);
    cJSON_AddNumberToObject(object, "forward_vs_gemm", forward / gemm_gflops);
    cJSON_AddNumberToObject(object, "backward_vs_gemm", backward / gemm_gflops);
    cJSON_AddNumberToObject(object, "density", r->density);
    cJSON_AddNumberToObject(object, "keys_per_query", keys_per_query(options, r));
    cJSON_AddNumberToObject(object, "tree_levels", (double)r->tree_levels);
    cJSON_AddNumberToObject(object, "mask_bytes", (double)r->mask_bytes);
    cJSON_AddNumberToObject(object, "scratch_bytes", (double)r->scratch_bytes);
    cJSON_AddItemToArray(array, object);
}

static void add_description(cJSON *object, const bench_options *options)
{
    const hpa_desc *desc = &options->desc;
    cJSON_AddStringToObject(object, "build", hpa_build_info());
    cJSON_AddStringToObject(object, "backend", bench_backend_name(desc->device));
    cJSON_AddStringToObject(object, "dtype", bench_dtype_name(desc->dtype));
    cJSON_AddNumberToObject(object, "threads", desc->num_threads);
    cJSON_AddNumberToObject(object, "batch", (double)desc->batch);
    cJSON_AddNumberToObject(object, "heads", (double)desc->heads_q);
    cJSON_AddNumberToObject(object, "kv_heads", (double)desc->heads_kv);
    cJSON_AddNumberToObject(object, "dim", (double)desc->head_dim);
    cJSON_AddBoolToObject(object, "causal", desc->causal);
    cJSON_AddNumberToObject(object, "block_q", desc->block_q);
    cJSON_AddNumberToObject(object, "block_k", desc->block_k);
    cJSON_AddNumberToObject(object, "top_k", desc->top_k);
    cJSON_AddNumberToObject(object, "sink", desc->sink);
    cJSON_AddNumberToObject(object, "window", desc->window);
    cJSON_AddNumberToObject(object, "beam", desc->beam);
    cJSON_AddBoolToObject(object, "share_heads", desc->share_heads);
    cJSON_AddBoolToObject(object, "dense", options->dense);
    cJSON_AddNumberToObject(object, "repeat", (double)options->repeat);
    cJSON_AddNumberToObject(object, "gemm_size", (double)options->gemm_size);
}

bool bench_report_json(const bench_options *options, double gemm_gflops,
                       const bench_result *results)
{
    cJSON *report = cJSON_CreateObject();
    add_description(report, options);
    cJSON *array = cJSON_AddArrayToObject(report, "results");
    for (int64_t n = 0; n < options->n_lengths; n++)
        add_result(array, options, gemm_gflops, &results[n]);
    char *text = cJSON_Print(report);
    cJSON_Delete(report);
    if (!text)
        return false;
    bool written = puts(text) >= 0 && fflush(stdout) == 0;
    cJSON_free(text);
    return written;
}
