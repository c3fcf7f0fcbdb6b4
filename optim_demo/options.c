#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <hpa/hpa.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef enum option_kind {
    TEXT,
    PATH,
    WHOLE,
    NUMBER,
    FLAG,
    LAYERS,
    KIND,
    PRESET,
    BACKEND,
    DTYPE
} option_kind;

/* A row with kind and field; or, with name NULL, the heading of a group in the help. */
typedef struct option_row {
    const char *name;
    option_kind kind;
    size_t field;
    double low, high;    /* of WHOLE and NUMBER */
    const char *initial; /* default, parsed like an argument; NULL: none */
    const char *help;
} option_row;

static const char *const kind_names[] = {
    [ATTENTION_HIP] = "hip", [ATTENTION_WINDOW] = "window", [ATTENTION_DENSE] = "dense", NULL};
static const char *const preset_names[] = {
    "none", [HPA_PRESET_FAST] = "fast", [HPA_PRESET_BALANCED] = "balanced",
    [HPA_PRESET_FAITHFUL] = "faithful", NULL};
static const char *const backend_names[] = {
    [BACKEND_AUTO] = "auto", [BACKEND_CPU] = "cpu", [BACKEND_CUDA] = "cuda", NULL};
static const char *const dtype_names[] = {
    [DTYPE_AUTO] = "auto", [DTYPE_F32] = "f32", [DTYPE_BF16] = "bf16", [DTYPE_F64] = "f64", NULL};

/* Names of the enums that an option can hold, in their order. */
static const char *const *const choices[] = {
    [KIND] = kind_names, [PRESET] = preset_names, [BACKEND] = backend_names, [DTYPE] = dtype_names};

#define FIELD(name) offsetof(options, name)
#define BILLION 1e9

