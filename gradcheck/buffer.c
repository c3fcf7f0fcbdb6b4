#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT ((size_t)64)

hpa_status buffer_create(struct buffer *buffer, hpa_device device, size_t bytes)
{
    *buffer = (struct buffer){0};
    if (device != HPA_CPU)
        return HPA_UNSUPPORTED;
    size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    buffer->data = aligned_alloc(ALIGNMENT, rounded);
    buffer->bytes = bytes;
    return buffer->data ? HPA_OK : HPA_OUT_OF_MEMORY;
}

void buffer_destroy(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

void buffer_write(struct buffer *buffer, const void *host)
{
    memcpy(buffer->data, host, buffer->bytes);
}

void buffer_read(const struct buffer *buffer, void *host)
{
    memcpy(host, buffer->data, buffer->bytes);
}
