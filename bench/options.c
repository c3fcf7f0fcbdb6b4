/* options.c - the command line. */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum number_option {
    BATCH,
    HEADS,
    KV_HEADS,
    DIM,
    BLOCK_Q,
    BLOCK_K,
    TOP_K,
    SINK,
    WINDOW,
    BEAM,
    REP_TOKENS,
    LEAF_TOKENS,
    QUERY_STRIDE,
    SEARCH_SPAN,
    THREADS,
    REPEAT,
    CHECK_REPEATS,
    GEMM_SIZE,
    NUMBERS
};

/* Ranges keep every product of sizes inside int64_t; the library checks the rest. */
static const struct {
    const char *name;
    int64_t value, min, max;
    const char *help;
} numbers[NUMBERS] = {
    [BATCH] = {"batch", 1, 1, 1 << 16, "sequences"},
    [HEADS] = {"heads", 8, 1, 1 << 12, "query heads"},
    [KV_HEADS] = {"kv-heads", 0, 0, 1 << 12, "key/value heads, 0: as many as query heads"},
    [DIM] = {"dim", 64, 1, 256, "head size"},
    [BLOCK_Q] = {"block-q", 128, 1, 1 << 16, "queries in a block"},
    [BLOCK_K] = {"block-k", 64, 1, 1 << 16, "keys in a block"},
    [TOP_K] = {"top-k", 512, 0, 1 << 24, "keys kept by the search"},
    [SINK] = {"sink", 64, 0, 1 << 24, "first keys, always kept"},
    [WINDOW] = {"window", 256, 0, 1 << 24, "keys before each query, always kept"},
    [BEAM] = {"beam", 2, 1, 1 << 16, "width of the search"},
    [REP_TOKENS] = {"rep-tokens", 4, 1, 1 << 24, "keys scored for a node of the tree"},
    [LEAF_TOKENS] = {"leaf-tokens", 8, 1, 1 << 24, "keys scored for a node at the last level"},
    [QUERY_STRIDE] = {"query-stride", 1, 1, 256, "every how many queries take part in the search"},
    [SEARCH_SPAN] = {"search-span", 1, 1, 64, "query blocks that share the search's coarse levels"},
    [THREADS] = {"threads", 0, 0, 1 << 12, "0: OpenMP's choice"},
    [REPEAT] = {"repeat", 5, 1, 1000, "timed repetitions, after a warm-up"},
    [CHECK_REPEATS] = {"check-repeats", 0, 0, 100000,
                       "steps on equal inputs besides, whose results must be equal bit for bit"},
    [GEMM_SIZE] = {"gemm-size", 4096, 1, 1 << 15, "side of the matrix product to compare with"},
};

enum other_option {
    BACKEND = NUMBERS,
    DTYPE,
    SEQ,
    PRESET,
    SHARE_HEADS,
    DENSE,
    NO_CAUSAL,
    JSON,
    HELP,
    OPTIONS
};

static const struct {
    hpa_dtype dtype;
    const char *name;
} dtypes[] = {{HPA_F64, "f64"}, {HPA_F32, "f32"}, {HPA_F16, "f16"}, {HPA_BF16, "bf16"}};

static const struct {
    hpa_preset preset;
    const char *name;
} presets[] = {{HPA_PRESET_FAST, "fast"},
               {HPA_PRESET_BALANCED, "balanced"},
               {HPA_PRESET_FAITHFUL, "faithful"}};

/* What the command line says of numbers and knobs. */
typedef struct arguments {
    int64_t values[NUMBERS]; /* -1: not given */
    hpa_preset preset;       /* 0: not given */
} arguments;

static bool complain(const char *option, const char *text, const char *expected)
{
    fprintf(stderr, "hpa-bench: --%s %s: expected %s\n", option, text, expected);
    return false;
}

static bool parse_number(int64_t *number, const char *text, char **end, int64_t min, int64_t max)
{
    errno = 0;
    long long value = strtoll(text, end, 10);
    if (*end == text || errno || value < min || value > max)
        return false;
    *number = value;
    return true;
}

