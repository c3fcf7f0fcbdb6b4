/* The gradient of the whole model against finite differences, in double precision: every weight
 * array along a random direction, with each kind of attention, and with the masks held still while
 * the weights move. */
#include "model.h"
#include "random.h"

#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { BATCH = 2, CONTEXT = 72, TOKENS = BATCH * CONTEXT };

typedef struct setting {
    const char *name;
    attention_settings attention;
    int64_t heads, kv_heads;
} setting;

#define KNOBS \
    .block_q = 16, .block_k = 16, .beam = 1, .rep_tokens = 2, .leaf_tokens = 4, .query_stride = 1

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

static model *make_model(const setting *which)
{
    model_shape shape = {.batch = BATCH,
                         .context = CONTEXT,
                         .layers = 2,
                         .dim = 24,
                         .heads = which->heads,
                         .kv_heads = which->kv_heads,
                         .head_dim = 8,
                         .hidden = 40,
                         .rope_base = 1000};
    failure why;
    model *m;
    ck_assert_msg(model_create(&m, &shape, &which->attention, &why), "%s", why.text);
    model_initialize(m, 3);
    return m;
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
    ck_assert_msg(model_forward(m, tokens, targets, use, &loss, &why), "%s", why.text);
    return loss;
}

static void add_backward(model *m, const uint8_t *tokens, const uint8_t *targets, double factor)
{
    failure why;
    ck_assert_msg(model_backward(m, tokens, targets, factor, &why), "%s", why.text);
}

/* weights += distance * direction */
static void move(real *weights, const double *direction, int64_t n, double distance)
{
    for (int64_t i = 0; i < n; i++)
        weights[i] += distance * direction[i];
}

/* Along a direction as long, in each element, as the weights are on average. */
static void check_weight(model *m, const weight_info *info, const uint8_t *tokens,
                         const uint8_t *targets, random_source *source, const char *name)
{
    const double epsilon = 1e-5;
    real *weights = m->weights.all + info->offset;
    const real *gradient = m->gradients.all + info->offset;
    double *direction = malloc((size_t)info->count * sizeof *direction);
    ck_assert_ptr_nonnull(direction);
    double squares = 0, expected = 0;
    for (int64_t i = 0; i < info->count; i++)
        squares += weights[i] * weights[i];
    for (int64_t i = 0; i < info->count; i++) {
        direction[i] = sqrt(squares / (double)info->count) * random_normal(source);
        expected += direction[i] * gradient[i];
    }
    move(weights, direction, info->count, epsilon);
    double above = loss_of(m, tokens, targets, MASK_REUSE);
    move(weights, direction, info->count, -2 * epsilon);
    double below = loss_of(m, tokens, targets, MASK_REUSE);
    move(weights, direction, info->count, epsilon);
    free(direction);

    double measured = (above - below) / (2 * epsilon);
    double error = fabs(measured - expected);
    ck_assert_msg(fabs(expected) > 1e-7, "%s: %s has no gradient to check", name, info->name);
    ck_assert_msg(error <= 1e-9 + 1e-5 * fabs(expected),
                  "%s: %s: backward says %.12g, differences say %.12g", name, info->name, expected,
                  measured);
}

START_TEST(backward_agrees_with_differences)
{
    const setting *which = &settings[_i];
    uint8_t tokens[TOKENS], targets[TOKENS];
    random_source source = {5};
    model *m = make_model(which);
    make_text(tokens, targets);
    loss_of(m, tokens, targets, MASK_BUILD);
    add_backward(m, tokens, targets, 1);
    for (int64_t n = 0; n < m->n_infos; n++)
        check_weight(m, &m->infos[n], tokens, targets, &source, which->name);
    model_destroy(m);
}
END_TEST

START_TEST(gradients_of_batches_add_up)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    model *m = make_model(&settings[2]);
    make_text(tokens, targets);
    loss_of(m, tokens, targets, MASK_BUILD);
    add_backward(m, tokens, targets, 1);
    real *once = malloc((size_t)m->n_weights * sizeof *once);
    ck_assert_ptr_nonnull(once);
    for (int64_t i = 0; i < m->n_weights; i++)
        once[i] = m->gradients.all[i];

    model_zero_gradients(m);
    for (int n = 0; n < 2; n++) {
        loss_of(m, tokens, targets, MASK_BUILD);
        add_backward(m, tokens, targets, 0.5);
    }
    for (int64_t i = 0; i < m->n_weights; i++) {
        double error = fabs(m->gradients.all[i] - once[i]);
        ck_assert_msg(error <= 1e-15 + 1e-12 * fabs(once[i]), "weight %" PRId64 ": %g and %g", i,
                      m->gradients.all[i], once[i]);
    }
    free(once);
    model_destroy(m);
}
END_TEST

/* An untrained model knows nothing: its loss is close to that of guessing among 256 bytes. */
START_TEST(first_loss_is_that_of_guessing)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    model *m = make_model(&settings[0]);
    make_text(tokens, targets);
    double loss = loss_of(m, tokens, targets, MASK_BUILD);
    ck_assert_double_eq_tol(loss, log(256), 0.1);
    model_destroy(m);
}
END_TEST

/* Byte t must not see byte t + 1: change the last token, and no loss but the last may change. */
START_TEST(no_token_sees_the_future)
{
    uint8_t tokens[TOKENS], targets[TOKENS];
    real before[CONTEXT];
    model *m = make_model(&settings[_i]);
    make_text(tokens, targets);
    loss_of(m, tokens, targets, MASK_BUILD);
    for (int n = 0; n < CONTEXT; n++)
        before[n] = m->losses[n];
    tokens[CONTEXT - 1] ^= 0x55;
    loss_of(m, tokens, targets, MASK_REUSE);
    for (int n = 0; n < CONTEXT - 1; n++)
        ck_assert_double_eq(m->losses[n], before[n]);
    ck_assert_double_ne(m->losses[CONTEXT - 1], before[CONTEXT - 1]);
    model_destroy(m);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("demo: model gradient");
    TCase *tests = tcase_create("model");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, backward_agrees_with_differences, 0, N_SETTINGS);
    tcase_add_test(tests, gradients_of_batches_add_up);
    tcase_add_test(tests, first_loss_is_that_of_guessing);
    tcase_add_loop_test(tests, no_token_sees_the_future, 0, N_SETTINGS);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