static const option_row rows[] = {
    {.help = "The text"},
    {"data", PATH, FIELD(data), 0, 0, NULL,
     "to learn from, plain or gzipped; its bytes are the tokens"},
    {"held-out", NUMBER, FIELD(held_out), 0, 0.9, "0.1",
     "share at its end that training never sees and evaluation reads"},

    {.help = "The model (with --from or --resume its dimensions come from that file)"},
    {"context", WHOLE, FIELD(shape.context), 2, 1 << 24, "256", "tokens that one sequence holds"},
    {"layers", WHOLE, FIELD(shape.layers), 1, MAX_LAYERS, NULL, "transformer layers [4]"},
    {"dim", WHOLE, FIELD(shape.dim), 1, 1 << 16, NULL, "numbers in the residual stream [128]"},
    {"heads", WHOLE, FIELD(shape.heads), 1, 1 << 10, NULL, "query heads [4]"},
    {"kv-heads", WHOLE, FIELD(shape.kv_heads), 1, 1 << 10, NULL,
     "key and value heads, each shared by heads / kv-heads query heads [2]"},
    {"head-dim", WHOLE, FIELD(shape.head_dim), 8, 256, NULL,
     "numbers in a head, a multiple of 8 [dim / heads]"},
    {"hidden", WHOLE, FIELD(shape.hidden), 1, 1 << 20, NULL,
     "numbers in the SwiGLU layer [3 * dim]"},
    {"rope-base", NUMBER, FIELD(shape.rope_base), 1, 1e12, NULL,
     "base of the rotary positions; a larger one allows longer contexts [100000]"},

    {.help = "Attention"},
    {"attention", KIND, FIELD(attention.kind), 0, 0, "hip",
     "hip: sink, window and the top-k keys that the tree search finds.\nwindow: the last window + "
     "top-k keys, the same budget.\ndense: every key"},
    {"dense-layers", LAYERS, FIELD(attention.dense_layers), 0, 0, NULL,
     "layers that stay dense, such as 0,1,5"},
    {"preset", PRESET, FIELD(preset), 0, 0, "none",
     "fast, balanced or faithful: the library's settings of the knobs from block-q to\n"
     "share-heads, of which those that are given besides are not changed. none: as below"},
    {"top-k", WHOLE, FIELD(attention.top_k), 0, BILLION, "512",
     "keys that the search finds for each block of queries"},
    {"window", WHOLE, FIELD(attention.window), 0, BILLION, "128", "last keys, always kept"},
    {"sink", WHOLE, FIELD(attention.sink), 0, BILLION, "16", "first keys, always kept"},
    {"block-q", WHOLE, FIELD(attention.block_q), 16, 256, "64",
     "queries that share one list of kept blocks: a multiple of 16"},
    {"block-k", WHOLE, FIELD(attention.block_k), 16, 128, "16",
     "keys in a block: 16, 32, 64 or 128"},
    {"beam", WHOLE, FIELD(attention.beam), 1, 1 << 16, "2",
     "tree nodes carried down, in units of top-k: more finds more, slower"},
    {"rep-tokens", WHOLE, FIELD(attention.rep_tokens), 1, BILLION, "4",
     "keys scored for a node of the tree"},
    {"leaf-tokens", WHOLE, FIELD(attention.leaf_tokens), 1, BILLION, "8",
     "keys scored for a node at the last level"},
    {"query-stride", WHOLE, FIELD(attention.query_stride), 1, 256, "1",
     "every how many queries of a block take part in the search"},
    {"search-span", WHOLE, FIELD(attention.search_span), 1, 64, "1",
     "neighbouring blocks of queries that share the coarse levels of the search, which\nthere are "
     "where the context is many times top-k: faster, worse"},
    {"share-heads", FLAG, FIELD(attention.share_heads), 0, 0, NULL,
     "one mask for all query heads of a key/value head"},
    {"mask-refresh", WHOLE, FIELD(mask_refresh), 1, BILLION, "1",
     "search in every N-th step and reuse each layer's mask in between.\nThe text changes from "
     "step to step: more than 1 is faster and worse"},
    {"reference", FLAG, FIELD(attention.reference), 0, 0, NULL,
     "the library's plain double-precision loops, to compare with"},

    {.help = "Where, and in what numbers"},
    {"backend", BACKEND, FIELD(backend), 0, 0, "auto",
     "cpu or cuda. auto: cuda where there is a device and the program was built for it"},
    {"dtype", DTYPE, FIELD(dtype), 0, 0, "auto",
     "f32; bf16: products and attention in it, the rest in f32, on cuda alone;\nf64: on the cpu "
     "alone. auto: bf16 on cuda, f32 on the cpu"},
    {"checkpoint-layers", FLAG, FIELD(shape.checkpoint_layers), 0, 0, NULL,
     "keep only what enters a layer, and compute the rest once more for the backward:\nmuch less "
     "memory, a third more time"},

    {.help = "Training (AdamW; --steps 0 only evaluates)"},
    {"steps", WHOLE, FIELD(steps), 0, BILLION, "1000", "steps in all, counting those of --resume"},
    {"batch", WHOLE, FIELD(shape.batch), 1, 1 << 16, "16", "sequences that the model sees at once"},
    {"accumulate", WHOLE, FIELD(accumulate), 1, 1 << 16, "1",
     "batches whose gradients make one step"},
    {"learning-rate", NUMBER, FIELD(learning_rate), 0, 1, "3e-3",
     "highest, reached after the warm-up; a cosine takes it down"},
    {"lowest-rate", NUMBER, FIELD(lowest_rate), 0, 1, "1e-4", "learning rate at the last step"},
    {"warmup", WHOLE, FIELD(warmup), 0, BILLION, "50", "steps until the highest learning rate"},
    {"weight-decay", NUMBER, FIELD(weight_decay), 0, 10, "0.1", "of matrices; norms have none"},
    {"beta1", NUMBER, FIELD(beta1), 0, 0.9999999, "0.9", "memory of the gradient's running mean"},
    {"beta2", NUMBER, FIELD(beta2), 0, 0.9999999, "0.99", "memory of its square's"},
    {"clip", NUMBER, FIELD(clip), 0, BILLION, "1",
     "longest gradient, longer ones are scaled to it; 0: no limit"},
    {"seed", WHOLE, FIELD(seed), 0, 9e15, "1", "of the first weights and of the order of the text"},
    {"threads", WHOLE, FIELD(threads), 0, 4096, "0",
     "0: one for each core. A run repeats to the bit with the same number"},

    {.help = "Evaluation and files"},
    {"from", PATH, FIELD(from), 0, 0, NULL,
     "whose weights to start with: a new training, such as fine-tuning"},
    {"resume", PATH, FIELD(resume), 0, 0, NULL,
     "to go on from, as if the run had never stopped: give the other options\nas they were"},
    {"checkpoint", PATH, FIELD(checkpoint), 0, 0, "hpa-finetune.st",
     "that the end, Ctrl-C and --checkpoint-every save to"},
    {"weights", PATH, FIELD(weights), 0, 0, NULL,
     "for the weights alone, in bf16, at the end: a small file for --from"},
    {"checkpoint-every", WHOLE, FIELD(checkpoint_every), 0, BILLION, "0",
     "steps between checkpoints; 0: only at the end"},
    {"evaluate-every", WHOLE, FIELD(evaluate_every), 0, BILLION, "0",
     "steps between evaluations; 0: only at the end"},
    {"evaluate-batches", WHOLE, FIELD(evaluate_batches), 0, BILLION, "0",
     "batches in an evaluation; 0: all of the held-out text"},
    {"log", PATH, FIELD(log), 0, 0, "hpa-finetune.csv", "for one line of numbers a step"},
    {"results", PATH, FIELD(results), 0, 0, NULL,
     "to which the end adds one line: label, loss, density, speed"},
    {"label", TEXT, FIELD(label), 0, 0, "", "that names this run in --results"},
    {"losses", PATH, FIELD(losses), 0, 0, NULL,
     "for the loss of each held-out byte in the last evaluation, one a line"},
    {"mask-png", PATH, FIELD(mask_png), 0, 0, NULL,
     "for a picture of one head's mask in the last evaluation"},
    {"mask-layer", WHOLE, FIELD(mask_layer), 0, MAX_LAYERS - 1, "0", "its layer, counted from 0"},
    {"mask-head", WHOLE, FIELD(mask_head), 0, 1 << 10, "0", "its head, counted from 0"},

    {.help = "A sample at the end"},
    {"sample", WHOLE, FIELD(sample), 0, BILLION, "0", "bytes to write with the trained model"},
    {"prompt", TEXT, FIELD(prompt), 0, 0, NULL,
     "to go on from [the start of the held-out text, half a context]"},
    {"temperature", NUMBER, FIELD(temperature), 0, 100, "0.7",
     "0: always the likeliest byte; 1: as the model would have it"},
};

