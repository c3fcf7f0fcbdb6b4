#include "train.h"

#include "adamw.h"
#include "interrupt.h"
#include "whole_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Beginning and end */

/* The file that weights come from, and through it the model's dimensions. */
static bool open_source(options *o, safetensors **file, failure *why)
{
    const char *path = o->resume ? o->resume : o->from;
    model_shape known = {0};
    if (path && !checkpoint_open(file, path, &known, why))
        return false;
    return options_complete_shape(o, path ? &known : NULL, path, why);
}

static bool check_places(const options *o, failure *why)
{
    if (o->steps > 0 && !whole_file_check(o->checkpoint, why))
        return false;
    if (o->mask_png && !whole_file_check(o->mask_png, why))
        return false;
    if ((o->weights && !whole_file_check(o->weights, why)) ||
        (o->losses && !whole_file_check(o->losses, why)))
        return false;
    if (o->mask_png && (o->mask_layer >= o->shape.layers || o->mask_head >= o->shape.heads))
        return fail(why,
                    "--mask-layer %" PRId64 " --mask-head %" PRId64 ": expected less than %" PRId64
                    " layers and %" PRId64 " heads",
                    o->mask_layer, o->mask_head, o->shape.layers, o->shape.heads);
    return true;
}

/* Will the end have what its sample and its picture are made from? */
static bool check_ending(const options *o, const text_data *data, failure *why)
{
    bool held_out = data->train_size < data->size;
    int64_t prompt = o->prompt ? (int64_t)strlen(o->prompt) : o->shape.context / 2;
    if (o->mask_png && !held_out)
        return fail(why, "--mask-png draws a mask of the evaluation: expected text held out");
    if (o->sample > 0 && !o->prompt && !held_out)
        return fail(why, "--sample with no text held out: expected --prompt");
    if (o->sample > 0 && (prompt == 0 || prompt + o->sample > o->shape.context))
        return fail(why,
                    "--sample %" PRId64 " after a prompt of %" PRId64
                    ": expected a prompt, and both to fit in a context of %" PRId64,
                    o->sample, prompt, o->shape.context);
    return true;
}

static bool make_room(training *self, failure *why)
{
    size_t N = (size_t)(self->model->shape.batch * self->model->shape.context);
    self->tokens = calloc(N, 1);
    self->targets = calloc(N, 1);
    return (self->tokens && self->targets) || fail(why, "out of memory for a batch");
}

static bool fill_model(training *self, const safetensors *file, failure *why)
{
    const options *o = self->options;
    self->state.source.state = (uint64_t)o->seed;
    self->state.text_checksum = self->data.checksum;
    if (!file)
        return model_initialize(self->model, (uint64_t)o->seed, why);
    return checkpoint_load_weights(file, self->model, why) &&
           (!o->resume || checkpoint_load_state(file, self->model, &self->state, why));
}

bool training_open(training *self, options *o, failure *why)
{
    *self = (training){.options = o, .held_out_loss = NAN, .density = NAN};
    if (o->steps == 0)
        o->shape.checkpoint_layers = true; /* there will be no backward */
    safetensors *file = NULL;
    bool done = open_source(o, &file, why) && check_places(o, why) &&
                data_load(&self->data, o->data, o->held_out, why) &&
                data_check(&self->data, o->data, o->shape.batch, o->shape.context, why) &&
                check_ending(o, &self->data, why) &&
                backend_open(&self->on, o->backend, o->dtype, why) &&
                model_create(&self->model, self->on, &o->shape, &o->attention, why) &&
                make_room(self, why) && fill_model(self, file, why);
    safetensors_free(file);
    return done && report_open(&self->report, o->log, self->state.step, o->steps,
                               o->shape.batch * o->shape.context * o->accumulate, why);
}

bool training_close(training *self, bool good, failure *why)
{
    good = report_close(&self->report, good, why);
    free(self->tokens);
    free(self->targets);
    model_destroy(self->model);
    backend_close(self->on);
    data_free(&self->data);
    return good;
}

/* Evaluation */

static bool mean_density(training *self, failure *why)
{
    double sum = 0;
    for (int64_t l = 0; l < self->model->shape.layers; l++) {
        double density;
        if (!attention_density(self->model->attention, l, &density, why))
            return false;
        sum += density;
    }
    self->density = sum / (double)self->model->shape.layers;
    return true;
}

/* Adds the losses of the batch that was just evaluated. */
static bool write_losses(training *self, FILE *out, failure *why)
{
    model *m = self->model;
    if (!model_read_losses(m, why))
        return false;
    for (int64_t n = 0; n < m->shape.batch * m->shape.context; n++)
        fprintf(out, "%.4f\n", number_get(m->on, m->host_losses, n));
    return true;
}