static bool parse_one_number(int64_t *number, enum number_option which, const char *text)
{
    char expected[80];
    char *end;
    if (parse_number(number, text, &end, numbers[which].min, numbers[which].max) && !*end)
        return true;
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld",
             (long long)numbers[which].min, (long long)numbers[which].max);
    return complain(numbers[which].name, text, expected);
}

static bool parse_lengths(bench_options *options, const char *text)
{
    char *at = (char *)text;
    for (options->n_lengths = 0; options->n_lengths < BENCH_MAX_LENGTHS; at++) {
        int64_t *length = &options->lengths[options->n_lengths++];
        if (!parse_number(length, at, &at, 1, 1 << 24) || (*at && *at != ','))
            break;
        if (!*at)
            return true;
    }
    return complain("seq", text, "1 to 32 lengths from 1 to 16777216, with commas between them");
}

static bool parse_backend(bench_options *options, const char *text)
{
    options->desc.device = !strcmp(text, "cuda") ? HPA_CUDA : HPA_CPU;
    return !strcmp(text, bench_backend_name(options->desc.device)) ||
           complain("backend", text, "cpu or cuda");
}

static bool parse_dtype(bench_options *options, const char *text)
{
    for (size_t n = 0; n < sizeof dtypes / sizeof *dtypes; n++) {
        if (!strcmp(text, dtypes[n].name)) {
            options->desc.dtype = dtypes[n].dtype;
            return true;
        }
    }
    return complain("dtype", text, "f64, f32, f16 or bf16");
}

static bool parse_preset(hpa_preset *preset, const char *text)
{
    for (size_t n = 0; n < sizeof presets / sizeof *presets; n++) {
        if (!strcmp(text, presets[n].name)) {
            *preset = presets[n].preset;
            return true;
        }
    }
    return complain("preset", text, "fast, balanced or faithful");
}

static bool take_option(bench_options *options, arguments *given, int option, const char *text)
{
    if (option < NUMBERS)
        return parse_one_number(&given->values[option], (enum number_option)option, text);
    switch (option) {
    case BACKEND:
        return parse_backend(options, text);
    case DTYPE:
        return parse_dtype(options, text);
    case SEQ:
        return parse_lengths(options, text);
    case PRESET:
        return parse_preset(&given->preset, text);
    case SHARE_HEADS:
        return options->desc.share_heads = true;
    case DENSE:
        return options->dense = true;
    case NO_CAUSAL:
        options->desc.causal = false;
        return true;
    case JSON:
        return options->json = true;
    case HELP:
        return options->help = true;
    default: /* getopt_long has said what is wrong */
        return false;
    }
}

/* What was not given is the preset's, or else the default. */
static void complete(arguments *given, hpa_desc *desc)
{
    int64_t usual[NUMBERS];
    for (int n = 0; n < NUMBERS; n++)
        usual[n] = numbers[n].value;
    if (given->preset) {
        const bool share_heads = desc->share_heads;
        hpa_desc_set_preset(desc, given->preset); /* cannot fail: both are known to be sound */
        desc->share_heads = desc->share_heads || share_heads;
        usual[BLOCK_Q] = desc->block_q;
        usual[BLOCK_K] = desc->block_k;
        usual[BEAM] = desc->beam;
        usual[REP_TOKENS] = desc->rep_tokens;
        usual[LEAF_TOKENS] = desc->leaf_tokens;
        usual[QUERY_STRIDE] = desc->query_stride;
        usual[SEARCH_SPAN] = desc->search_span;
    }
    for (int n = 0; n < NUMBERS; n++) {
        if (given->values[n] < 0)
            given->values[n] = usual[n];
    }
}

static void apply_numbers(bench_options *options, const int64_t *values)
{
    hpa_desc *desc = &options->desc;
    desc->batch = values[BATCH];
    desc->heads_q = values[HEADS];
    desc->heads_kv = values[KV_HEADS] ? values[KV_HEADS] : values[HEADS];
    desc->head_dim = values[DIM];
    desc->block_q = (int32_t)values[BLOCK_Q];
    desc->block_k = (int32_t)values[BLOCK_K];
    desc->top_k = (int32_t)values[TOP_K];
    desc->sink = (int32_t)values[SINK];
    desc->window = (int32_t)values[WINDOW];
    desc->beam = (int32_t)values[BEAM];
    desc->rep_tokens = (int32_t)values[REP_TOKENS];
    desc->leaf_tokens = (int32_t)values[LEAF_TOKENS];
    desc->query_stride = (int32_t)values[QUERY_STRIDE];
    desc->search_span = (int32_t)values[SEARCH_SPAN];
    desc->num_threads = values[THREADS] ? (int32_t)values[THREADS] : omp_get_max_threads();
    options->repeat = values[REPEAT];
    options->check_repeats = values[CHECK_REPEATS];
    options->gemm_size = values[GEMM_SIZE];
}

