#include "tensor.h"

#include "convert.h"

#include <stdlib.h>

static hpa_tensor packed_view(const struct tensor_form *form)
{
    int64_t dim = form->dim ? form->dim : 1;
    hpa_tensor view = {.dtype = form->dtype, .ndim = form->dim ? 3 : 2};
    view.shape[0] = form->tokens;
    view.shape[1] = form->heads;
    view.shape[2] = form->dim;
    view.stride[0] = form->heads * dim;
    view.stride[1] = dim;
    view.stride[2] = form->dim ? 1 : 0;
    return view;
}

static hpa_tensor batch_view(const struct tensor_form *form)
{
    int64_t dim = form->dim ? form->dim : 1;
    int64_t length = form->tokens / form->batch;
    hpa_tensor view = {.dtype = form->dtype, .ndim = form->dim ? 4 : 3};
    view.shape[0] = form->batch;
    view.shape[1] = form->heads;
    view.shape[2] = length;
    view.shape[3] = form->dim;
    view.stride[0] = length * form->heads * dim;
    view.stride[1] = dim;
    view.stride[2] = form->heads * dim;
    view.stride[3] = form->dim ? 1 : 0;
    return view;
}

hpa_status tensor_create(struct tensor *tensor, hpa_device device, const struct tensor_form *form)
{
    *tensor =
        (struct tensor){.form = *form, .view = form->packed ? packed_view(form) : batch_view(form)};
    tensor->elements = form->tokens * form->heads * (form->dim ? form->dim : 1);
    size_t bytes = (size_t)tensor->elements * dtype_size(form->dtype);
    hpa_status status = buffer_create(&tensor->memory, device, bytes);
    tensor->view.data = tensor->memory.data;
    tensor->stored = malloc(bytes + 1);
    return status == HPA_OK && !tensor->stored ? HPA_OUT_OF_MEMORY : status;
}

void tensor_destroy(struct tensor *tensor)
{
    buffer_destroy(&tensor->memory);
    free(tensor->stored);
    *tensor = (struct tensor){0};
}

void tensor_write(struct tensor *tensor, const double *values)
{
    dtype_encode(tensor->view.dtype, values, tensor->stored, tensor->elements);
    buffer_write(&tensor->memory, tensor->stored);
}

void tensor_fill(struct tensor *tensor, double value)
{
    size_t size = dtype_size(tensor->view.dtype);
    for (int64_t i = 0; i < tensor->elements; i++)
        dtype_encode(tensor->view.dtype, &value, (char *)tensor->stored + (size_t)i * size, 1);
    buffer_write(&tensor->memory, tensor->stored);
}

void tensor_read(struct tensor *tensor, double *values)
{
    buffer_read(&tensor->memory, tensor->stored);
    if (values)
        dtype_decode(tensor->view.dtype, tensor->stored, values, tensor->elements);
}

struct shape tensor_memory_shape(const struct tensor *tensor)
{
    return (struct shape){.ndim = tensor->form.dim ? 3 : 2,
                          .length = {tensor->form.tokens, tensor->form.heads, tensor->form.dim}};
}

void tensor_place_in_view(const struct tensor *tensor, hpa_gradcheck_result *result)
{
    if (tensor->form.packed || result->ndim == 0)
        return;
    int64_t length = tensor->form.tokens / tensor->form.batch;
    int64_t token = result->index[0], head = result->index[1], dim = result->index[2];
    result->ndim = tensor->view.ndim;
    result->index[0] = token / length;
    result->index[1] = head;
    result->index[2] = token % length;
    result->index[3] = tensor->form.dim ? dim : 0;
}
