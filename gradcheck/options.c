/* The command line of hpa-gradcheck. */
#define _GNU_SOURCE /* getopt_long */

#include "program.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum option_key {
    BACKEND = 256,
    DTYPE,
    REFERENCE,
    BATCH,
    HEADS,
    KV_HEADS,
    SEQ,
    SEQ_KV,
    DIM,
    BLOCK_Q,
    BLOCK_K,
    TOP_K,
    SINK,
    WINDOW,
    BEAM,
    NO_CAUSAL,
    SHARE_HEADS,
    PACKED,
    SAMPLES,
    SEED,
    JSON,
    HELP
};

static const struct option long_options[] = {
    {"backend", required_argument, NULL, BACKEND},
    {"dtype", required_argument, NULL, DTYPE},
    {"reference", no_argument, NULL, REFERENCE},
    {"batch", required_argument, NULL, BATCH},
    {"heads", required_argument, NULL, HEADS},
    {"kv-heads", required_argument, NULL, KV_HEADS},
    {"seq", required_argument, NULL, SEQ},
    {"seq-kv", required_argument, NULL, SEQ_KV},
    {"dim", required_argument, NULL, DIM},
    {"block-q", required_argument, NULL, BLOCK_Q},
    {"block-k", required_argument, NULL, BLOCK_K},
    {"top-k", required_argument, NULL, TOP_K},
    {"sink", required_argument, NULL, SINK},
    {"window", required_argument, NULL, WINDOW},
    {"beam", required_argument, NULL, BEAM},
    {"no-causal", no_argument, NULL, NO_CAUSAL},
    {"share-heads", no_argument, NULL, SHARE_HEADS},
    {"packed", required_argument, NULL, PACKED},
    {"samples", required_argument, NULL, SAMPLES},
    {"seed", required_argument, NULL, SEED},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {0},
};

static const char help_text[] =
    "Usage: hpa-gradcheck [OPTION]...\n"
    "Checks the gradients of libhpa's attention. In f64 they are held against finite differences\n"
    "of dense attention in plain loops, the mask exported, fixed, and applied as -inf. In other\n"
    "dtypes they are held against float64, and may have 3 times (out: 2 times) the error that\n"
    "dense attention makes in the same dtype.\n"
    "\n"
    "Without a shape it runs a representative sweep. With any of these, that shape alone:\n"
    "  --batch N        sequences (1)\n"
    "  --heads N        query heads (2)\n"
    "  --kv-heads N     key/value heads (as --heads)\n"
    "  --seq N          queries of a sequence (256)\n"
    "  --seq-kv N       keys of a sequence (as --seq)\n"
    "  --dim N          head size (32)\n"
    "  --block-q N      queries that share one list of kept blocks (32)\n"
    "  --block-k N      keys in a block (16)\n"
    "  --top-k N        keys kept by the search (32)\n"
    "  --sink N         first keys, always kept (16)\n"
    "  --window N       last keys, always kept (16)\n"
    "  --beam N         nodes that the search carries on, in units of top_k (2)\n"
    "  --no-causal      queries see keys after them too\n"
    "  --share-heads    one mask for the query heads of a key/value head\n"
    "  --packed L1,L2   sequences of these lengths laid end to end, in the place of --batch,\n"
    "                   --seq and --seq-kv\n"
    "What is checked, and how:\n"
    "  --backend NAME   cpu or cuda\n"
    "  --dtype NAME     f64 (the default), f32, f16 or bf16\n"
    "  --reference      the library's plain loops in the place of its fast kernels\n"
    "  --samples N      f64: elements of each input to compare, 0: all (2048)\n"
    "  --seed N         of the random tensors and samples (0)\n"
    "  --json           print an object: passed, max_abs_error, max_rel_error, checked, cases\n"
    "  --help           print this\n"
    "\n"
    "Exit status: 0 every gradient agrees, 1 one does not, 2 the arguments cannot be or the check\n"
    "could not be made.\n";

