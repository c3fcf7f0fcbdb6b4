/* Lets the model go on with a text, one byte at a time. */
#ifndef DEMO_SAMPLE_H
#define DEMO_SAMPLE_H

#include "failure.h"
#include "model.h"
#include "random.h"

#include <stdint.h>
#include <stdio.h>

/* Reads prompt (n_prompt >= 1) and writes n_new bytes to out; all of them fit in the context.
 * temperature 0 always takes the likeliest byte. */
bool sample_text(model *m, const uint8_t *prompt, int64_t n_prompt, int64_t n_new,
                 double temperature, random_source source, FILE *out, failure *why);

#endif
