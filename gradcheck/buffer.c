#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT ((size_t)64)

static void *allocate(size_t bytes)
{
    return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
}

static void copy_in(void *to, const void *host, size_t bytes)
{
    memcpy(to, host, bytes);
}

static void copy_out(void *host, const void *from, size_t bytes)
{
    memcpy(host, from, bytes);
}

static bool wait(void)
{
    return true;
}

static int32_t enter(int32_t id)
{
    return id;
}

static const struct memory host_memory = {allocate, free, copy_in, copy_out, wait, enter};

#ifdef HPA_WITH_CUDA
extern const struct memory cuda_memory;
#endif

const struct memory *memory_of(hpa_device device)
{
#ifdef HPA_WITH_CUDA
    if (device == HPA_CUDA)
        return &cuda_memory;
#endif
    return device == HPA_CPU ? &host_memory : NULL;
}

hpa_status buffer_create(struct buffer *buffer, hpa_device device, size_t bytes)
{
    *buffer = (struct buffer){.bytes = bytes, .memory = memory_of(device)};
    if (!buffer->memory)
        return HPA_UNSUPPORTED;
    buffer->data = buffer->memory->allocate(bytes);
    return buffer->data ? HPA_OK : HPA_OUT_OF_MEMORY;
}

void buffer_destroy(struct buffer *buffer)
{
    if (buffer->data)
        buffer->memory->release(buffer->data);
    *buffer = (struct buffer){0};
}

void buffer_write(struct buffer *buffer, const void *host)
{
    buffer->memory->write(buffer->data, host, buffer->bytes);
}

void buffer_read(const struct buffer *buffer, void *host)
{
    buffer->memory->read(host, buffer->data, buffer->bytes);
}
