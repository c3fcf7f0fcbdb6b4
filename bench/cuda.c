/* cuda.c - a CUDA device: its memory, its events, and what it can do at best. cuBLAS is looked for
 * when it is needed, so that the program runs without it. */
#include "device.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define CUBLAS_LIBRARY "libcublas.so." TEXT(CUBLAS_VER_MAJOR)

static cudaEvent_t marks[BENCH_MARKS];

static bool succeeded(cudaError_t error, const char *call)
{
    if (error == cudaSuccess)
        return true;
    fprintf(stderr, "hpa-bench: %s: %s\n", call, cudaGetErrorString(error));
    return false;
}

#define SUCCEEDED(call) succeeded((call), #call)

static cudaStream_t stream(void)
{
    static cudaStream_t created;
    if (!created)
        SUCCEEDED(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking));
    return created;
}

static void *stream_of_exec(void)
{
    return stream();
}

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (cudaMalloc(&memory, bytes > 0 ? bytes : 1) == cudaSuccess)
        return memory;
    cudaGetLastError();
    return NULL;
}

static void release(void *memory)
{
    cudaFree(memory);
}

static bool write_device(void *to, const void *host, size_t bytes)
{
    return SUCCEEDED(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream())) &&
           SUCCEEDED(cudaStreamSynchronize(stream()));
}

static bool read_device(void *host, const void *from, size_t bytes)
{
    return SUCCEEDED(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream())) &&
           SUCCEEDED(cudaStreamSynchronize(stream()));
}

static bool mark(int n)
{
    if (!marks[n] && !SUCCEEDED(cudaEventCreate(&marks[n])))
        return false;
    return SUCCEEDED(cudaEventRecord(marks[n], stream()));
}

static bool wait(void)
{
    return SUCCEEDED(cudaStreamSynchronize(stream()));
}

static double elapsed_ms(int from, int to)
{
    float ms = 0;
    SUCCEEDED(cudaEventElapsedTime(&ms, marks[from], marks[to]));
    return (double)ms;
}

/* Ceilings */

/* The functions of cuBLAS that a product needs. */
typedef struct cublas {
    void *library;
    cublasHandle_t handle;
    cublasStatus_t (*create)(cublasHandle_t *);
    cublasStatus_t (*destroy)(cublasHandle_t);
    cublasStatus_t (*set_stream)(cublasHandle_t, cudaStream_t);
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                           const void *, const void *, cudaDataType, int, const void *,
                           cudaDataType, int, const void *, void *, cudaDataType, int,
                           cublasComputeType_t, cublasGemmAlgo_t);
} cublas;

static bool find(const cublas *blas, const char *name, void *function)
{
    void *symbol = dlsym(blas->library, name);
    *(void **)function = symbol;
    return symbol;
}

static bool open_cublas(cublas *blas)
{
    blas->library = dlopen(CUBLAS_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!blas->library) {
        fprintf(stderr, "hpa-bench: %s\n", dlerror());
        return false;
    }
    const bool complete = find(blas, TEXT(cublasCreate), &blas->create) &&
                          find(blas, TEXT(cublasDestroy), &blas->destroy) &&
                          find(blas, TEXT(cublasSetStream), &blas->set_stream) &&
                          find(blas, "cublasGemmEx", &blas->gemm);
    if (complete && blas->create(&blas->handle) == CUBLAS_STATUS_SUCCESS &&
        blas->set_stream(blas->handle, stream()) == CUBLAS_STATUS_SUCCESS)
        return true;
    fprintf(stderr, "hpa-bench: %s cannot be used\n", CUBLAS_LIBRARY);
    return false;
}

static void close_cublas(cublas *blas)
{
    if (blas->handle)
        blas->destroy(blas->handle);
    if (blas->library)
        dlclose(blas->library);
}

static cudaDataType type_of(hpa_dtype dtype)
{
    switch (dtype) {
    case HPA_F64:
        return CUDA_R_64F;
    case HPA_F16:
        return CUDA_R_16F;
    case HPA_BF16:
        return CUDA_R_16BF;
    default:
        return CUDA_R_32F;
    }
}