/* What getopt_long returns for a row is no character. */
enum { N_ROWS = sizeof rows / sizeof *rows, FIRST_ROW = 256, HELP = FIRST_ROW + N_ROWS };
_Static_assert((int)N_ROWS <= (int)MAX_OPTIONS, "options.given has room for every row");

const char *attention_kind_name(attention_kind kind)
{
    return kind_names[kind];
}

/* One argument */

static bool parse_number(const option_row *row, const char *text, double *value, failure *why)
{
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    bool is_number = end != text && *end == 0 && errno == 0 && isfinite(*value);
    bool is_whole = is_number && *value == floor(*value);
    if ((row->kind == WHOLE ? is_whole : is_number) && *value >= row->low && *value <= row->high)
        return true;
    return fail(why, "--%s %s: expected a %snumber from %.12g to %.12g", row->name, text,
                row->kind == WHOLE ? "whole " : "", row->low, row->high);
}

static bool parse_choice(const option_row *row, const char *text, int *choice, failure *why)
{
    const char *const *names = choices[row->kind];
    char expected[128] = "";
    for (int n = 0; names[n]; n++) {
        if (strcmp(text, names[n]) == 0) {
            *choice = n;
            return true;
        }
        size_t used = strlen(expected);
        const char *comma = n == 0 ? "" : names[n + 1] ? ", " : " or ";
        snprintf(expected + used, sizeof expected - used, "%s%s", comma, names[n]);
    }
    return fail(why, "--%s %s: expected %s", row->name, text, expected);
}

static bool parse_layers(const option_row *row, const char *text, uint64_t *layers, failure *why)
{
    *layers = 0;
    for (const char *next = text;;) {
        char *end;
        long layer = strtol(next, &end, 10);
        if (end == next || layer < 0 || layer >= MAX_LAYERS || (*end && *end != ','))
            return fail(why, "--%s %s: expected layers from 0 to %d with commas between", row->name,
                        text, MAX_LAYERS - 1);
        *layers |= UINT64_C(1) << layer;
        if (*end == 0)
            return true;
        next = end + 1;
    }
}

static bool parse_value(options *self, const option_row *row, const char *text, failure *why)
{
    void *field = (char *)self + row->field;
    double number;
    switch (row->kind) {
    case TEXT:
    case PATH:
        *(const char **)field = text;
        return true;
    case FLAG:
        *(bool *)field = true;
        return true;
    case KIND:
    case PRESET:
    case BACKEND:
    case DTYPE:
        return parse_choice(row, text, field, why);
    case LAYERS:
        return parse_layers(row, text, field, why);
    case WHOLE:
        if (!parse_number(row, text, &number, why))
            return false;
        *(int64_t *)field = (int64_t)number;
        return true;
    case NUMBER:
        return parse_number(row, text, field, why);
    }
    return false;
}

