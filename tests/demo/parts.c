/* AdamW and its schedule against sums done by hand, the text and its split, the command line. */
#include "adamw.h"
#include "backends.h"
#include "data.h"
#include "options.h"
#include "random.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

/* One weight, its gradient and its running means on a backend, as AdamW takes them. */
enum { WEIGHT, FIRST, SECOND, GRADIENT, N_FLOATS };

static float step_of(backend *on, float *memory, float gradient, const adamw_step *step)
{
    float host[N_FLOATS];
    failure why;
    on->op->write(on, memory + GRADIENT, &gradient, sizeof gradient);
    on->op->adamw(on, memory + WEIGHT, memory + WEIGHT, memory + FIRST, memory + SECOND,
                  memory + GRADIENT, 1, step);
    ck_assert_msg(on->op->read(on, host, memory, sizeof host, &why), "%s", why.text);
    return host[WEIGHT];
}

static float *new_weight(backend *on, float value)
{
    float *memory = on->op->allocate(on, N_FLOATS * sizeof *memory);
    ck_assert_ptr_nonnull(memory);
    on->op->write(on, memory + WEIGHT, &value, sizeof value);
    return memory;
}

START_TEST(adamw_takes_the_steps_of_the_paper)
{
    enum { STEPS = 5 };
    const double gradients[STEPS] = {0.5, -2, 0.25, 0, 1};
    const double rate = 0.1, decay = 0.2, beta1 = 0.9, beta2 = 0.99;
    double w = 3, m = 0, v = 0;
    backend *on = open_backend(DTYPE_F32);
    float *memory = new_weight(on, 3);
    for (int t = 1; t <= STEPS; t++) {
        double g = gradients[t - 1];
        float weight = step_of(on, memory, (float)g,
                               &(adamw_step){.beta1 = beta1,
                                             .beta2 = beta2,
                                             .weight_decay = decay,
                                             .learning_rate = rate,
                                             .decayed = 1,
                                             .number = t});
        m = beta1 * m + (1 - beta1) * g;
        v = beta2 * v + (1 - beta2) * g * g;
        double m_hat = m / (1 - pow(beta1, t)), v_hat = v / (1 - pow(beta2, t));
        w = w - rate * decay * w - rate * m_hat / (sqrt(v_hat) + 1e-8);
        ck_assert_double_eq_tol((double)weight, w, 1e-5);
    }
    on->op->release(on, memory);
    backend_close(on);
}
END_TEST

/* A model whose gradients are all 0: decay alone moves its weights. */
START_TEST(adamw_leaves_norms_undecayed)
{
    model_shape shape = {.batch = 1,
                         .context = 16,
                         .layers = 1,
                         .dim = 8,
                         .heads = 1,
                         .kv_heads = 1,
                         .head_dim = 8,
                         .hidden = 8,
                         .rope_base = 1000};
    attention_settings dense = {.kind = ATTENTION_DENSE,
                                .block_q = 16,
                                .block_k = 16,
                                .beam = 1,
                                .rep_tokens = 1,
                                .leaf_tokens = 1,
                                .query_stride = 1,
                                .search_span = 1};
    failure why;
    model *m;
    backend *on = open_backend(DTYPE_F32);
    ck_assert_msg(model_create(&m, on, &shape, &dense, &why), "%s", why.text);
    ck_assert_msg(model_initialize(m, 1, &why), "%s", why.text);
    float *before = calloc((size_t)m->n_weights, 2 * sizeof *before),
          *after = before + m->n_weights;
    int64_t bytes = m->n_weights * m->on->number_bytes;
    ck_assert(on->op->read(on, before, m->weights.all, bytes, &why));
    adamw_update(
        m,
        (adamw_step){
            .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.5, .learning_rate = 0.1, .number = 1});
    ck_assert(on->op->read(on, after, m->weights.all, bytes, &why));
    for (int64_t n = 0; n < m->n_infos; n++)
        for (int64_t i = m->infos[n].offset; i < m->infos[n].offset + m->infos[n].count; i++)
            ck_assert_float_eq_tol(after[i], before[i] * (m->infos[n].columns ? 0.95f : 1), 1e-6f);
    free(before);
    model_destroy(m);
    backend_close(on);
}
END_TEST

