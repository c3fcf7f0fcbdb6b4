#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cuda_backend *device_of(backend *on)
{
    return (cuda_backend *)on;
}

/* Failures */

void device_check(backend *on, cudaError_t error, const char *call)
{
    cuda_backend *self = device_of(on);
    if (error == cudaSuccess || self->failed)
        return;
    self->failed = true;
    fail(&self->failure, "%s: %s: %s", on->place, call, cudaGetErrorString(error));
}

void device_check_blas(backend *on, cublasStatus_t status, const char *call)
{
    cuda_backend *self = device_of(on);
    if (status == CUBLAS_STATUS_SUCCESS || self->failed)
        return;
    self->failed = true;
    fail(&self->failure, "%s: %s: %s", on->place, call, cublasGetStatusString(status));
}

#define CHECK(on, call) device_check((on), (call), #call)

/* Waits, and tells of the first failure so far. */
static bool finish(backend *on, failure *why)
{
    cuda_backend *self = device_of(on);
    CHECK(on, cudaStreamSynchronize(self->stream));
    if (self->failed)
        *why = self->failure;
    return !self->failed;
}

/* Beginning and end */

bool backend_cuda_is_there(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/* The first product loads cuBLAS, which is not to count for the first step. */
static void load_blas(backend *on)
{
    enum { SIZE = 64 };
    void *zeros = device_scratch(on, 2 * SIZE * SIZE * on->number_bytes);
    if (zeros)
        on->op->linear_forward(on, INTO_OPERANDS, number_at(on, zeros, SIZE * SIZE), zeros, zeros,
                               SIZE, SIZE, SIZE);
}

static bool set_up(cuda_backend *self, failure *why)
{
    enum { BLAS_WORKSPACE = 32 << 20 }; /* what cuBLAS asks for on Hopper */
    backend *on = &self->base;
    struct cudaDeviceProp properties;
    CHECK(on, cudaGetDeviceProperties(&properties, 0));
    if (!self->failed)
        snprintf(self->name, sizeof self->name, "%s", properties.name);
    CHECK(on, cudaStreamCreateWithFlags(&self->stream, cudaStreamNonBlocking));
    on->stream = self->stream;
    device_check_blas(on, cublasCreate(&self->blas), "cublasCreate");
    if (self->failed)
        return *why = self->failure, false;
    device_check_blas(on, cublasSetStream(self->blas, self->stream), "cublasSetStream");
    /* A workspace of its own: results may otherwise depend on which one cuBLAS finds. */
    self->blas_workspace = device_allocate(on, BLAS_WORKSPACE);
    if (self->blas_workspace)
        device_check_blas(on, cublasSetWorkspace(self->blas, self->blas_workspace, BLAS_WORKSPACE),
                          "cublasSetWorkspace");
    for (int n = 0; n < DEVICE_MARKS; n++)
        CHECK(on, cudaEventCreate(&self->marks[n]));
    device_enter(on, PHASE_REST);
    load_blas(on);
    return finish(on, why);
}

bool backend_open_cuda(backend **on, hpa_dtype operand, failure *why)
{
    *on = NULL;
    if (!backend_cuda_is_there())
        return fail(why, "--backend cuda: there is no CUDA device, or no driver for it");
    cuda_backend *self = calloc(1, sizeof *self);
    if (!self)
        return fail(why, "out of memory");
    self->base = (backend){
        .op = operand == HPA_BF16 ? &cuda_operations_bf16 : &cuda_operations_f32,
        .device = HPA_CUDA,
        .place = self->name,
        .number = HPA_F32,
        .operand = operand,
        .number_bytes = sizeof(float),
        .operand_bytes = operand == HPA_BF16 ? 2 : sizeof(float),
    };
    if (!set_up(self, why))
        return device_close(&self->base), false;
    *on = &self->base;
    return true;
}

void device_close(backend *on)
{
    cuda_backend *self = device_of(on);
    if (self->blas)
        cublasDestroy(self->blas);
    for (int n = 0; n < DEVICE_MARKS; n++)
        if (self->marks[n])
            cudaEventDestroy(self->marks[n]);
    for (int n = 0; n < DEVICE_BLOCKS; n++)
        cudaFree(self->blocks[n].data);
    if (self->stream)
        cudaStreamDestroy(self->stream);
    free(self);
}

/* Memory */

void *device_allocate(backend *on, int64_t bytes)
{
    cuda_backend *self = device_of(on);
    struct device_block *block = self->blocks;
    while (block < self->blocks + DEVICE_BLOCKS && block->data)
        block++;
    if (block == self->blocks + DEVICE_BLOCKS ||
        cudaMalloc(&block->data, (size_t)bytes) != cudaSuccess) {
        cudaGetLastError(); /* the caller tells */
        return NULL;
    }
    block->bytes = bytes;
    on->allocated += bytes;
    on->peak = on->allocated > on->peak ? on->allocated : on->peak;
    device_clear(on, block->data, bytes);
    return block->data;
}

void device_release(backend *on, void *memory)
{
    cuda_backend *self = device_of(on);
    for (int n = 0; memory && n < DEVICE_BLOCKS; n++)
        if (self->blocks[n].data == memory) {
            CHECK(on, cudaFree(memory)); /* waits for what still uses it */
            on->allocated -= self->blocks[n].bytes;
            self->blocks[n] = (struct device_block){NULL, 0};
            return;
        }
}

int64_t device_available(backend *on)
{
    enum { RESERVE = 256 << 20 }; /* for device_scratch and the driver */
    size_t available = 0, all;
    CHECK(on, cudaMemGetInfo(&available, &all));
    return available > RESERVE ? (int64_t)available - RESERVE : 0;
}

void *device_scratch(backend *on, int64_t bytes)
{
    cuda_backend *self = device_of(on);
    if (bytes <= self->scratch_bytes)
        return self->scratch;
    device_release(on, self->scratch);
    self->scratch = device_allocate(on, bytes);
    self->scratch_bytes = self->scratch ? bytes : 0;
    if (!self->scratch)
        device_check(on, cudaErrorMemoryAllocation, "scratch");
    return self->scratch;
}

void device_clear(backend *on, void *to, int64_t bytes)
{
    CHECK(on, cudaMemsetAsync(to, 0, (size_t)bytes, device_of(on)->stream));
}

void device_copy(backend *on, void *to, const void *from, int64_t bytes)
{
    CHECK(on, cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice,
                              device_of(on)->stream));
}

