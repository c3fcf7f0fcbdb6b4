/* What the calls that look into a mask in device memory share: their scratch, the report that
 * kernels leave in it, and how kernels walk over rows. Kernels leave what was asked for in scratch,
 * from where little or one piece after another is copied to the host; nothing is allocated. */
#ifndef HPA_MASK_INSPECT_CUDA_CUH
#define HPA_MASK_INSPECT_CUDA_CUH

#include "core/check.h"
#include "core/cuda/rows.cuh"
#include "mask/inspect.h"
#include "mask/kernels_cuda.h"

#include <inttypes.h>

#define THREADS 256
#define MOST_BLOCKS 1024 /* grids that stride over the rest */
#define PIECE (1 << 18)  /* elements of a list or a drawing that are copied at a time */
#define NONE INT64_MAX   /* as the number of the first row or column with a fault */

/* What kernels report. */
struct report {
    hpa_mask_stats stats;
    int64_t kept_pairs, dense_pairs;
    int64_t bad_length;         /* the first sequence whose lengths are damaged */
    int64_t bad_row, stray_row; /* the first row with a fault; not empty though no query block */
    int64_t bad_start, bad_column;
    int64_t total; /* kept blocks */
};

/* One row, column or sequence in detail. */
struct detail {
    hpa_sequence sequence;
    int64_t mask_head, block; /* query block of a row, key block of a column */
    int64_t query_block;      /* the first wrong entry of a column */
    row_problem problem;
    int64_t length;
};

/* Parts of the scratch. */
struct inspect_scratch {
    report *found;
    detail *explained;
    int64_t *row_offsets;   /* [rows + 1] */
    int64_t *csr_offsets;   /* [rows + 1] */
    int64_t *sequence_rows; /* [batch + 1] */
    int64_t *column_counts; /* [columns + 1] */
    int64_t *scan;
    int32_t *piece; /* [PIECE + 1] */
};

/* What every call here has in hand. */
struct inspection {
    const hpa_plan *plan;
    const hpa_geometry *g;
    hpa_mask m;
    inspect_scratch s;
    cudaStream_t stream;
    int32_t device_before;
};

/* Fills *x and makes the plan's device the current one, until hpa_cuda_leave. */
hpa_status hpa_inspect_begin(inspection *x, const hpa_plan *plan, const void *mask,
                             const hpa_exec *exec);

/* The mask's header is that of the plan. Waits. */
hpa_status hpa_inspect_check_header(const inspection *x);

/* A report of nothing found. */
hpa_status hpa_inspect_begin_report(const inspection *x);

/* found->bad_length: the first sequence that is longer than the plan allows, or ends before it
 * begins. */
hpa_status hpa_inspect_check_lengths(const inspection *x, const int32_t *cu_seqlens_q,
                                     const int32_t *cu_seqlens_kv);

/* The calls that have a file of their own; as in hpa_mask_inspector. */
hpa_status hpa_mask_validate_cuda(const hpa_plan *plan, const void *mask, const hpa_exec *exec);
hpa_status hpa_mask_export_csr_cuda(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                                    int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec);
hpa_status hpa_mask_import_csr_cuda(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                    const int64_t *row_ptr, const int32_t *blocks,
                                    const hpa_exec *exec);

/* Waits for the copy. */
static inline hpa_status to_host(const inspection *x, void *to, const void *from, size_t bytes)
{
    HPA_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, x->stream));
    return hpa_cuda_status(cudaStreamSynchronize(x->stream), "cudaStreamSynchronize");
}

static inline hpa_status to_device(const inspection *x, void *to, const void *from, size_t bytes)
{
    return hpa_cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, x->stream),
                           "cudaMemcpyAsync");
}

template <typename... Parameters, typename... Arguments>
static hpa_status launch(const inspection *x, const char *name, void (*kernel)(Parameters...),
                         int64_t work, Arguments &&...arguments)
{
    const int64_t blocks = hpa_min(hpa_ceil_div(work, THREADS), MOST_BLOCKS);
    return hpa_cuda_launch(name, kernel, dim3((unsigned)blocks), THREADS, 0, x->stream,
                           std::forward<Arguments>(arguments)...);
}

/* Walking */

static __device__ __forceinline__ int64_t first_of_thread()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t thread_count()
{
    return (int64_t)gridDim.x * blockDim.x;
}

/* The row in a slot; false where the slot has none. *s is what row->sequence points at. */
static inline __device__ bool find_slot(const hpa_geometry &g, const hpa_mask &m, int64_t slot,
                                        hpa_sequence *s, row_view *row)
{
    *s = sequence_of(g, m, hpa_batch_of_row(&g, m.cu_seqlens_q, slot));
    const int64_t local = slot - g.mask_heads * s->row_start;
    if (local < 0 || s->row_slots <= 0)
        return false;
    const int64_t head = local / s->row_slots, query_block = local % s->row_slots;
    if (head >= g.mask_heads || query_block >= s->query_blocks)
        return false;
    *row = row_at(&g, &m, s, head, query_block);
    return true;
}

static __device__ __forceinline__ void add(void *to, int64_t value)
{
    if (value != 0)
        atomicAdd(static_cast<unsigned long long *>(to), (unsigned long long)value);
}

static __device__ __forceinline__ void lower(int64_t *to, int64_t value)
{
    atomicMin(reinterpret_cast<long long *>(to), (long long)value);
}

static __device__ __forceinline__ void raise(int64_t *to, int64_t value)
{
    atomicMax(reinterpret_cast<long long *>(to), (long long)value);
}

#endif