START_TEST(learning_rate_rises_and_falls)
{
    ck_assert_double_eq_tol(learning_rate_at(0, 100, 10, 1, 0.1), 0.1, 1e-12);
    ck_assert_double_eq_tol(learning_rate_at(9, 100, 10, 1, 0.1), 1, 1e-12);
    ck_assert_double_eq_tol(learning_rate_at(10, 100, 10, 1, 0.1), 1, 1e-12);
    ck_assert_double_eq_tol(learning_rate_at(55, 100, 10, 1, 0.1), 0.55, 1e-12);
    ck_assert_double_eq_tol(learning_rate_at(100, 100, 10, 1, 0.1), 0.1, 1e-12);
    ck_assert_double_eq_tol(learning_rate_at(0, 1, 0, 1, 0.1), 1, 1e-12);
}
END_TEST

START_TEST(gradient_norm_is_a_length)
{
    const float gradients[4] = {1, -2, 4, 2}, broken[2] = {1, NAN};
    double squares;
    failure why;
    backend *on = open_backend(DTYPE_F32);
    float *memory = new_weight(on, 0);
    on->op->write(on, memory, gradients, sizeof gradients);
    ck_assert(on->op->sum_of_squares(on, memory, 4, &squares, &why));
    ck_assert_double_eq_tol(squares, 25, 1e-12);
    on->op->write(on, memory, broken, sizeof broken);
    ck_assert(on->op->sum_of_squares(on, memory, 2, &squares, &why));
    ck_assert(isnan(squares));
    on->op->release(on, memory);
    backend_close(on);
}
END_TEST

/* Writes a file of this text, gzipped or plain, and puts its name in path. */
static void write_text(char *path, const char *text, size_t size, bool zipped)
{
    int descriptor = mkstemp(path);
    ck_assert_int_ge(descriptor, 0);
    gzFile file = gzdopen(descriptor, zipped ? "wb" : "wbT");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(gzwrite(file, text, (unsigned)size), (int)size);
    ck_assert_int_eq(gzclose(file), Z_OK);
}

START_TEST(plain_and_gzipped_text_are_the_same)
{
    enum { SIZE = 3000000 }; /* more than the reader's first buffer */
    char *text = malloc(SIZE);
    ck_assert_ptr_nonnull(text);
    random_source source = {1};
    for (int n = 0; n < SIZE; n++)
        text[n] = (char)random_below(&source, 100);
    text_data data[2];
    for (int zipped = 0; zipped < 2; zipped++) {
        char path[] = "/tmp/demo_parts_XXXXXX";
        failure why;
        write_text(path, text, SIZE, zipped);
        ck_assert_msg(data_load(&data[zipped], path, 0.25, &why), "%s", why.text);
        unlink(path);
        ck_assert_int_eq(data[zipped].size, SIZE);
        ck_assert_int_eq(data[zipped].train_size, SIZE / 4 * 3);
        ck_assert_mem_eq(data[zipped].text, text, SIZE);
    }
    ck_assert_uint_eq(data[0].checksum, data[1].checksum);
    data_free(&data[0]);
    data_free(&data[1]);
    free(text);
}
END_TEST

/* 1000 bytes that count up, the last 205 held out. */
static text_data counting(uint8_t *text)
{
    for (int n = 0; n < 1000; n++)
        text[n] = (uint8_t)n;
    return (text_data){.text = text, .size = 1000, .train_size = 795};
}

START_TEST(batches_stay_in_the_training_text)
{
    enum { B = 3, T = 10 };
    uint8_t text[1000], tokens[B * T], targets[B * T];
    text_data data = counting(text);
    random_source source = {1};
    memset(text + data.train_size, 255, (size_t)(data.size - data.train_size));
    memset(text, 1, (size_t)data.train_size);
    for (int n = 0; n < 2000; n++) {
        data_batch(&data, &source, B, T, tokens, targets);
        for (int i = 0; i < B * T; i++)
            ck_assert(tokens[i] == 1 && targets[i] == 1);
    }
}
END_TEST