void device_write(backend *on, void *to, const void *host, int64_t bytes)
{
    CHECK(on,
          cudaMemcpyAsync(to, host, (size_t)bytes, cudaMemcpyHostToDevice, device_of(on)->stream));
}

bool device_read(backend *on, void *host, const void *from, int64_t bytes, failure *why)
{
    CHECK(on, cudaMemcpyAsync(host, from, (size_t)bytes, cudaMemcpyDeviceToHost,
                              device_of(on)->stream));
    return finish(on, why);
}

/* The clock: a mark of the device's own time wherever the phase changes. */

/* Turns the marks but the last, which begins what goes on, into seconds. */
static void use_up_marks(backend *on)
{
    cuda_backend *self = device_of(on);
    int last = self->n_marks - 1;
    CHECK(on, cudaEventSynchronize(self->marks[last]));
    for (int n = 0; n < last; n++) {
        float milliseconds = 0;
        CHECK(on, cudaEventElapsedTime(&milliseconds, self->marks[n], self->marks[n + 1]));
        self->seconds[self->phases[n]] += 1e-3 * (double)milliseconds;
    }
    cudaEvent_t spare = self->marks[0];
    self->marks[0] = self->marks[last];
    self->marks[last] = spare;
    self->phases[0] = self->phases[last];
    self->n_marks = 1;
}

static void mark(backend *on, phase next)
{
    cuda_backend *self = device_of(on);
    if (self->n_marks == DEVICE_MARKS)
        use_up_marks(on);
    CHECK(on, cudaEventRecord(self->marks[self->n_marks], self->stream));
    self->phases[self->n_marks++] = next;
}

phase device_enter(backend *on, phase next)
{
    cuda_backend *self = device_of(on);
    phase before = self->n_marks > 0 ? self->phases[self->n_marks - 1] : PHASE_REST;
    if (self->n_marks == 0 || next != before)
        mark(on, next);
    return before;
}

bool device_read_clock(backend *on, double seconds[N_PHASES], failure *why)
{
    cuda_backend *self = device_of(on);
    mark(on, self->phases[self->n_marks - 1]);
    use_up_marks(on);
    memcpy(seconds, self->seconds, sizeof self->seconds);
    memset(self->seconds, 0, sizeof self->seconds);
    return finish(on, why);
}
