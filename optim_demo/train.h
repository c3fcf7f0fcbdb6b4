/* The training loop, and evaluation on the held-out text. */
#ifndef DEMO_TRAIN_H
#define DEMO_TRAIN_H

#include "backend.h"
#include "checkpoint.h"
#include "data.h"
#include "failure.h"
#include "model.h"
#include "options.h"
#include "report.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct training {
    const options *options;
    text_data data;
    backend *on;
    model *model;
    training_state state;
    report report;
    uint8_t *tokens, *targets; /* (B, T) */
    double held_out_loss;      /* of the last evaluation; NAN before it, and with --held-out 0 */
    double density;            /* of the masks of the last evaluation, mean of the layers */
} training;

/* Reads the text, makes the model or loads it, and opens the log. training_close comes after it,
 * whether it succeeded or not. */
bool training_open(training *self, options *o, failure *why);
bool training_close(training *self, bool good, failure *why);

/* Trains to the last step and evaluates, or stops early when a signal came, with a checkpoint of
 * the steps done. */
bool training_run(training *self, failure *why);

#endif
