/* A tensor on the plan's device with its own memory, read and written as doubles on the host. */
#ifndef HPA_GRADCHECK_TENSOR_H
#define HPA_GRADCHECK_TENSOR_H

#include "buffer.h"
#include "compare.h"

/* In memory [token, head, dim] or, without a dim, [token, head]; the view is [batch, head, token(,
 * dim)] unless packed. Host arrays are always in the order of memory. */
struct tensor_form {
    hpa_dtype dtype;
    bool packed;
    int64_t batch;
    int64_t tokens; /* over all sequences */
    int64_t heads;
    int64_t dim; /* 0: none */
};

struct tensor {
    struct tensor_form form;
    struct buffer memory;
    hpa_tensor view;
    int64_t elements;
    void *stored; /* [elements] of the dtype, on the host */
};

hpa_status tensor_create(struct tensor *tensor, hpa_device device, const struct tensor_form *form);
void tensor_destroy(struct tensor *tensor);

void tensor_write(struct tensor *tensor, const double *values);
void tensor_fill(struct tensor *tensor, double value);

/* values NULL: only into tensor->stored. */
void tensor_read(struct tensor *tensor, double *values);

/* The shape in the order of memory. */
struct shape tensor_memory_shape(const struct tensor *tensor);

/* Turns the index of a result from the order of memory into that of the view. */
void tensor_place_in_view(const struct tensor *tensor, hpa_gradcheck_result *result);

#endif
