/* A CUDA device as a backend: what its layers (layers.cu) use of the device (device.c). */
#ifndef DEMO_DEVICE_H
#define DEMO_DEVICE_H

#include "backend.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

enum { DEVICE_MARKS = 1024, DEVICE_BLOCKS = 32 };

typedef struct cuda_backend {
    backend base;
    char name[256]; /* of the device */
    cudaStream_t stream;
    cublasHandle_t blas;
    bool failed; /* and why: the first failure, until a read tells */
    failure failure;
    struct device_block { /* what was allocated */
        void *data;
        int64_t bytes;
    } blocks[DEVICE_BLOCKS];
    void *blas_workspace;
    void *scratch; /* of device_scratch */
    int64_t scratch_bytes;
    cudaEvent_t marks[DEVICE_MARKS]; /* the moments when a phase began */
    phase phases[DEVICE_MARKS];
    int n_marks;
    double seconds[N_PHASES]; /* between marks that were used up */
} cuda_backend;

extern const operations cuda_operations_f32, cuda_operations_bf16;

/* Keeps the failure of a call, if it is one and the first. */
void device_check(backend *on, cudaError_t error, const char *call);
void device_check_blas(backend *on, cublasStatus_t status, const char *call);

/* Memory for one operation; NULL, and a failure, when there is not enough. */
void *device_scratch(backend *on, int64_t bytes);

void device_close(backend *on);
void *device_allocate(backend *on, int64_t bytes);
void device_release(backend *on, void *memory);
int64_t device_available(backend *on);
void device_clear(backend *on, void *to, int64_t bytes);
void device_copy(backend *on, void *to, const void *from, int64_t bytes);
void device_write(backend *on, void *to, const void *host, int64_t bytes);
bool device_read(backend *on, void *host, const void *from, int64_t bytes, failure *why);
phase device_enter(backend *on, phase next);
bool device_read_clock(backend *on, double seconds[N_PHASES], failure *why);

#endif
