#include "safetensors.h"

#include "whole_file.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LENGTH_BYTES = 8, MAX_HEADER = 100000000 }; /* the format's own limit */

struct safetensors {
    void *file;   /* the bytes, when they are ours */
    json_t *root; /* owns all names and strings */
    safetensors_tensor *tensors;
    int64_t n_tensors;
};

/* Reading */

static int64_t dtype_bytes(const char *dtype)
{
    static const struct {
        const char *name;
        int64_t bytes;
    } known[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                 {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U64", 8},  {"U32", 4},
                 {"U16", 2}, {"U8", 1},  {"BOOL", 1}};
    for (size_t n = 0; n < sizeof known / sizeof *known; n++)
        if (strcmp(dtype, known[n].name) == 0)
            return known[n].bytes;
    return 0;
}

static uint64_t read_length(const uint8_t *bytes)
{
    uint64_t length = 0;
    for (int n = LENGTH_BYTES - 1; n >= 0; n--)
        length = length << 8 | bytes[n];
    return length;
}

/* Fills in shape, and bytes as the product of shape and element size. */
static bool parse_shape(safetensors_tensor *tensor, const json_t *shape, int64_t element)
{
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMS)
        return false;
    tensor->ndim = (int64_t)json_array_size(shape);
    tensor->bytes = element;
    for (int64_t d = 0; d < tensor->ndim; d++) {
        const json_t *length = json_array_get(shape, (size_t)d);
        tensor->shape[d] = json_integer_value(length);
        if (!json_is_integer(length) || tensor->shape[d] < 0 ||
            __builtin_mul_overflow(tensor->bytes, tensor->shape[d], &tensor->bytes))
            return false;
    }
    return true;
}

static bool parse_tensor(safetensors_tensor *tensor, const char *name, const json_t *entry,
                         const uint8_t *data, int64_t data_size, const char *label, failure *why)
{
    tensor->name = name;
    tensor->dtype = json_string_value(json_object_get(entry, "dtype"));
    int64_t element = tensor->dtype ? dtype_bytes(tensor->dtype) : 0;
    if (element == 0)
        return fail(why, "%s: tensor %.64s has no dtype that is known", label, name);
    if (!parse_shape(tensor, json_object_get(entry, "shape"), element))
        return fail(why, "%s: the shape of tensor %.64s is not a list of up to %d lengths", label,
                    name, SAFETENSORS_MAX_DIMS);

    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        begin < 0 || end < begin || end > data_size)
        return fail(why, "%s: the data_offsets of tensor %.64s do not lie in the file", label,
                    name);
    if (end - begin != tensor->bytes)
        return fail(why,
                    "%s: tensor %.64s has %" PRId64 " bytes, its shape and dtype need %" PRId64,
                    label, name, end - begin, tensor->bytes);
    tensor->data = data + begin;
    return true;
}

static int by_place(const void *left, const void *right)
{
    const safetensors_tensor *a = left, *b = right;
    const char *a_data = a->data, *b_data = b->data;
    if (a_data != b_data)
        return a_data < b_data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* empty ones first */
}

static bool check_no_gaps(safetensors *self, const uint8_t *data, int64_t data_size,
                          const char *label, failure *why)
{
    const uint8_t *next = data;
    if (self->n_tensors > 0)
        qsort(self->tensors, (size_t)self->n_tensors, sizeof *self->tensors, by_place);
    for (int64_t n = 0; n < self->n_tensors; n++) {
        if ((const uint8_t *)self->tensors[n].data != next)
            return fail(why, "%s: tensor %.64s overlaps another or leaves a gap before it", label,
                        self->tensors[n].name);
        next += self->tensors[n].bytes;
    }
    if (next != data + data_size)
        return fail(why, "%s: bytes follow the last tensor", label);
    return true;
}

static bool parse_entries(safetensors *self, const uint8_t *data, int64_t data_size,
                          const char *label, failure *why)
{
    self->tensors = calloc(json_object_size(self->root) + 1, sizeof *self->tensors);
    if (!self->tensors)
        return fail(why, "out of memory");
    const char *name;
    json_t *entry;
    json_object_foreach(self->root, name, entry)
    {
        if (!json_is_object(entry))
            return fail(why, "%s: header entry %.64s is not an object", label, name);
        if (strcmp(name, "__metadata__") == 0)
            continue;
        if (!parse_tensor(&self->tensors[self->n_tensors], name, entry, data, data_size, label,
                          why))
            return false;
        self->n_tensors++;
    }
    return check_no_gaps(self, data, data_size, label, why);
}

