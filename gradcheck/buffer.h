/* Memory on the device of the plan, and copies between it and the host. */
#ifndef HPA_GRADCHECK_BUFFER_H
#define HPA_GRADCHECK_BUFFER_H

#include <hpa/hpa.h>

struct buffer {
    void *data; /* on the device, aligned to 64 bytes; NULL: nothing to free */
    size_t bytes;
};

/* HPA_UNSUPPORTED for a device whose memory this build cannot reach. */
hpa_status buffer_create(struct buffer *buffer, hpa_device device, size_t bytes);
void buffer_destroy(struct buffer *buffer);

/* All of the buffer, from and to host memory. */
void buffer_write(struct buffer *buffer, const void *host);
void buffer_read(const struct buffer *buffer, void *host);

#endif
