/* What a checkpoint holds: the weights in f32 (f64 of a run in f64), and with them everything that
 * the next step depends on (AdamW's running means, the step, the random source that picks the text,
 * and each layer's mask where it is reused). A resumed run makes the bits that an unbroken one
 * would have made. */
#ifndef DEMO_CHECKPOINT_H
#define DEMO_CHECKPOINT_H

#include "failure.h"
#include "model.h"
#include "random.h"
#include "safetensors.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct training_state {
    int64_t step; /* steps done */
    random_source source;
    uint32_t text_checksum;
} training_state;

bool checkpoint_save(const char *path, const model *m, const training_state *state, bool with_masks,
                     failure *why);
/* The weights alone, in bf16: a quarter of the bytes, and enough for --from. */
bool checkpoint_export(const char *path, const model *m, failure *why);

/* Opens a file and reads the dimensions of its model; batch and context are left alone. */
bool checkpoint_open(safetensors **file, const char *path, model_shape *shape, failure *why);
/* Weights may be f32, f64 or bf16 in the file, whatever the model computes in. */
bool checkpoint_load_weights(const safetensors *file, model *m, failure *why);
/* state->text_checksum is that of the text at hand, and must be that of the checkpoint. */
bool checkpoint_load_state(const safetensors *file, model *m, training_state *state, failure *why);

#endif
