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

static void *family_array(const model *m, int family)
{
    void *const arrays[N_FAMILIES] = {m->weights.all, m->first_moments, m->second_moments};
    return arrays[family];
}

typedef char tensor_name[96];

/* What a file is made of. Everything but the model lives on the host. */
typedef struct contents {
    const model *m;
    void *arrays[N_FAMILIES]; /* (n_weights) copies of the families, or NULL */
    void *masks[MAX_LAYERS];  /* copies, or NULL */
    tensor_name *names;       /* one for each tensor */
    safetensors_tensor *tensors;
    int64_t n;
    char numbers[N_NUMBERS][32], rope_base[48];
    safetensors_note notes[N_NUMBERS + 2];
} contents;

static bool contents_open(contents *self, const model *m, const training_state *state)
{
    const model_shape *s = &m->shape;
    const uint64_t numbers[N_NUMBERS] = {
        (uint64_t)s->layers,   (uint64_t)s->dim,      (uint64_t)s->heads,
        (uint64_t)s->kv_heads, (uint64_t)s->head_dim, (uint64_t)s->hidden,
        (uint64_t)state->step, state->source.state,   state->text_checksum};
    size_t room = (size_t)(N_FAMILIES * m->n_infos + s->layers);
    *self = (contents){.m = m,
                       .names = calloc(room, sizeof *self->names),
                       .tensors = calloc(room, sizeof *self->tensors)};
    snprintf(self->rope_base, sizeof self->rope_base, "%a", s->rope_base);
    self->notes[0] = (safetensors_note){"format", format};
    self->notes[1] = (safetensors_note){"rope_base", self->rope_base};
    for (int n = 0; n < N_NUMBERS; n++) {
        snprintf(self->numbers[n], sizeof *self->numbers, "%" PRIu64, numbers[n]);
        self->notes[n + 2] = (safetensors_note){number_names[n], self->numbers[n]};
    }
    return self->names && self->tensors;
}

static void contents_close(contents *self)
{
    for (int family = 0; family < N_FAMILIES; family++)
        free(self->arrays[family]);
    for (int64_t l = 0; l < MAX_LAYERS; l++)
        free(self->masks[l]);
    free(self->names);
    free(self->tensors);
}

static bool fetch(const model *m, void **host, const void *array, int64_t bytes, failure *why)
{
    *host = malloc((size_t)bytes);
    if (!*host)
        return fail(why, "out of memory while saving");
    return m->on->op->read(m->on, *host, array, bytes, why);
}

static const char *number_dtype(const model *m)
{
    return m->on->number == HPA_F64 ? "F64" : "F32";
}

static void add_weight(contents *self, const weight_info *info, int family, const char *dtype,
                       int64_t element)
{
    snprintf(self->names[self->n], sizeof(tensor_name), "%s%s", family_prefix[family], info->name);
    self->tensors[self->n] =
        (safetensors_tensor){.name = self->names[self->n],
                             .dtype = dtype,
                             .ndim = info->columns ? 2 : 1,
                             .shape = {info->rows, info->columns},
                             .bytes = info->count * element,
                             .data = (char *)self->arrays[family] + info->offset * element};
    self->n++;
}

static bool add_family(contents *self, int family, failure *why)
{
    const model *m = self->m;
    int64_t element = m->on->number_bytes;
    if (!fetch(m, &self->arrays[family], family_array(m, family), m->n_weights * element, why))
        return false;
    for (int64_t i = 0; i < m->n_infos; i++)
        add_weight(self, &m->infos[i], family, number_dtype(m), element);
    return true;
}

static bool add_masks(contents *self, failure *why)
{
    for (int64_t l = 0; l < self->m->shape.layers; l++) {
        int64_t bytes;
        const void *mask = attention_mask(self->m->attention, l, &bytes);
        if (!mask)
            continue;
        if (!fetch(self->m, &self->masks[l], mask, bytes, why))
            return false;
        snprintf(self->names[self->n], sizeof(tensor_name), "mask.%" PRId64, l);
        self->tensors[self->n] =
            (safetensors_tensor){self->names[self->n], "U8", 1, {bytes}, bytes, self->masks[l]};
        self->n++;
    }
    return true;
}