void command_print_help(void)
{
    fputs(help_text, stdout);
}

static const char *name_of(int key)
{
    for (const struct option *option = long_options; option->name; option++)
        if (option->val == key)
            return option->name;
    return "";
}

/* Reads all of text as a number. */
static bool read_number(const char *text, int64_t least, int64_t most, int64_t *value)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != 0 || number < least || number > most)
        return false;
    *value = number;
    return true;
}

static bool fail(const char *option, const char *text, const char *expected)
{
    fprintf(stderr, "hpa-gradcheck: --%s is \"%s\"; expected %s\n", option, text, expected);
    return false;
}

static bool set_number(int key, const char *text, int64_t least, int64_t most, int64_t *value)
{
    char expected[96];
    snprintf(expected, sizeof expected, "a whole number from %" PRId64 " to %" PRId64, least, most);
    return read_number(text, least, most, value) || fail(name_of(key), text, expected);
}

static bool set_int32(int key, const char *text, int32_t *value)
{
    int64_t number;
    if (!set_number(key, text, 0, INT32_MAX, &number))
        return false;
    *value = (int32_t)number;
    return true;
}

/* Large enough for any check that ends, small enough for products of four to fit. */
#define MOST_TOKENS 65536
#define MOST_HEADS 1024

static bool set_backend(struct command *command, const char *text)
{
    if (strcmp(text, "cpu") == 0)
        command->desc.device = HPA_CPU;
    else if (strcmp(text, "cuda") == 0)
        command->desc.device = HPA_CUDA;
    else
        return fail("backend", text, "cpu or cuda");
    return true;
}

static bool set_dtype(struct command *command, const char *text)
{
    static const struct {
        const char *name;
        hpa_dtype dtype;
    } dtypes[] = {{"f64", HPA_F64}, {"f32", HPA_F32}, {"f16", HPA_F16}, {"bf16", HPA_BF16}};
    for (size_t n = 0; n < sizeof dtypes / sizeof *dtypes; n++)
        if (strcmp(text, dtypes[n].name) == 0) {
            command->desc.dtype = dtypes[n].dtype;
            return true;
        }
    return fail("dtype", text, "f64, f32, f16 or bf16");
}

static int64_t count_lengths(const char *text)
{
    int64_t count = 1;
    for (const char *at = text; *at; at++)
        count += *at == ',';
    return count;
}

static bool set_packed(struct command *command, const char *text)
{
    static const char expected[] = "lengths with commas between them, as 5,0,97";
    hpa_desc *desc = &command->desc;
    free(command->lengths);
    desc->packed = true;
    desc->batch = count_lengths(text);
    desc->seq_q = desc->total_q = 0;
    command->lengths = calloc((size_t)desc->batch, sizeof *command->lengths);
    if (!command->lengths)
        return fail("packed", text, "a list that fits into memory");
    const char *at = text;
    for (int64_t b = 0; b < desc->batch; b++) {
        char word[16] = "";
        size_t length = strcspn(at, ",");
        int64_t number;
        if (length >= sizeof word)
            return fail("packed", text, expected);
        memcpy(word, at, length);
        if (!read_number(word, 0, MOST_TOKENS, &number))
            return fail("packed", text, expected);
        command->lengths[b] = (int32_t)number;
        desc->total_q += number;
        desc->seq_q = number > desc->seq_q ? number : desc->seq_q;
        at += length + 1;
    }
    if (desc->total_q > INT32_MAX)
        return fail("packed", text, "fewer than 2^31 tokens");
    return true;
}

