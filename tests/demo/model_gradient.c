/* The gradient of the whole model against finite differences: every weight array along a random
 * direction, with each kind of attention, and with the masks held still while the weights move. In
 * double precision on the CPU, in f32 on a CUDA device. */
#include "backends.h"
#include "model.h"
#include "random.h"

#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, CONTEXT = 72, TOKENS = BATCH * CONTEXT };

typedef struct setting {
    const char *name;
    attention_settings attention;
    int64_t heads, kv_heads;
} setting;

#define KNOBS                                                                                      \
    .block_q = 16, .block_k = 16, .beam = 1, .rep_tokens = 2, .leaf_tokens = 4, .query_stride = 1, \
    .search_span = 1

static const setting settings[] = {
    {"dense", {.kind = ATTENTION_DENSE, KNOBS}, 4, 2},
    {"window", {.kind = ATTENTION_WINDOW, .top_k = 16, .window = 8, KNOBS}, 4, 4},
    {"hip", {.kind = ATTENTION_HIP, .top_k = 16, .window = 8, .sink = 1, KNOBS}, 4, 2},
    {"hip, masks shared, layer 1 dense",
     {.kind = ATTENTION_HIP,
      .top_k = 16,
      .window = 8,
      .share_heads = true,
      .dense_layers = 2,
      KNOBS},
     4,
     1},
};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

/* What finite differences are sharp enough for, in f64 and in f32. */
static double epsilon(void)
{
    return test_on_cuda() ? 3e-3 : 1e-5;
}

static double tolerance(double gradient)
{
    return test_on_cuda() ? 1e-4 + 1e-2 * fabs(gradient) : 1e-9 + 1e-5 * fabs(gradient);
}

static model *make_model(const setting *which, bool checkpoint_layers)
{
    model_shape shape = {.batch = BATCH,
                         .context = CONTEXT,
                         .layers = 2,
                         .dim = 24,
                         .heads = which->heads,
                         .kv_heads = which->kv_heads,
                         .head_dim = 8,
                         .hidden = 40,
                         .rope_base = 1000,
                         .checkpoint_layers = checkpoint_layers};
    failure why;
    model *m;
    backend *on = open_backend(test_on_cuda() ? DTYPE_F32 : DTYPE_F64);
    ck_assert_msg(model_create(&m, on, &shape, &which->attention, &why), "%s", why.text);
    ck_assert_msg(model_initialize(m, 3, &why), "%s", why.text);
    return m;
}

static void drop_model(model *m)
{
    backend *on = m->on;
    model_destroy(m);
    backend_close(on);
}

/* n numbers of the model, from `offset` of an array on. */
static double *read_numbers(const model *m, void *array, int64_t offset, int64_t n)
{
    failure why;
    void *host = malloc((size_t)(n * m->on->number_bytes));
    double *values = malloc((size_t)n * sizeof *values);
    ck_assert(host && values);
    ck_assert_msg(m->on->op->read(m->on, host, number_at(m->on, array, offset),
                                  n * m->on->number_bytes, &why),
                  "%s", why.text);
    for (int64_t i = 0; i < n; i++)
        values[i] = number_get(m->on, host, i);
    free(host);
    return values;
}

static void make_text(uint8_t *tokens, uint8_t *targets)
{
    random_source source = {11};
    for (int n = 0; n < TOKENS; n++) {
        tokens[n] = (uint8_t)random_bits(&source);
        targets[n] = (uint8_t)random_bits(&source);
    }
}

static double loss_of(model *m, const uint8_t *tokens, const uint8_t *targets, mask_use use)
{
    failure why;
    double loss;
    ck_assert_msg(model_forward(m, tokens, targets, use, &why) && model_loss(m, &loss, &why), "%s",
                  why.text);
    return loss;
}

static void add_backward(model *m, double factor)
{
    failure why;
    ck_assert_msg(model_backward(m, factor, &why), "%s", why.text);
}

/* The loss with weights + distance * direction for the weights of `info`; what was really added,
 * after rounding, goes into moved. */
static double loss_beside(model *m, const weight_info *info, const double *weights,
                          const double *direction, double distance, double *moved,
                          const uint8_t *tokens, const uint8_t *targets)
{
    int64_t bytes = info->count * m->on->number_bytes;
    void *host = malloc((size_t)bytes);
    ck_assert_ptr_nonnull(host);
    for (int64_t i = 0; i < info->count; i++) {
        number_set(m->on, host, i, weights[i] + distance * direction[i]);
        moved[i] = number_get(m->on, host, i) - weights[i];
    }
    m->on->op->write(m->on, number_at(m->on, m->weights.all, info->offset), host, bytes);
    free(host);
    model_weights_changed(m);
    return loss_of(m, tokens, targets, MASK_REUSE);
}