START_TEST(targets_are_the_next_bytes)
{
    enum { B = 2, T = 10 };
    uint8_t text[1000], tokens[B * T], targets[B * T];
    text_data data = counting(text);
    random_source source = {1};
    data_batch(&data, &source, B, T, tokens, targets);
    for (int i = 0; i < B * T; i++)
        ck_assert_int_eq(targets[i], (uint8_t)(tokens[i] + 1));
    ck_assert_int_eq(data_held_out_batches(&data, B, T), 10); /* (205 - 1) / 20 */
    data_held_out_batch(&data, 9, B, T, tokens, targets);
    ck_assert_int_eq(tokens[0], (uint8_t)(795 + 180));
    ck_assert_int_eq(targets[B * T - 1], (uint8_t)(795 + 200));
}
END_TEST

static parse_result parse(options *o, failure *why, int argc, char **argv)
{
    extern int optind;
    optind = 0; /* getopt starts anew */
    return options_parse(o, argc, argv, why);
}

#define PARSE(o, why, ...)                                                 \
    parse(o, why, (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), \
          (char *[]){__VA_ARGS__, NULL})

START_TEST(command_line_is_read)
{
    options o;
    failure why;
    ck_assert_int_eq(PARSE(&o, &why, "x", "--data", "a b", "--layers=3", "--dense-layers", "0,2",
                           "--attention", "window", "--learning-rate", "1e-4", "--lowest-rate", "0",
                           "--share-heads"),
                     PARSE_RUN);
    ck_assert_str_eq(o.data, "a b");
    ck_assert_int_eq(o.shape.layers, 3);
    ck_assert_uint_eq(o.attention.dense_layers, 5);
    ck_assert_int_eq(o.attention.kind, ATTENTION_WINDOW);
    ck_assert(o.attention.share_heads);
    ck_assert_double_eq(o.learning_rate, 1e-4);
    ck_assert_int_eq(o.attention.beam, 2); /* a default */
    ck_assert_int_eq(o.backend, BACKEND_AUTO);
    ck_assert_int_eq(PARSE(&o, &why, "x", "--data", "a", "--backend", "cuda", "--dtype", "bf16",
                           "--checkpoint-layers"),
                     PARSE_RUN);
    ck_assert(o.backend == BACKEND_CUDA && o.dtype == DTYPE_BF16 && o.shape.checkpoint_layers);
    ck_assert_int_eq(PARSE(&o, &why, "x", "--help"), PARSE_HELP);
}
END_TEST

START_TEST(command_to_go_on_is_quoted)
{
    options o;
    failure why;
    char text[512] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    ck_assert_int_eq(PARSE(&o, &why, "x", "--data", "it's", "--from", "old", "--share-heads",
                           "--steps=7", "--checkpoint", "new"),
                     PARSE_RUN);
    options_print_command(&o, "bin/x y", out);
    fclose(out);
    ck_assert_str_eq(text, "'bin/x y' --data 'it'\\''s' --share-heads --steps 7 "
                           "--checkpoint new --resume new\n");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("demo: parts");
    TCase *tests = tcase_create("parts");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, adamw_takes_the_steps_of_the_paper);
    tcase_add_test(tests, adamw_leaves_norms_undecayed);
    tcase_add_test(tests, learning_rate_rises_and_falls);
    tcase_add_test(tests, gradient_norm_is_a_length);
    tcase_add_test(tests, plain_and_gzipped_text_are_the_same);
    tcase_add_test(tests, batches_stay_in_the_training_text);
    tcase_add_test(tests, targets_are_the_next_bytes);
    tcase_add_test(tests, command_line_is_read);
    tcase_add_test(tests, command_to_go_on_is_quoted);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
