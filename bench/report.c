/* report.c - the measurements as a table or as JSON. */
#include "bench.h"

#include <jansson.h>
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

static void print_header(const bench_options *options, const bench_ceilings *ceilings)
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
        printf("top_k %d, window %d, sink %d, beam %d, rep_tokens %d, leaf_tokens %d%s\n",
               desc->top_k, desc->window, desc->sink, desc->beam, desc->rep_tokens,
               desc->leaf_tokens, desc->share_heads ? ", heads of a group share a mask" : "");
    printf("%s, %lld-square: %.1f GFLOP/s", ceilings->gemm_name, (long long)options->gemm_size,
           ceilings->gemm_gflops);
    if (ceilings->copy_gbytes > 0)
        printf("; copy: %.0f GB/s read and written", ceilings->copy_gbytes);
    printf("\n");
}

static void print_times(const bench_options *options, const bench_ceilings *ceilings,
                        const bench_result *results)
{
    const bool tera = options->desc.device == HPA_CUDA;
    const double unit = tera ? 1e3 : 1;
    printf("\n%8s %8s %10s %9s %10s %11s %15s %15s\n", "seq", "density", "keys/query", "mask ms",
           "forward ms", "backward ms", tera ? "forward TF/s" : "forward GF/s",
           tera ? "backward TF/s" : "backward GF/s");
    for (int64_t n = 0; n < options->n_lengths; n++) {
        const bench_result *r = &results[n];
        double forward = gflops(options, r, FORWARD_FLOPS, r->forward_ms);
        double backward = gflops(options, r, BACKWARD_FLOPS, r->backward_ms);
        printf("%8lld %7.2f%% %10.1f %9.2f %10.2f %11.2f %7.1f (%.2fx) %7.1f (%.2fx)\n",
               (long long)r->seq, 100 * r->density, keys_per_query(options, r), r->mask_ms,
               r->forward_ms, r->backward_ms, forward / unit, forward / ceilings->gemm_gflops,
               backward / unit, backward / ceilings->gemm_gflops);
    }
}

static void print_per_token(const bench_options *options, const bench_result *results)
{
    printf("\n%8s %6s %11s %14s %15s %9s %11s\n", "seq", "levels", "mask ns/tok", "forward ns/tok",
           "backward ns/tok", "mask MB", "scratch MB");
    for (int64_t n = 0; n < options->n_lengths; n++) {
        const bench_result *r = &results[n];
        printf("%8lld %6lld %11.0f %14.0f %15.0f %9.2f %11.2f\n", (long long)r->seq,
               (long long)r->tree_levels, ns_per_token(options, r, r->mask_ms),
               ns_per_token(options, r, r->forward_ms), ns_per_token(options, r, r->backward_ms),
               (double)r->mask_bytes * 1e-6, (double)r->scratch_bytes * 1e-6);
    }
    for (int64_t n = 0; options->desc.device == HPA_CUDA && n < options->n_lengths; n++)
        printf("%s%lld: %.3f ms",
               n ? ", " : "\nof the mask, its transpose: ", (long long)results[n].seq,
               results[n].transpose_ms);
    if (options->check_repeats > 0)
        printf("\n%lld more steps on equal inputs gave equal bits at each length.",
               (long long)options->check_repeats);
    printf("\n(x): of the rate of the matrix product. levels: of the tree search, for the last "
           "queries.\n");
}

bool bench_report_table(const bench_options *options, const bench_ceilings *ceilings,
                        const bench_result *results)
{
    print_header(options, ceilings);
    print_times(options, ceilings, results);
    print_per_token(options, results);
    return fflush(stdout) == 0;
}

static json_t *result_object(const bench_options *options, const bench_ceilings *ceilings,
                             const bench_result *r)
{
    double forward = gflops(options, r, FORWARD_FLOPS, r->forward_ms);
    double backward = gflops(options, r, BACKWARD_FLOPS, r->backward_ms);
    /* clang-format off */
    return json_pack("{sI sf sf sf sf sf sf sf sf sf sf sf sI sI sI}",
                     "seq", (json_int_t)r->seq,
                     "mask_ms", r->mask_ms,
                     "transpose_ms", r->transpose_ms,
                     "forward_ms", r->forward_ms,
                     "backward_ms", r->backward_ms,
                     "forward_gflops", forward,
                     "backward_gflops", backward,
                     "gemm_gflops", ceilings->gemm_gflops,
                     "forward_vs_gemm", forward / ceilings->gemm_gflops,
                     "backward_vs_gemm", backward / ceilings->gemm_gflops,
                     "density", r->density,
                     "keys_per_query", keys_per_query(options, r),
                     "tree_levels", (json_int_t)r->tree_levels,
                     "mask_bytes", (json_int_t)r->mask_bytes,
                     "scratch_bytes", (json_int_t)r->scratch_bytes);
    /* clang-format on */
}

static json_t *description_object(const bench_options *options, const bench_ceilings *ceilings)
{
    const hpa_desc *desc = &options->desc;
    /* clang-format off */
    return json_pack("{ss ss ss si sI sI sI sI sb si si si si si si si si si si sb sb sI sI sI sf}",
                     "build", hpa_build_info(),
                     "backend", bench_backend_name(desc->device),
                     "dtype", bench_dtype_name(desc->dtype),
                     "threads", desc->num_threads,
                     "batch", (json_int_t)desc->batch,
                     "heads", (json_int_t)desc->heads_q,
                     "kv_heads", (json_int_t)desc->heads_kv,
                     "dim", (json_int_t)desc->head_dim,
                     "causal", desc->causal,
                     "block_q", desc->block_q,
                     "block_k", desc->block_k,
                     "top_k", desc->top_k,
                     "sink", desc->sink,
                     "window", desc->window,
                     "beam", desc->beam,
                     "rep_tokens", desc->rep_tokens,
                     "leaf_tokens", desc->leaf_tokens,
                     "query_stride", desc->query_stride,
                     "search_span", desc->search_span,
                     "share_heads", desc->share_heads,
                     "dense", options->dense,
                     "repeat", (json_int_t)options->repeat,
                     "check_repeats", (json_int_t)options->check_repeats,
                     "gemm_size", (json_int_t)options->gemm_size,
                     "copy_gbytes", ceilings->copy_gbytes);
    /* clang-format on */
}

bool bench_report_json(const bench_options *options, const bench_ceilings *ceilings,
                       const bench_result *results)
{
    json_t *report = description_object(options, ceilings);
    json_t *array = json_array();
    bool complete = report && array;
    for (int64_t n = 0; complete && n < options->n_lengths; n++)
        complete = !json_array_append_new(array, result_object(options, ceilings, &results[n]));
    complete = !json_object_set_new(report, "results", array) && complete;
    bool written = complete &&
                   !json_dumpf(report, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) &&
                   putchar('\n') != EOF && fflush(stdout) == 0;
    json_decref(report);
    return written;
}