/* Along a direction as long, in each element, as the weights are on average. */
static void check_weight(model *m, const weight_info *info, const uint8_t *tokens,
                         const uint8_t *targets, random_source *source, const char *name)
{
    double *weights = read_numbers(m, m->weights.all, info->offset, info->count);
    double *gradient = read_numbers(m, m->gradients.all, info->offset, info->count);
    double *direction = calloc((size_t)info->count * 3, sizeof *direction);
    ck_assert_ptr_nonnull(direction);
    double *up = direction + info->count, *down = up + info->count;
    double squares = 0, expected = 0;
    for (int64_t i = 0; i < info->count; i++)
        squares += weights[i] * weights[i];
    for (int64_t i = 0; i < info->count; i++)
        direction[i] = sqrt(squares / (double)info->count) * random_normal(source);
    double above = loss_beside(m, info, weights, direction, epsilon(), up, tokens, targets);
    double below = loss_beside(m, info, weights, direction, -epsilon(), down, tokens, targets);
    for (int64_t i = 0; i < info->count; i++)
        expected += (up[i] - down[i]) / (2 * epsilon()) * gradient[i];
    loss_beside(m, info, weights, direction, 0, up, tokens, targets);
    free(direction);
    free(gradient);
    free(weights);

    double measured = (above - below) / (2 * epsilon());
    ck_assert_msg(fabs(expected) > 1e-7, "%s: %s has no gradient to check", name, info->name);
    ck_assert_msg(fabs(measured - expected) <= tolerance(expected),
                  "%s: %s: backward says %.12g, differences say %.12g", name, info->name, expected,
                  measured);
}

START_TEST(backward_agrees_with_differences)
{
    const setting *which = &settings[_i];
    uint8_t tokens[TOKENS], targets[TOKENS];
    random_source source = {5};
    model *m = make_model(which, false);
    make_text(tokens, targets);
    loss_of(m, tokens, targets, MASK_BUILD);
    add_backward(m, 1);
    for (int64_t n = 0; n < m->n_infos; n++)
        check_weight(m, &m->infos[n], tokens, targets, &source, which->name);
    drop_model(m);
}
END_TEST

START_TEST(gradients_of_batches_add_up)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    model *m = make_model(&settings[2], false);
    make_text(tokens, targets);
    loss_of(m, tokens, targets, MASK_BUILD);
    add_backward(m, 1);
    double *once = read_numbers(m, m->gradients.all, 0, m->n_weights);

    model_zero_gradients(m);
    for (int n = 0; n < 2; n++) {
        loss_of(m, tokens, targets, MASK_BUILD);
        add_backward(m, 0.5);
    }
    double *twice = read_numbers(m, m->gradients.all, 0, m->n_weights);
    double exact = test_on_cuda() ? 1e-5 : 1e-12;
    for (int64_t i = 0; i < m->n_weights; i++)
        ck_assert_msg(fabs(twice[i] - once[i]) <= 1e-3 * exact + exact * fabs(once[i]),
                      "weight %" PRId64 ": %g and %g", i, twice[i], once[i]);
    free(once);
    free(twice);
    drop_model(m);
}
END_TEST

/* What is computed anew for the backward is what the forward had: no bit of a gradient changes. */
START_TEST(checkpointed_layers_change_nothing)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    double *gradients[2];
    int64_t n_weights = 0, memory[2];
    make_text(tokens, targets);
    for (int checkpointed = 0; checkpointed < 2; checkpointed++) {
        model *m = make_model(&settings[_i], checkpointed);
        loss_of(m, tokens, targets, MASK_BUILD);
        add_backward(m, 1);
        n_weights = m->n_weights;
        memory[checkpointed] = m->on->allocated;
        gradients[checkpointed] = read_numbers(m, m->gradients.all, 0, n_weights);
        drop_model(m);
    }
    ck_assert_mem_eq(gradients[0], gradients[1], (size_t)n_weights * sizeof *gradients[0]);
    ck_assert_int_lt(memory[1], memory[0]);
    free(gradients[0]);
    free(gradients[1]);
}
END_TEST

/* An untrained model knows nothing: its loss is close to that of guessing among 256 bytes. */
START_TEST(first_loss_is_that_of_guessing)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    model *m = make_model(&settings[0], false);
    make_text(tokens, targets);
    double loss = loss_of(m, tokens, targets, MASK_BUILD);
    ck_assert_double_eq_tol(loss, log(256), 0.1);
    drop_model(m);
}
END_TEST

/* Byte t must not see byte t + 1: change the last token, and no loss but the last may change. */
START_TEST(no_token_sees_the_future)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    model *m = make_model(&settings[_i], false);
    make_text(tokens, targets);
    loss_of(m, tokens, targets, MASK_BUILD);
    double *before = read_numbers(m, m->losses, 0, CONTEXT);
    tokens[CONTEXT - 1] ^= 0x55;
    loss_of(m, tokens, targets, MASK_REUSE);
    double *after = read_numbers(m, m->losses, 0, CONTEXT);
    for (int n = 0; n < CONTEXT - 1; n++)
        ck_assert_double_eq(after[n], before[n]);
    ck_assert_double_ne(after[CONTEXT - 1], before[CONTEXT - 1]);
    free(before);
    free(after);
    drop_model(m);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("demo: model gradient");
    TCase *tests = tcase_create("model");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, backward_agrees_with_differences, 0, N_SETTINGS);
    tcase_add_test(tests, gradients_of_batches_add_up);
    tcase_add_loop_test(tests, checkpointed_layers_change_nothing, 0, N_SETTINGS);
    tcase_add_test(tests, first_loss_is_that_of_guessing);
    tcase_add_loop_test(tests, no_token_sees_the_future, 0, N_SETTINGS);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
