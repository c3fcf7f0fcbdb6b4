/* Reads and writes files in the safetensors format: 8 bytes with the length of a JSON header, the
 * header, and the tensors' bytes, which the header names and places.
 * https://huggingface.co/docs/safetensors */
#ifndef DEMO_SAFETENSORS_H
#define DEMO_SAFETENSORS_H

#include "failure.h"

#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_MAX_DIMS = 8 };

typedef struct safetensors_tensor {
    const char *name;
    const char *dtype; /* "F32", "U8", ... */
    int64_t ndim;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    int64_t bytes;
    const void *data;
} safetensors_tensor;

typedef struct safetensors_note {
    const char *key, *value;
} safetensors_note;

/* Whatever goes wrong, path holds the old file or the whole new one. */
bool safetensors_write(const char *path, const safetensors_note *notes, int64_t n_notes,
                       const safetensors_tensor *tensors, int64_t n_tensors, failure *why);

typedef struct safetensors safetensors;

/* Reads a file and trusts no byte of it: every name is given once, every size fits its tensor, and
 * the tensors fill the file with no gap and no overlap. */
bool safetensors_read(safetensors **self, const char *path, failure *why);
/* The same from memory, which must outlive the result. label names it in messages. */
bool safetensors_parse(safetensors **self, const void *bytes, size_t size, const char *label,
                       failure *why);
void safetensors_free(safetensors *self); /* NULL is a no-op */

/* NULL when there is none of this name. */
const safetensors_tensor *safetensors_find(const safetensors *self, const char *name);
const char *safetensors_find_note(const safetensors *self, const char *key);

#endif