bool checkpoint_save(const char *path, const model *m, const training_state *state, bool with_masks,
                     failure *why)
{
    contents c;
    bool done = contents_open(&c, m, state) || fail(why, "out of memory while saving %s", path);
    for (int family = 0; done && family < N_FAMILIES; family++)
        done = add_family(&c, family, why);
    done = done && (!with_masks || add_masks(&c, why)) &&
           safetensors_write(path, c.notes, N_NUMBERS + 2, c.tensors, c.n, why);
    contents_close(&c);
    return done;
}

/* The nearest bf16, ties to even; the weights are finite. */
static uint16_t to_bf16(double value)
{
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

bool checkpoint_export(const char *path, const model *m, failure *why)
{
    contents c;
    void *numbers = NULL;
    uint16_t *rounded = calloc((size_t)m->n_weights, sizeof *rounded);
    bool done = (contents_open(&c, m, &(training_state){0}) && rounded) ||
                fail(why, "out of memory while saving %s", path);
    c.arrays[0] = rounded;
    done = done && fetch(m, &numbers, m->weights.all, m->n_weights * m->on->number_bytes, why);
    for (int64_t i = 0; done && i < m->n_weights; i++)
        rounded[i] = to_bf16(number_get(m->on, numbers, i));
    for (int64_t i = 0; done && i < m->n_infos; i++)
        add_weight(&c, &m->infos[i], 0, "BF16", sizeof *rounded);
    done = done && safetensors_write(path, c.notes, N_NUMBERS + 2, c.tensors, c.n, why);
    free(numbers);
    contents_close(&c);
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

/* Element n of a tensor's data, which need not be aligned. */
static double element(const safetensors_tensor *tensor, int64_t n)
{
    const char *data = tensor->data;
    if (strcmp(tensor->dtype, "F64") == 0) {
        double value;
        memcpy(&value, data + n * (int64_t)sizeof value, sizeof value);
        return value;
    }
    float value;
    if (strcmp(tensor->dtype, "BF16") == 0) { /* the upper half of a float */
        uint16_t upper;
        memcpy(&upper, data + n * (int64_t)sizeof upper, sizeof upper);
        uint32_t bits = (uint32_t)upper << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, data + n * (int64_t)sizeof value, sizeof value);
    }
    return (double)value;
}

static bool check_tensor(const safetensors_tensor *have, const weight_info *info, const char *name,
                         const char *exactly, failure *why)
{
    if (!have)
        return fail(why, "the checkpoint has no tensor %s", name);
    const int64_t shape[2] = {info->rows, info->columns};
    int64_t ndim = info->columns ? 2 : 1;
    bool known = exactly ? strcmp(have->dtype, exactly) == 0
                         : strcmp(have->dtype, "F32") == 0 || strcmp(have->dtype, "F64") == 0 ||
                               strcmp(have->dtype, "BF16") == 0;
    if (known && have->ndim == ndim &&
        memcmp(have->shape, shape, (size_t)ndim * sizeof *shape) == 0)
        return true;
    return fail(why,
                "the checkpoint's tensor %s is not %s of %" PRId64 " x %" PRId64
                ", which its dimensions ask for",
                name, exactly ? exactly : "F32, F64 or BF16", info->rows,
                info->columns ? info->columns : 1);
}

/* exactly: the dtype that the tensors must have, or NULL. */
static bool load_family(const safetensors *file, model *m, int family, const char *exactly,
                        failure *why)
{
    backend *on = m->on;
    for (int64_t i = 0; i < m->n_infos; i++) {
        const weight_info *info = &m->infos[i];
        tensor_name name;
        snprintf(name, sizeof name, "%s%s", family_prefix[family], info->name);
        const safetensors_tensor *have = safetensors_find(file, name);
        if (!check_tensor(have, info, name, exactly, why))
            return false;
        void *host = malloc((size_t)(info->count * on->number_bytes));
        if (!host)
            return fail(why, "out of memory while loading");
        for (int64_t n = 0; n < info->count; n++)
            number_set(on, host, n, element(have, n));
        on->op->write(on, number_at(on, family_array(m, family), info->offset), host,
                      info->count * on->number_bytes);
        free(host);
    }
    return true;
}

bool checkpoint_load_weights(const safetensors *file, model *m, failure *why)
{
    bool done = load_family(file, m, 0, NULL, why);
    model_weights_changed(m);
    return done;
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
    for (int family = 0; family < N_FAMILIES; family++)
        if (!load_family(file, m, family, number_dtype(m), why))
            return false;
    return load_masks(file, m, why);
}
