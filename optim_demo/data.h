/* The text: bytes of a plain or gzipped file, the last part of it held out for evaluation. */
#ifndef DEMO_DATA_H
#define DEMO_DATA_H

#include "failure.h"
#include "random.h"

#include <stdint.h>

typedef struct text_data {
    uint8_t *text;
    int64_t size;
    int64_t train_size; /* text[0 ... train_size - 1] is for training, the rest is held out */
    uint32_t checksum;  /* CRC-32 of the text, by which a checkpoint knows it again */
} text_data;

/* held_out: the share of the text that training never sees. */
bool data_load(text_data *data, const char *path, double held_out, failure *why);
void data_free(text_data *data);

/* Is there a window to train on, and (unless held_out is 0) a batch of windows to evaluate? */
bool data_check(const text_data *data, const char *path, int64_t batch, int64_t context,
                failure *why);

/* B windows of T bytes from random places of the training text, and for each byte its successor:
 * tokens and targets (B, T). */
void data_batch(const text_data *data, random_source *source, int64_t B, int64_t T, uint8_t *tokens,
                uint8_t *targets);

/* The held-out text as batches of B consecutive windows of T bytes; a rest is left out. */
int64_t data_held_out_batches(const text_data *data, int64_t B, int64_t T);
void data_held_out_batch(const text_data *data, int64_t batch, int64_t B, int64_t T,
                         uint8_t *tokens, uint8_t *targets);

#endif
