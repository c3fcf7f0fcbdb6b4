/* What a person sees while it runs, and what stays afterwards: a progress bar on a terminal and
 * plain lines elsewhere, the CSV log with a line a step, and the line of results. */
#ifndef DEMO_REPORT_H
#define DEMO_REPORT_H

#include "backend.h"
#include "failure.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct report {
    FILE *log;
    const char *log_path;
    bool terminal, bar_shown;
    int64_t first_step, steps, tokens_a_step;
    int64_t next_line;        /* the step of the next plain line */
    double training_seconds;  /* without evaluations and checkpoints */
    double seconds[N_PHASES]; /* what they went to */
} report;

/* What is known after a step; NAN where there is nothing new. */
typedef struct report_row {
    int64_t step; /* steps done */
    double loss, held_out_loss, learning_rate, gradient_norm, density;
    double seconds[N_PHASES]; /* that the step took, without what came after it */
    double peak_bytes;        /* of memory, so far */
} report_row;

/* A run that starts at step 0 begins the log anew; a resumed one adds to it; one without steps
 * leaves it alone. */
bool report_open(report *self, const char *log_path, int64_t first_step, int64_t steps,
                 int64_t tokens_a_step, failure *why);
bool report_step(report *self, const report_row *row, failure *why);
/* A line of text, which does not run into the progress bar. */
void report_say(report *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool report_close(report *self, bool good, failure *why);

/* Tokens a second while training; 0 before the first step. */
double report_speed(const report *self, int64_t step);
/* Says what the time of the training went to, and how much memory it took. */
void report_costs(report *self, double peak_bytes);

/* Adds one line to a CSV file of results, and the heading to a new one. */
typedef struct result_row {
    const char *label, *attention;
    int64_t context, steps;
    double held_out_loss, density, tokens_per_second;
} result_row;

bool report_result(const char *path, const result_row *row, failure *why);

#endif
