#include "checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const format = "hpa-finetune 1";

/* The numbers among the notes. rope_base is a hexadecimal float, which loses no bit. */
enum { LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, STEP, RANDOM, TEXT, N_NUMBERS };
static const char *const number_names[N_NUMBERS] = {
    "layers", "dim", "heads", "kv_heads", "head_dim", "hidden", "step", "random", "text_crc32"};

/* Saving */

/* The three families of tensors that follow the weights' shapes. */
enum { N_FAMILIES = 3 };
static const char *const family_prefix[N_FAMILIES] = {"", "optimizer.first.", "optimizer.second."};

typedef char tensor_name[96];

static safetensors_tensor describe_weight(const weight_info *info, const real *array, int family,
                                          tensor_name name)
{
    snprintf(name, sizeof(tensor_name), "%s%s", family_prefix[family], info->name);
    return (safetensors_tensor){.name = name,
                                .dtype = REAL_NAME,
                                .ndim = info->columns ? 2 : 1,
                                .shape = {info->rows, info->columns},
                                .bytes = info->count * (int64_t)sizeof(real),
                                .data = array + info->offset};
}

static int64_t add_masks(const model *m, safetensors_tensor *tensors, tensor_name *names)
{
    int64_t n = 0;
    for (int64_t l = 0; l < m->shape.layers; l++) {
        int64_t bytes;
        const void *mask = attention_mask(m->attention, l, &bytes);
        if (!mask)
            continue;
        snprintf(names[n], sizeof *names, "mask.%" PRId64, l);
        tensors[n] = (safetensors_tensor){names[n], "U8", 1, {bytes}, bytes, mask};
        n++;
    }
    return n;
}

bool checkpoint_save(const char *path, const model *m, const training_state *state, bool with_masks,
                     failure *why)
{
    const model_shape *s = &m->shape;
    const uint64_t numbers[N_NUMBERS] = {
        (uint64_t)s->layers,   (uint64_t)s->dim,      (uint64_t)s->heads,
        (uint64_t)s->kv_heads, (uint64_t)s->head_dim, (uint64_t)s->hidden,
        (uint64_t)state->step, state->source.state,   state->text_checksum};
    char texts[N_NUMBERS][32], rope_base[48];
    safetensors_note notes[N_NUMBERS + 2] = {{"format", format}, {"rope_base", rope_base}};
    snprintf(rope_base, sizeof rope_base, "%a", s->rope_base);
    for (int n = 0; n < N_NUMBERS; n++) {
        snprintf(texts[n], sizeof *texts, "%" PRIu64, numbers[n]);
        notes[n + 2] = (safetensors_note){number_names[n], texts[n]};
    }

    size_t room = (size_t)(N_FAMILIES * m->n_infos + s->layers);
    safetensors_tensor *tensors = calloc(room, sizeof *tensors);
    tensor_name *names = calloc(room, sizeof *names);
    bool done = tensors && names;
    if (!done) {
        fail(why, "out of memory while saving %s", path);
    } else {
        const real *arrays[N_FAMILIES] = {m->weights.all, state->optimizer.first,
                                          state->optimizer.second};
        int64_t n = 0;
        for (int family = 0; family < N_FAMILIES; family++)
            for (int64_t i = 0; i < m->n_infos; i++, n++)
                tensors[n] = describe_weight(&m->infos[i], arrays[family], family, names[n]);
        if (with_masks)
            n += add_masks(m, tensors + n, names + n);
        done = safetensors_write(path, notes, N_NUMBERS + 2, tensors, n, why);
    }
    free(names);
    free(tensors);
    return done;
}

/* Loading */

static bool read_number(const safetensors *file, int which, uint64_t *value, const char *path,
                        failure *why)
{
    const char *text = safetensors_find_note(file, number_names[which]);
    char *end = NULL;
    errno = 0;
    *value = text && *text >= '0' && *text <= '9' ? strtoull(text, &end, 10) : 0;
    if (!end || *end || errno)
        return fail(why, "%s: its note %s is %.32s, expected a whole number", path,
                    number_names[which], text ? text : "missing");
    return true;
}

