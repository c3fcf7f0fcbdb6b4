/* hpa-finetune: trains a small transformer on a text, with libhpa's attention. --help explains.
 *
 * To read it: model.c is the transformer, forward and backward; attention.c is all that it asks of
 * libhpa; train.c is the loop. backend.h lists the operations that they are made of; layers.c has
 * these for the CPU (memory and clock in cpu.c), layers.cu for a CUDA device (device.c). adamw.c,
 * data.c, checkpoint.c and sample.c are what their names say, and the rest serves the person at the
 * keyboard. */
#include "interrupt.h"
#include "mask_picture.h"
#include "options.h"
#include "sample.h"
#include "train.h"

#include <cblas.h>
#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_BAD = 2, EXIT_SIGNAL = 128 };

static void introduce(const training *t)
{
    const options *o = t->options;
    const model_shape *s = &t->model->shape;
    printf("%s: %.2f MB to train on, %.2f MB held out\n", o->data, (double)t->data.train_size / 1e6,
           (double)(t->data.size - t->data.train_size) / 1e6);
    printf("model: %.2fM weights, %" PRId64 " layers, dim %" PRId64 ", %" PRId64
           " heads of %" PRId64 " on %" PRId64 ", %s attention over %" PRId64 " tokens, %s on %s\n",
           (double)t->model->n_weights / 1e6, s->layers, s->dim, s->heads, s->head_dim, s->kv_heads,
           attention_kind_name(o->attention.kind), s->context, backend_dtype_name(t->on),
           t->on->place);
    if (t->state.step > 0)
        printf("going on from step %" PRId64 " of %s\n", t->state.step, o->resume);
    fflush(stdout);
}

/* Half a context of the held-out text, unless there is a prompt. */
static bool write_sample(training *t, failure *why)
{
    enum { SHOWN = 200 };
    const options *o = t->options;
    bool own = o->prompt != NULL;
    const uint8_t *prompt = own ? (const uint8_t *)o->prompt : t->data.text + t->data.train_size;
    int64_t length = own ? (int64_t)strlen(o->prompt) : t->model->shape.context / 2;
    int64_t shown = length < SHOWN ? length : SHOWN;
    printf("\nprompt, its last %" PRId64 " of %" PRId64 " bytes:\n%.*s\n\nsample:\n", shown, length,
           (int)shown, (const char *)prompt + length - shown);
    return sample_text(t->model, prompt, length, o->sample, o->temperature,
                       (random_source){(uint64_t)o->seed}, stdout, why);
}

static bool draw_mask(training *t, failure *why)
{
    enum { PIXELS = 1024 };
    const options *o = t->options;
    char *drawing = NULL;
    bool done =
        attention_draw_mask(t->model->attention, o->mask_layer, o->mask_head, &drawing, why) &&
        mask_picture_write(o->mask_png, drawing, PIXELS, why);
    free(drawing);
    return done;
}

/* What the end of a whole run says and writes. */
static bool conclude(training *t, failure *why)
{
    const options *o = t->options;
    double speed = report_speed(&t->report, t->state.step);
    if (!isnan(t->held_out_loss))
        report_say(&t->report, "held-out loss %.4f nats a byte, %.1f%% of the pairs attended to",
                   t->held_out_loss, 100 * t->density);
    if (speed > 0)
        report_say(&t->report, "%.0f tokens a second in training, checkpoint in %s", speed,
                   o->checkpoint);
    if (speed > 0)
        report_costs(&t->report, (double)t->on->peak);
    if (o->weights && !checkpoint_export(o->weights, t->model, why))
        return false;
    result_row result = {o->label,
                         attention_kind_name(o->attention.kind),
                         o->shape.context,
                         t->state.step,
                         t->held_out_loss,
                         t->density,
                         speed > 0 ? speed : NAN};
    if (o->results && !report_result(o->results, &result, why))
        return false;
    if (o->mask_png && !draw_mask(t, why))
        return false;
    return o->sample == 0 || write_sample(t, why);
}

/* What Ctrl-C says. */
static void say_how_to_go_on(training *t, const char *program)
{
    if (t->state.step == t->report.first_step) {
        report_say(&t->report, "interrupted before the first step: there is nothing to save");
        return;
    }
    report_say(&t->report,
               "interrupted after step %" PRId64 " of %" PRId64 ", saved in %s. To go on:",
               t->state.step, t->options->steps, t->options->checkpoint);
    options_print_command(t->options, program, stdout);
}

static bool run(options *o, const char *program, failure *why)
{
    training t;
    bool good = training_open(&t, o, why);
    if (good) {
        introduce(&t);
        good = training_run(&t, why) && (interrupt_signal() || conclude(&t, why));
        if (good && interrupt_signal())
            say_how_to_go_on(&t, program);
    }
    return training_close(&t, good, why);
}

int main(int argc, char **argv)
{
    failure why;
    options o;
    switch (options_parse(&o, argc, argv, &why)) {
    case PARSE_HELP:
        options_help(stdout);
        break;
    case PARSE_RUN:
        if (o.threads > 0)
            omp_set_num_threads((int)o.threads);
        openblas_set_num_threads(1); /* layers.c shares out the work */
        interrupt_catch();
        if (run(&o, argv[0], &why))
            break;
        /* fall through */
    case PARSE_FAILED:
        fprintf(stderr, "hpa-finetune: %s\n", why.text);
        return EXIT_BAD;
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("hpa-finetune: cannot write the standard output, expected room for it\n", stderr);
        return EXIT_BAD;
    }
    return interrupt_signal() ? EXIT_SIGNAL + interrupt_signal() : EXIT_SUCCESS;
}