/* What was not given besides becomes the preset's. */
static void apply_preset(options *self)
{
    hpa_desc desc = hpa_desc_default();
    if (hpa_desc_set_preset(&desc, (hpa_preset)self->preset) != HPA_OK)
        return; /* none */
    const struct {
        size_t field;
        int64_t value;
    } knobs[] = {{FIELD(attention.block_q), desc.block_q},
                 {FIELD(attention.block_k), desc.block_k},
                 {FIELD(attention.beam), desc.beam},
                 {FIELD(attention.rep_tokens), desc.rep_tokens},
                 {FIELD(attention.leaf_tokens), desc.leaf_tokens},
                 {FIELD(attention.query_stride), desc.query_stride},
                 {FIELD(attention.search_span), desc.search_span}};
    for (size_t k = 0; k < sizeof knobs / sizeof *knobs; k++)
        for (int n = 0; n < N_ROWS; n++)
            if (rows[n].name && rows[n].field == knobs[k].field && !self->given[n])
                *(int64_t *)((char *)self + knobs[k].field) = knobs[k].value;
    self->attention.share_heads = self->attention.share_heads || desc.share_heads;
}

/* The command line */

static bool check_together(const options *self, failure *why)
{
    if (!self->data)
        return fail(why, "expected --data FILE, the text to learn from; --help explains");
    if (self->from && self->resume)
        return fail(why, "expected --from or --resume, not both");
    if (self->lowest_rate > self->learning_rate)
        return fail(why, "--lowest-rate %g: expected at most --learning-rate, which is %g",
                    self->lowest_rate, self->learning_rate);
    if (self->label && strpbrk(self->label, ",\"\n"))
        return fail(why, "--label %s: expected no commas, quotes and line ends", self->label);
    return true;
}

static bool set_defaults(options *self, failure *why)
{
    *self = (options){0};
    for (int n = 0; n < N_ROWS; n++)
        if (rows[n].name && rows[n].initial && !parse_value(self, &rows[n], rows[n].initial, why))
            return false;
    return true;
}

parse_result options_parse(options *self, int argc, char **argv, failure *why)
{
    struct option known[N_ROWS + 2] = {{"help", no_argument, NULL, HELP}};
    int n_known = 1;
    for (int n = 0; n < N_ROWS; n++)
        if (rows[n].name)
            known[n_known++] = (struct option){
                rows[n].name, rows[n].kind == FLAG ? no_argument : required_argument, NULL,
                FIRST_ROW + n};
    if (!set_defaults(self, why))
        return PARSE_FAILED;

    opterr = 0;
    for (int found; (found = getopt_long(argc, argv, ":h", known, NULL)) != -1;) {
        if (found == HELP || found == 'h')
            return PARSE_HELP;
        if (found == ':')
            return fail(why, "%s: expected an argument after it", argv[optind - 1]), PARSE_FAILED;
        if (found == '?')
            return fail(why, "%s: no such option; --help lists them", argv[optind - 1]),
                   PARSE_FAILED;
        if (!parse_value(self, &rows[found - FIRST_ROW], optarg, why))
            return PARSE_FAILED;
        self->given[found - FIRST_ROW] = optarg ? optarg : "";
    }
    if (optind < argc)
        return fail(why, "%s: expected options alone; --help lists them", argv[optind]),
               PARSE_FAILED;
    apply_preset(self);
    return check_together(self, why) ? PARSE_RUN : PARSE_FAILED;
}

/* The model's dimensions */

static bool complete(const char *name, int64_t *given, int64_t known, const char *path,
                     failure *why)
{
    if (*given != 0 && path && *given != known)
        return fail(why, "--%s %" PRId64 ": expected %" PRId64 ", which %s has", name, *given,
                    known, path);
    if (*given == 0)
        *given = known;
    return true;
}

