#include "data.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* Reads to the end, growing the buffer; gzread hands a plain file through as it is. */
static bool read_all(text_data *data, gzFile file, const char *path, failure *why)
{
    int64_t capacity = 0;
    for (;;) {
        if (data->size == capacity) {
            capacity = capacity ? 2 * capacity : 1 << 20;
            uint8_t *text = realloc(data->text, (size_t)capacity);
            if (!text)
                return fail(why, "%s: out of memory after %" PRId64 " bytes", path, data->size);
            data->text = text;
        }
        int64_t room = capacity - data->size;
        int got = gzread(file, data->text + data->size, room < 1 << 30 ? (unsigned)room : 1u << 30);
        if (got < 0) {
            int code;
            const char *text = gzerror(file, &code);
            return fail(why, "%s: %s, expected a plain or gzipped text", path,
                        code == Z_ERRNO ? strerror(errno) : text);
        }
        if (got == 0)
            return true;
        data->size += got;
    }
}

bool data_load(text_data *data, const char *path, double held_out, failure *why)
{
    *data = (text_data){0};
    gzFile file = gzopen(path, "rb");
    if (!file)
        return fail(why, "%s: %s, expected a text to learn from", path, strerror(errno));
    bool done = read_all(data, file, path, why);
    int closed = gzclose(file);
    if (done && closed == Z_BUF_ERROR)
        done = fail(why, "%s ends in the middle of its gzip stream: expected a whole file", path);
    else if (done && closed != Z_OK)
        done = fail(why, "%s: cannot be read to its end", path);
    if (done && data->size == 0)
        done = fail(why, "%s is empty, expected a text to learn from", path);
    if (!done)
        return data_free(data), false;
    data->train_size = data->size - (int64_t)((double)data->size * held_out);
    data->checksum = (uint32_t)crc32_z(0, data->text, (size_t)data->size);
    return true;
}

void data_free(text_data *data)
{
    free(data->text);
    *data = (text_data){0};
}

bool data_check(const text_data *data, const char *path, int64_t batch, int64_t context,
                failure *why)
{
    int64_t held_out = data->size - data->train_size;
    if (data->train_size < context + 1)
        return fail(why,
                    "%s has %" PRId64 " bytes to train on, expected at least %" PRId64
                    ": one more than --context",
                    path, data->train_size, context + 1);
    if (held_out > 0 && held_out < batch * context + 1)
        return fail(why,
                    "%s has %" PRId64 " bytes held out, expected at least %" PRId64
                    ": one more than --batch times --context, or --held-out 0",
                    path, held_out, batch * context + 1);
    return true;
}

void data_batch(const text_data *data, random_source *source, int64_t B, int64_t T, uint8_t *tokens,
                uint8_t *targets)
{
    for (int64_t b = 0; b < B; b++) {
        const uint8_t *window = data->text + random_below(source, data->train_size - T);
        memcpy(tokens + b * T, window, (size_t)T);
        memcpy(targets + b * T, window + 1, (size_t)T);
    }
}

int64_t data_held_out_batches(const text_data *data, int64_t B, int64_t T)
{
    int64_t held_out = data->size - data->train_size;
    return held_out > 0 ? (held_out - 1) / (B * T) : 0;
}

void data_held_out_batch(const text_data *data, int64_t batch, int64_t B, int64_t T,
                         uint8_t *tokens, uint8_t *targets)
{
    const uint8_t *window = data->text + data->train_size + batch * B * T;
    memcpy(tokens, window, (size_t)(B * T));
    memcpy(targets, window + 1, (size_t)(B * T));
}