/* a b^T of square matrices, sums in f32 (f64 for f64). */
static bool multiply(const cublas *blas, hpa_dtype dtype, int n, const void *a, const void *b,
                     void *c)
{
    const double one_f64 = 1, zero_f64 = 0;
    const float one_f32 = 1, zero_f32 = 0;
    const bool f64 = dtype == HPA_F64;
    const cudaDataType type = type_of(dtype);
    const cublasStatus_t status =
        blas->gemm(blas->handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n,
                   f64 ? (const void *)&one_f64 : (const void *)&one_f32, a, type, n, b, type, n,
                   f64 ? (const void *)&zero_f64 : (const void *)&zero_f32, c, type, n,
                   f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_SUCCESS)
        return true;
    fprintf(stderr, "hpa-bench: cublasGemmEx: status %d\n", (int)status);
    return false;
}

static bool time_products(const cublas *blas, const bench_options *options, void *const *matrices,
                          double *times)
{
    for (int64_t r = -1; r < options->repeat; r++) { /* the first warms up */
        if (!mark(0) || !multiply(blas, options->desc.dtype, (int)options->gemm_size, matrices[0],
                                  matrices[1], matrices[2]))
            return false;
        if (!mark(1) || !wait())
            return false;
        times[r < 0 ? 0 : r] = elapsed_ms(0, 1);
    }
    return true;
}

static bool fill_matrices(const bench_options *options, void *const *matrices, size_t bytes)
{
    const int64_t elements = options->gemm_size * options->gemm_size;
    void *host = malloc(bytes);
    bool ok = host;
    for (int n = 0; ok && n < 2; n++) {
        bench_random(host, options->desc.dtype, elements, (uint64_t)n + 1);
        ok = write_device(matrices[n], host, bytes);
    }
    free(host);
    return ok;
}

static bool gemm_gflops(const bench_options *options, double *gflops)
{
    const double size = (double)options->gemm_size;
    const size_t bytes =
        (size_t)(options->gemm_size * options->gemm_size) * bench_dtype_bytes(options->desc.dtype);
    void *const matrices[] = {allocate(bytes), allocate(bytes), allocate(bytes)};
    double *times = calloc((size_t)options->repeat, sizeof *times);
    cublas blas = {0};
    bool ok = matrices[0] && matrices[1] && matrices[2] && times;
    if (!ok)
        fprintf(stderr, "hpa-bench: not enough memory for a product of %lld-square matrices\n",
                (long long)options->gemm_size);
    ok = ok && open_cublas(&blas) && fill_matrices(options, matrices, bytes) &&
         time_products(&blas, options, matrices, times);
    if (ok)
        *gflops = 2 * size * size * size / bench_median(times, options->repeat) * 1e-6;
    close_cublas(&blas);
    for (int n = 0; n < 3; n++)
        release(matrices[n]);
    free(times);
    return ok;
}

static const char *gemm_name(const bench_options *options)
{
    static const char *const names[] = {[HPA_F64] = "cuBLAS f64",
                                        [HPA_F32] = "cuBLAS f32",
                                        [HPA_F16] = "cuBLAS f16",
                                        [HPA_BF16] = "cuBLAS bf16"};
    return names[options->desc.dtype];
}

static bool copy_gbytes(const bench_options *options, double *gbytes)
{
    const size_t bytes = (size_t)1 << 30;
    void *from = allocate(bytes), *to = allocate(bytes);
    double *times = calloc((size_t)options->repeat, sizeof *times);
    bool ok = from && to && times;
    if (!ok)
        fprintf(stderr, "hpa-bench: not enough memory for a copy of 1 GiB\n");
    ok = ok && SUCCEEDED(cudaMemsetAsync(from, 0x5a, bytes, stream()));
    for (int64_t r = -1; ok && r < options->repeat; r++) {
        ok = mark(0) &&
             SUCCEEDED(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream())) &&
             mark(1) && wait();
        times[r < 0 ? 0 : r] = elapsed_ms(0, 1);
    }
    if (ok)
        *gbytes = 2 * (double)bytes / bench_median(times, options->repeat) * 1e-6;
    release(from);
    release(to);
    free(times);
    return ok;
}

extern const bench_device bench_cuda;
const bench_device bench_cuda = {
    .allocate = allocate,
    .release = release,
    .write = write_device,
    .read = read_device,
    .stream = stream_of_exec,
    .mark = mark,
    .wait = wait,
    .elapsed_ms = elapsed_ms,
    .gemm_gflops = gemm_gflops,
    .copy_gbytes = copy_gbytes,
    .gemm_name = gemm_name,
    .input_bytes = (size_t)256 << 20,
};