static bool read_shape(const safetensors *file, model_shape *shape, const char *path, failure *why)
{
    int64_t *const fields[] = {
        [LAYERS] = &shape->layers,     [DIM] = &shape->dim,           [HEADS] = &shape->heads,
        [KV_HEADS] = &shape->kv_heads, [HEAD_DIM] = &shape->head_dim, [HIDDEN] = &shape->hidden};
    const char *note = safetensors_find_note(file, "format");
    if (!note || strcmp(note, format) != 0)
        return fail(why,
                    "%s is not a checkpoint of this program: its note format is %.32s, "
                    "expected %s",
                    path, note ? note : "missing", format);
    for (int n = LAYERS; n <= HIDDEN; n++) {
        uint64_t number;
        if (!read_number(file, n, &number, path, why))
            return false;
        if (number == 0 || number > INT32_MAX)
            return fail(why, "%s: %s is %" PRIu64 ", which cannot be", path, number_names[n],
                        number);
        *fields[n] = (int64_t)number;
    }
    const char *base = safetensors_find_note(file, "rope_base");
    shape->rope_base = base ? strtod(base, NULL) : 0;
    if (!(shape->rope_base >= 1 && shape->rope_base <= 1e12))
        return fail(why, "%s: rope_base is %.32s, expected 1 to 1e12", path,
                    base ? base : "missing");
    return true;
}

bool checkpoint_open(safetensors **file, const char *path, model_shape *shape, failure *why)
{
    if (!safetensors_read(file, path, why))
        return false;
    if (read_shape(*file, shape, path, why))
        return true;
    safetensors_free(*file);
    *file = NULL;
    return false;
}

static bool load_family(const safetensors *file, const model *m, real *array, int family,
                        failure *why)
{
    for (int64_t i = 0; i < m->n_infos; i++) {
        const weight_info *info = &m->infos[i];
        tensor_name name;
        safetensors_tensor want = describe_weight(info, array, family, name);
        const safetensors_tensor *have = safetensors_find(file, name);
        if (!have)
            return fail(why, "the checkpoint has no tensor %s", name);
        if (strcmp(have->dtype, want.dtype) != 0 || have->ndim != want.ndim ||
            memcmp(have->shape, want.shape, (size_t)want.ndim * sizeof *want.shape) != 0)
            return fail(why,
                        "the checkpoint's tensor %s is not %s of %" PRId64 " x %" PRId64
                        ", which its dimensions ask for",
                        name, want.dtype, info->rows, info->columns ? info->columns : 1);
        memcpy(array + info->offset, have->data, (size_t)want.bytes);
    }
    return true;
}

bool checkpoint_load_weights(const safetensors *file, model *m, failure *why)
{
    return load_family(file, m, m->weights.all, 0, why);
}

static bool load_masks(const safetensors *file, model *m, failure *why)
{
    for (int64_t l = 0; l < m->shape.layers; l++) {
        tensor_name name;
        snprintf(name, sizeof name, "mask.%" PRId64, l);
        const safetensors_tensor *mask = safetensors_find(file, name);
        if (mask && !attention_set_mask(m->attention, l, mask->data, mask->bytes, why))
            return false;
    }
    return true;
}

bool checkpoint_load_state(const safetensors *file, model *m, training_state *state, failure *why)
{
    const char *label = "the checkpoint";
    uint64_t step, source, checksum;
    if (!read_number(file, STEP, &step, label, why) ||
        !read_number(file, RANDOM, &source, label, why) ||
        !read_number(file, TEXT, &checksum, label, why))
        return false;
    if (step > INT32_MAX)
        return fail(why, "%s: step is %" PRIu64 ", which cannot be", label, step);
    if (checksum != state->text_checksum)
        return fail(why, "--data is not the text of the checkpoint: expected the same file, or "
                         "--from instead of --resume");
    state->step = (int64_t)step;
    state->source.state = source;
    return load_family(file, m, state->optimizer.first, 1, why) &&
           load_family(file, m, state->optimizer.second, 2, why) && load_masks(file, m, why);
}