static void fill_long_options(struct option *long_options)
{
    for (int n = 0; n < NUMBERS; n++)
        long_options[n] = (struct option){numbers[n].name, required_argument, NULL, n};
    long_options[BACKEND] = (struct option){"backend", required_argument, NULL, BACKEND};
    long_options[DTYPE] = (struct option){"dtype", required_argument, NULL, DTYPE};
    long_options[SEQ] = (struct option){"seq", required_argument, NULL, SEQ};
    long_options[PRESET] = (struct option){"preset", required_argument, NULL, PRESET};
    long_options[SHARE_HEADS] = (struct option){"share-heads", no_argument, NULL, SHARE_HEADS};
    long_options[DENSE] = (struct option){"dense", no_argument, NULL, DENSE};
    long_options[NO_CAUSAL] = (struct option){"no-causal", no_argument, NULL, NO_CAUSAL};
    long_options[JSON] = (struct option){"json", no_argument, NULL, JSON};
    long_options[HELP] = (struct option){"help", no_argument, NULL, HELP};
    long_options[OPTIONS] = (struct option){0};
}

bool bench_parse(bench_options *options, int argc, char **argv)
{
    struct option long_options[OPTIONS + 1];
    arguments given = {.preset = 0};

    *options = (bench_options){.desc = hpa_desc_default(), .lengths = {8192}, .n_lengths = 1};
    for (int n = 0; n < NUMBERS; n++)
        given.values[n] = -1;

    fill_long_options(long_options);
    for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (!take_option(options, &given, option, optarg))
            return false;
    }
    if (optind < argc) {
        fprintf(stderr, "hpa-bench: %s: expected only options (--help lists them)\n", argv[optind]);
        return false;
    }
    complete(&given, &options->desc);
    apply_numbers(options, given.values);
    return true;
}

void bench_print_help(void)
{
    puts("hpa-bench [options]\n"
         "Times mask, forward and backward of libhpa on random inputs, beside a matrix product of\n"
         "OpenBLAS on as many threads. FLOPs count the pairs that the mask keeps: 4 (forward) or\n"
         "10 (backward) for each pair and element of a head.\n");
    puts("  --backend NAME    cpu or cuda (cpu)\n"
         "  --dtype NAME      f64, f32, f16 or bf16 (f32)\n"
         "  --seq N[,N...]    lengths (8192)");
    for (int n = 0; n < NUMBERS; n++)
        printf("  --%-12s N  %s (%lld)\n", numbers[n].name, numbers[n].help,
               (long long)numbers[n].value);
    puts("  --preset NAME     fast, balanced or faithful: the library's settings of the knobs of "
         "the\n"
         "                    search, of which those that are given besides are not changed\n"
         "  --share-heads     one mask for all query heads of a key/value head\n"
         "  --dense           keep every visible key: dense attention by the same kernels\n"
         "  --no-causal       every query sees every key\n"
         "  --json            an object instead of a table\n"
         "  --help            this");
}

hpa_desc bench_desc(const bench_options *options, int64_t seq)
{
    hpa_desc desc = options->desc;
    desc.seq_q = desc.seq_kv = seq;
    if (options->dense)
        desc.top_k = (int32_t)seq;
    return desc;
}

const char *bench_backend_name(hpa_device device)
{
    return device == HPA_CUDA ? "cuda" : "cpu";
}

const char *bench_dtype_name(hpa_dtype dtype)
{
    for (size_t n = 0; n < sizeof dtypes / sizeof *dtypes; n++) {
        if (dtypes[n].dtype == dtype)
            return dtypes[n].name;
    }
    return "unknown";
}
