/* The command line of hpa-finetune. options.c holds the table that parses, checks, explains and
 * gives the default of every option. */
#ifndef DEMO_OPTIONS_H
#define DEMO_OPTIONS_H

#include "attention.h"
#include "backend.h"
#include "failure.h"
#include "model.h"

#include <stdint.h>
#include <stdio.h>

enum { MAX_OPTIONS = 96 };

typedef struct options {
    /* the text */
    const char *data;
    double held_out;
    /* the model; 0: as in the checkpoint, or else the default */
    model_shape shape;
    /* attention */
    attention_settings attention;
    int preset; /* 0: none; else an hpa_preset, already applied to `attention` */
    int64_t mask_refresh;
    /* where and in what numbers */
    backend_choice backend;
    dtype_choice dtype;
    /* training */
    int64_t steps, accumulate, warmup, seed, threads;
    double learning_rate, lowest_rate, weight_decay, beta1, beta2, clip;
    /* evaluation, files and samples */
    int64_t evaluate_every, evaluate_batches, checkpoint_every;
    const char *from, *resume, *checkpoint, *log, *results, *label, *mask_png, *weights, *losses;
    int64_t mask_layer, mask_head;
    int64_t sample;
    const char *prompt;
    double temperature;
    /* the arguments as they were written, for options_print_command */
    const char *given[MAX_OPTIONS];
} options;

typedef enum parse_result { PARSE_RUN, PARSE_HELP, PARSE_FAILED } parse_result;

parse_result options_parse(options *self, int argc, char **argv, failure *why);
void options_help(FILE *out);

/* Prints, ready for a shell, the command that goes on from a checkpoint of this run. */
void options_print_command(const options *self, const char *program, FILE *out);

/* Fills the dimensions that were not given with those of `known` (a checkpoint's shape), and
 * refuses those that contradict it; with known NULL, with the defaults. */
bool options_complete_shape(options *self, const model_shape *known, const char *path,
                            failure *why);

const char *attention_kind_name(attention_kind kind);

#endif