static bool set_shape(struct command *command, int key, const char *text)
{
    hpa_desc *desc = &command->desc;
    switch (key) {
    case BATCH:
        return set_number(key, text, 1, MOST_TOKENS, &desc->batch);
    case HEADS:
        return set_number(key, text, 1, MOST_HEADS, &desc->heads_q);
    case KV_HEADS:
        return set_number(key, text, 1, MOST_HEADS, &desc->heads_kv);
    case SEQ:
        return set_number(key, text, 0, MOST_TOKENS, &desc->seq_q);
    case SEQ_KV:
        return set_number(key, text, 0, MOST_TOKENS, &desc->seq_kv);
    case DIM:
        return set_number(key, text, 1, MOST_HEADS, &desc->head_dim);
    case BLOCK_Q:
        return set_int32(key, text, &desc->block_q);
    case BLOCK_K:
        return set_int32(key, text, &desc->block_k);
    case TOP_K:
        return set_int32(key, text, &desc->top_k);
    case SINK:
        return set_int32(key, text, &desc->sink);
    case WINDOW:
        return set_int32(key, text, &desc->window);
    case BEAM:
        return set_int32(key, text, &desc->beam);
    case PACKED:
        return set_packed(command, text);
    case NO_CAUSAL:
        desc->causal = false;
        return true;
    default:
        desc->share_heads = true;
        return true;
    }
}

static bool set_option(struct command *command, int key, const char *text)
{
    int64_t seed;
    switch (key) {
    case BACKEND:
        return set_backend(command, text);
    case DTYPE:
        return set_dtype(command, text);
    case REFERENCE:
        command->desc.reference = true;
        return true;
    case SAMPLES:
        return set_number(key, text, 0, INT64_MAX, &command->options.samples);
    case SEED:
        if (!set_number(key, text, 0, INT64_MAX, &seed))
            return false;
        command->options.seed = (uint64_t)seed;
        return true;
    case JSON:
        command->json = true;
        return true;
    case HELP:
        command->help = true;
        return true;
    default:
        command->single = true;
        return set_shape(command, key, text);
    }
}

static bool given(uint64_t seen, int key)
{
    return seen >> (key - BACKEND) & 1;
}

/* What follows from the options together. */
static bool complete(struct command *command, uint64_t seen)
{
    hpa_desc *desc = &command->desc;
    if (given(seen, PACKED) && (given(seen, BATCH) || given(seen, SEQ) || given(seen, SEQ_KV))) {
        fprintf(stderr, "hpa-gradcheck: --packed gives the number and the lengths of the sequences;"
                        " expected no --batch, --seq or --seq-kv with it\n");
        return false;
    }
    if (!given(seen, KV_HEADS))
        desc->heads_kv = desc->heads_q;
    if (!given(seen, SEQ_KV))
        desc->seq_kv = desc->seq_q;
    desc->total_kv = desc->total_q;
    return true;
}

static void set_defaults(struct command *command)
{
    hpa_desc desc = hpa_desc_default();
    desc.dtype = HPA_F64;
    desc.heads_q = 2;
    desc.seq_q = 256;
    desc.head_dim = 32;
    desc.block_q = 32;
    desc.block_k = 16;
    desc.top_k = 32;
    desc.sink = 16;
    desc.window = 16;
    *command = (struct command){.desc = desc, .options = hpa_gradcheck_attention_options()};
}

static bool refuse(int argc, char **argv, int key)
{
    const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "";
    if (key == ':')
        fprintf(stderr, "hpa-gradcheck: %s has no value; see --help\n", word);
    else
        fprintf(stderr, "hpa-gradcheck: %s is not an option, or takes no value; see --help\n",
                word);
    return false;
}

bool command_parse(struct command *command, int argc, char **argv)
{
    uint64_t seen = 0;
    int key;
    set_defaults(command);
    opterr = 0;
    while ((key = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (key < BACKEND)
            return refuse(argc, argv, key);
        seen |= UINT64_C(1) << (key - BACKEND);
        if (!set_option(command, key, optarg))
            return false;
    }
    if (optind < argc) {
        fprintf(stderr, "hpa-gradcheck: \"%s\" is not an option; see --help\n", argv[optind]);
        return false;
    }
    return complete(command, seen);
}

void command_destroy(struct command *command)
{
    free(command->lengths);
}