bool options_complete_shape(options *self, const model_shape *known, const char *path, failure *why)
{
    model_shape *s = &self->shape;
    model_shape usual = {.layers = 4, .dim = 128, .heads = 4, .kv_heads = 2, .rope_base = 100000};
    if (!known) {
        /* Those that follow from others. */
        int64_t dim = s->dim ? s->dim : usual.dim, heads = s->heads ? s->heads : usual.heads;
        usual.hidden = 3 * dim;
        usual.head_dim = dim / heads;
        if (s->head_dim == 0 && dim % heads != 0)
            return fail(why,
                        "dim is %" PRId64 " and heads %" PRId64
                        ", expected dim to be a multiple of heads, or --head-dim",
                        dim, heads);
        known = &usual;
    }
    if (path && s->rope_base == 0)
        s->rope_base = known->rope_base; /* a longer context may want another base */
    if (s->rope_base == 0)
        s->rope_base = usual.rope_base;
    return complete("layers", &s->layers, known->layers, path, why) &&
           complete("dim", &s->dim, known->dim, path, why) &&
           complete("heads", &s->heads, known->heads, path, why) &&
           complete("kv-heads", &s->kv_heads, known->kv_heads, path, why) &&
           complete("head-dim", &s->head_dim, known->head_dim, path, why) &&
           complete("hidden", &s->hidden, known->hidden, path, why) && model_shape_check(s, why);
}

/* Help */

static void print_row(FILE *out, const option_row *row)
{
    static const char *const argument[] = {
        [TEXT] = " TEXT",    [PATH] = " FILE",   [WHOLE] = " N",   [NUMBER] = " X",
        [FLAG] = "",         [LAYERS] = " LIST", [KIND] = " NAME", [PRESET] = " NAME",
        [BACKEND] = " NAME", [DTYPE] = " NAME"};
    char left[64];
    snprintf(left, sizeof left, "--%s%s", row->name, argument[row->kind]);
    fprintf(out, "  %-24s", left);
    for (const char *line = row->help; line;) {
        const char *end = strchr(line, '\n');
        fprintf(out, "%.*s", end ? (int)(end - line) : (int)strlen(line), line);
        line = end ? end + 1 : NULL;
        if (line)
            fprintf(out, "\n%26s", "");
    }
    if (row->initial && *row->initial)
        fprintf(out, " [%s]", row->initial);
    fputc('\n', out);
}

void options_help(FILE *out)
{
    fputs("usage: hpa-finetune --data FILE [options]\n"
          "\n"
          "Trains a small Llama-style transformer on the bytes of a text, with dense attention or "
          "with\n"
          "HiP (hierarchically pruned) attention from libhpa, and says how well it predicts the "
          "part\n"
          "of the text that it did not see, in nats a byte: lower is better.\n"
          "\n"
          "Train at a short context, where dense attention is cheap:\n"
          "  hpa-finetune --data book.txt --attention dense --context 256 --checkpoint short.st\n"
          "See what a longer context is worth before any fine-tuning, and what HiP makes of it:\n"
          "  hpa-finetune --data book.txt --from short.st --context 4096 --batch 1 --steps 0 \\\n"
          "      --attention hip\n"
          "Fine-tune at the longer context through HiP's masks:\n"
          "  hpa-finetune --data book.txt --from short.st --context 4096 --batch 1 --steps 200 \\\n"
          "      --attention hip --learning-rate 1e-3 --checkpoint long.st --sample 400\n"
          "\n"
          "Ctrl-C saves a checkpoint and prints the command that goes on from it. Exit status: 0 "
          "done,\n"
          "2 something was wrong (one line says what was expected), 130 or 143 interrupted.\n",
          out);
    for (int n = 0; n < N_ROWS; n++)
        if (rows[n].name)
            print_row(out, &rows[n]);
        else
            fprintf(out, "\n%s\n", rows[n].help);
}

/* A word that a shell reads as this text. */
static void print_quoted(const char *text, FILE *out)
{
    const char *plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./,:@%";
    if (*text && text[strspn(text, plain)] == 0) {
        fputs(text, out);
        return;
    }
    fputc('\'', out);
    for (; *text; text++)
        if (*text == '\'')
            fputs("'\\''", out);
        else
            fputc(*text, out);
    fputc('\'', out);
}

void options_print_command(const options *self, const char *program, FILE *out)
{
    print_quoted(program, out);
    for (int n = 0; n < N_ROWS; n++) {
        const option_row *row = &rows[n];
        if (!self->given[n] || row->field == FIELD(from) || row->field == FIELD(resume))
            continue;
        fprintf(out, " --%s", row->name);
        if (row->kind != FLAG) {
            fputc(' ', out);
            print_quoted(self->given[n], out);
        }
    }
    fputs(" --resume ", out);
    print_quoted(self->checkpoint, out);
    fputc('\n', out);
}