/* losses: where to write those of the single bytes, or NULL. */
static bool evaluate_into(training *self, FILE *losses, failure *why)
{
    const model_shape *s = &self->model->shape;
    int64_t limit = self->options->evaluate_batches;
    int64_t batches = data_held_out_batches(&self->data, s->batch, s->context);
    double sum = 0;
    self->held_out_loss = NAN;
    if (limit > 0 && limit < batches)
        batches = limit;
    for (int64_t n = 0; n < batches; n++) {
        double loss;
        data_held_out_batch(&self->data, n, s->batch, s->context, self->tokens, self->targets);
        if (!model_forward(self->model, self->tokens, self->targets, MASK_EVALUATE, why) ||
            !model_loss(self->model, &loss, why))
            return false;
        if (interrupt_signal())
            return true;
        if (!isfinite(loss))
            return fail(why, "the loss on the held-out text is not finite: expected sound weights");
        sum += loss;
        if (losses && !write_losses(self, losses, why))
            return false;
    }
    if (batches == 0)
        return true;
    self->held_out_loss = sum / (double)batches;
    return mean_density(self, why);
}

/* The mean loss over the held-out text; NAN when a signal cuts it short. */
static bool evaluate(training *self, failure *why)
{
    const char *path = self->options->losses;
    whole_file file;
    if (!path)
        return evaluate_into(self, NULL, why);
    if (!whole_file_open(&file, path, why))
        return false;
    bool good = evaluate_into(self, file.stream, why);
    bool whole = good && !interrupt_signal();
    return whole_file_close(&file, whole, why) || (good && !whole);
}

/* Training */

/* One step: the gradients of all its batches, clipped, and AdamW. Fills in the row. */
static bool make_step(training *self, report_row *row, failure *why)
{
    const options *o = self->options;
    model *m = self->model;
    int64_t number = self->state.step;
    mask_use use = number % o->mask_refresh == 0 ? MASK_BUILD : MASK_REUSE;
    double factor = 1 / (double)o->accumulate;
    row->loss = 0;
    model_zero_gradients(m);
    for (int64_t n = 0; n < o->accumulate; n++) {
        double loss;
        data_batch(&self->data, &self->state.source, m->shape.batch, m->shape.context, self->tokens,
                   self->targets);
        if (!model_forward(m, self->tokens, self->targets, use, why) ||
            !model_backward(m, factor, why) || !model_loss(m, &loss, why))
            return false;
        row->loss += factor * loss;
    }

    if (!adamw_clip(m, o->clip, &row->gradient_norm, why))
        return false;
    if (!isfinite(row->loss) || !isfinite(row->gradient_norm))
        return fail(why,
                    "the loss or its gradient is not finite in step %" PRId64
                    ": expected a lower --learning-rate",
                    number + 1);
    row->learning_rate =
        learning_rate_at(number, o->steps, o->warmup, o->learning_rate, o->lowest_rate);
    adamw_update(m, (adamw_step){.beta1 = o->beta1,
                                 .beta2 = o->beta2,
                                 .weight_decay = o->weight_decay,
                                 .learning_rate = row->learning_rate,
                                 .number = number + 1});
    self->state.step++;
    return true;
}

/* The same, and what its time went to. */
static bool step(training *self, report_row *row, failure *why)
{
    const operations *op = self->on->op;
    return op->read_clock(self->on, row->seconds, why) && make_step(self, row, why) &&
           op->read_clock(self->on, row->seconds, why);
}

static bool save(training *self, failure *why)
{
    return checkpoint_save(self->options->checkpoint, self->model, &self->state,
                           self->options->mask_refresh > 1, why);
}

/* Is something due every so many steps? */
static bool due(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

/* A row with no step of its own: what an evaluation before the first step says. */
static bool report_start(training *self, failure *why)
{
    const options *o = self->options;
    if (!evaluate(self, why))
        return false;
    if (!isnan(self->held_out_loss))
        report_say(&self->report, "before training  held-out loss %.4f", self->held_out_loss);
    report_row row = {.step = self->state.step,
                      .loss = NAN,
                      .held_out_loss = self->held_out_loss,
                      .learning_rate = NAN,
                      .gradient_norm = NAN,
                      .density = self->density};
    return o->steps == 0 || report_step(&self->report, &row, why);
}

bool training_run(training *self, failure *why)
{
    const options *o = self->options;
    if (self->state.step == 0 && o->evaluate_every > 0 && o->steps > 0 && !report_start(self, why))
        return false;
    while (self->state.step < o->steps && !interrupt_signal()) {
        report_row row = {.held_out_loss = NAN, .density = NAN};
        if (!step(self, &row, why))
            return false;
        row.peak_bytes = (double)self->on->peak;
        row.step = self->state.step;
        if (row.step == o->steps || due(row.step, o->evaluate_every)) {
            if (!evaluate(self, why))
                return false;
            row.held_out_loss = self->held_out_loss;
            row.density = self->density;
        }
        if (!report_step(&self->report, &row, why))
            return false;
        if (row.step < o->steps && due(row.step, o->checkpoint_every) && !save(self, why))
            return false;
    }
    if (self->report.first_step == self->state.step && !interrupt_signal())
        return evaluate(self, why); /* there was nothing to train */
    return self->report.first_step == self->state.step || save(self, why);
}