bool safetensors_parse(safetensors **self, const void *bytes, size_t size, const char *label,
                       failure *why)
{
    *self = NULL;
    uint64_t length = size >= LENGTH_BYTES ? read_length(bytes) : 0;
    if (size < LENGTH_BYTES || length > size - LENGTH_BYTES || length > MAX_HEADER)
        return fail(why, "%s is not a safetensors file, or is cut short", label);
    safetensors *file = calloc(1, sizeof *file);
    if (!file)
        return fail(why, "out of memory");

    const char *header = (const char *)bytes + LENGTH_BYTES;
    const uint8_t *data = (const uint8_t *)header + length;
    json_error_t error;
    file->root = json_loadb(header, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    bool done = true;
    if (!json_is_object(file->root))
        done = fail(why, "%s: its header is not a JSON object (%s)", label,
                    file->root ? "another value" : error.text);
    int64_t data_size = (int64_t)(size - LENGTH_BYTES - (size_t)length);
    if (!done || !parse_entries(file, data, data_size, label, why))
        return safetensors_free(file), false;
    *self = file;
    return true;
}

static bool read_bytes(const char *path, void **bytes, size_t *size, failure *why)
{
    struct stat status;
    FILE *file = fopen(path, "rb");
    if (!file)
        return fail(why, "%s: %s, expected a checkpoint", path, strerror(errno));
    bool done = fstat(fileno(file), &status) == 0 && S_ISREG(status.st_mode);
    if (!done)
        fail(why, "%s is not a regular file, expected a checkpoint", path);
    if (done) {
        *size = (size_t)status.st_size;
        *bytes = malloc(*size + 1);
        done = *bytes && fread(*bytes, 1, *size, file) == *size;
        if (!done)
            fail(why, "%s: %s", path, *bytes ? "cannot be read to its end" : "out of memory");
    }
    fclose(file);
    return done;
}

bool safetensors_read(safetensors **self, const char *path, failure *why)
{
    void *bytes = NULL;
    size_t size = 0;
    *self = NULL;
    if (!read_bytes(path, &bytes, &size, why) || !safetensors_parse(self, bytes, size, path, why)) {
        free(bytes);
        return false;
    }
    (*self)->file = bytes;
    return true;
}

void safetensors_free(safetensors *self)
{
    if (!self)
        return;
    json_decref(self->root);
    free(self->tensors);
    free(self->file);
    free(self);
}

const safetensors_tensor *safetensors_find(const safetensors *self, const char *name)
{
    for (int64_t n = 0; n < self->n_tensors; n++)
        if (strcmp(self->tensors[n].name, name) == 0)
            return &self->tensors[n];
    return NULL;
}

const char *safetensors_find_note(const safetensors *self, const char *key)
{
    return json_string_value(json_object_get(json_object_get(self->root, "__metadata__"), key));
}

/* Writing */

/* The header as text, padded with spaces so that the tensors start on a multiple of 8; NULL when
 * memory runs out. The caller frees it. */
static char *make_header(const safetensors_note *notes, int64_t n_notes,
                         const safetensors_tensor *tensors, int64_t n_tensors, size_t *length)
{
    json_t *root = json_object(), *metadata = json_object();
    int failed = json_object_set_new(root, "__metadata__", metadata);
    for (int64_t n = 0; n < n_notes; n++)
        failed |= json_object_set_new(metadata, notes[n].key, json_string(notes[n].value));
    json_int_t offset = 0;
    for (int64_t n = 0; n < n_tensors; n++) {
        json_t *shape = json_array();
        for (int64_t d = 0; d < tensors[n].ndim; d++)
            failed |= json_array_append_new(shape, json_integer(tensors[n].shape[d]));
        json_int_t end = offset + tensors[n].bytes;
        failed |= json_object_set_new(root, tensors[n].name,
                                      json_pack("{s:s, s:o, s:[I, I]}", "dtype", tensors[n].dtype,
                                                "shape", shape, "data_offsets", offset, end));
        offset = end;
    }
    char *text = failed ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text)
        return NULL;
    size_t used = strlen(text);
    *length = (used + 7) / 8 * 8;
    char *padded = malloc(*length + 1);
    if (padded)
        snprintf(padded, *length + 1, "%-*s", (int)*length, text);
    free(text);
    return padded;
}

/* False with errno set when the disk takes no more. */
static bool write_all(FILE *file, const char *header, size_t length,
                      const safetensors_tensor *tensors, int64_t n_tensors)
{
    uint8_t length_bytes[LENGTH_BYTES];
    for (int n = 0; n < LENGTH_BYTES; n++)
        length_bytes[n] = (uint8_t)((uint64_t)length >> 8 * n);
    if (fwrite(length_bytes, 1, LENGTH_BYTES, file) != LENGTH_BYTES ||
        fwrite(header, 1, length, file) != length)
        return false;
    for (int64_t n = 0; n < n_tensors; n++) {
        size_t bytes = (size_t)tensors[n].bytes;
        if (fwrite(tensors[n].data, 1, bytes, file) != bytes)
            return false;
    }
    return true;
}

bool safetensors_write(const char *path, const safetensors_note *notes, int64_t n_notes,
                       const safetensors_tensor *tensors, int64_t n_tensors, failure *why)
{
    size_t length = 0;
    char *header = make_header(notes, n_notes, tensors, n_tensors, &length);
    if (!header)
        return fail(why, "out of memory while writing %s", path);
    whole_file file;
    bool done = whole_file_open(&file, path, why);
    if (done) {
        bool good = write_all(file.stream, header, length, tensors, n_tensors);
        if (!good)
            fail_to_write(why, path, errno);
        done = whole_file_close(&file, good, why);
    }
    free(header);
    return done;
}
