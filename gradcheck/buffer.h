/* Memory on the device of the plan, and copies between it and the host. */
#ifndef HPA_GRADCHECK_BUFFER_H
#define HPA_GRADCHECK_BUFFER_H

#include <hpa/hpa.h>

/* One kind of memory. Copies wait for the work before them. */
struct memory {
    void *(*allocate)(size_t bytes); /* aligned to 64 bytes; NULL: there is not enough */
    void (*release)(void *data);
    void (*write)(void *to, const void *host, size_t bytes);
    void (*read)(void *host, const void *from, size_t bytes);
    bool (*wait)(void);           /* for the work before it: false when that failed */
    int32_t (*enter)(int32_t id); /* makes device id the thread's; which one was before */
};

struct buffer {
    void *data; /* on the device; NULL: nothing to free */
    size_t bytes;
    const struct memory *memory;
};

hpa_status buffer_create(struct buffer *buffer, hpa_device device, size_t bytes);
void buffer_destroy(struct buffer *buffer);

/* All of the buffer, from and to host memory. */
void buffer_write(struct buffer *buffer, const void *host);
void buffer_read(const struct buffer *buffer, void *host);

/* The memory that plans of this device use; NULL for one that this build cannot reach. */
const struct memory *memory_of(hpa_device device);

#endif
