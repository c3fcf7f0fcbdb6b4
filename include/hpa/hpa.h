/* hpa.h - the whole C interface of libhpa, hierarchically pruned attention that can be trained.
 *
 * WHAT IT IS
 *   Dense attention compares every query with every key: O(T^2). HiP attention (Hierarchically
 *   Pruned Attention, arXiv 2406.09827) first asks, for each block of queries, which key blocks
 *   score highest, by a tree search over the attention scores themselves, and then attends to those
 *   alone: O(T log T) time, O(T) memory. Nothing is learned, no token is overlooked by design, and
 *   a model trained densely can be fine-tuned through it. This library finds the blocks (the mask),
 *   computes attention over them, and computes the gradients of q, k and v with the mask held
 *   constant. "hpa" has nothing to do with AMD's HIP.
 *
 * LIFE CYCLE           desc -> plan -> mask -> forward -> backward
 *   hpa_desc   What you want: shapes, dtype, how much of the past to keep. A plain struct; start
 *              with hpa_desc_default.
 *   hpa_plan   A checked description and the kernels chosen for it. Immutable: share it between
 *              threads and streams.
 *   mask       One block of bytes that you own: hpa_sizes.mask of them, on the plan's device. It
 *              holds the kept blocks of every query block and, for training, the transpose. It has
 *              no pointers in it: copy it, save it, keep it for many steps. Forward, recomputation
 *              and backward all read the same one.
 *   scratch    Memory that a call may use while it runs and that means nothing afterwards. You own
 *              it too; one buffer of the largest size serves all calls that do not run at once.
 *
 *     hpa_desc desc = hpa_desc_default();
 *     desc.heads_q = 8;
 *     desc.heads_kv = 2;
 *     desc.head_dim = 64;
 *     desc.seq_q = desc.seq_kv = 65536;
 *     hpa_plan *plan;
 *     if (hpa_plan_create(&plan, &desc) != HPA_OK)
 *         return puts(hpa_last_error()), 1;
 *     hpa_sizes sizes;
 *     hpa_plan_sizes(plan, &sizes);
 *     ... allocate mask and scratch ...
 *     hpa_mask_build(plan, &in, mask, &exec);
 *     hpa_forward(plan, mask, &in, &out, &exec);
 *     hpa_backward(plan, mask, &in, &out, &gradients, &exec);
 *     hpa_plan_destroy(plan);
 *
 * MEMORY
 *   The library allocates in hpa_plan_create only, on the host only, and hpa_plan_destroy gives it
 *   back. Every other call works in the buffers that it is handed. Tensors are views (pointer,
 *   shape, strides) and are never owned.
 *
 * THREADS AND STREAMS
 *   Any number of threads may use one plan at the same time, each with its own outputs and scratch.
 *   On the CPU a call returns when its work is done. On CUDA it enqueues its work on exec->stream
 *   and returns; it never synchronises, never uses the default stream of its own accord, and the
 *   number of launches depends on shapes alone, so that every call not marked (sync) can be
 *   captured in a CUDA graph.
 *
 * ERRORS
 *   Every call that can fail returns an hpa_status. A call that fails on its arguments has written
 *   nothing. hpa_last_error() says, for this thread's last failure, which argument, its value, and
 *   what was expected. The library never prints and never ends the process.
 *
 * REPEATABLE
 *   Equal inputs give equal bits: mask, outputs and gradients, whatever the number of threads,
 *   unless allow_nondeterministic is set. Equal scores are ordered by index.
 *
 * SYMBOLS IN THE COMMENTS BELOW
 *   B batch, Hq query heads, Hkv key/value heads, Tq queries, Tk keys, D head_dim,
 *   M = ceil(top_k / block_k). Query head h reads key/value head h / (Hq / Hkv). Query i stands at
 *   key position p(i) = i + Tk - Tq: the last query sees the last key.
 */
#ifndef HPA_HPA_H
#define HPA_HPA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HPA_VERSION_MAJOR 0 /* first part of the version of this header */
#define HPA_VERSION_MINOR 1 /* second part */
#define HPA_VERSION_PATCH 0 /* third part */
/* All three in one number; hpa_version() is that of the library. */
#define HPA_VERSION (HPA_VERSION_MAJOR * 10000 + HPA_VERSION_MINOR * 100 + HPA_VERSION_PATCH)

/* Marks what a shared library shows. */
#if defined(_WIN32) || !defined(__GNUC__)
#define HPA_API
#else
#define HPA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Status */

/* X(name, value, sentence): the one list that the enum, the names, the sentences and the README's
 * table come from. */
#define HPA_STATUS_LIST(X)                                                                       \
    X(HPA_OK, 0, "success")                                                                      \
    X(HPA_INVALID_ARGUMENT, 1000, "an argument is NULL, out of range or contradicts another")    \
    X(HPA_INVALID_SHAPE, 1001, "a tensor's ndim or shape is not what the plan expects")          \
    X(HPA_INVALID_STRIDE, 1002, "a tensor's strides cannot be used, or two outputs overlap")     \
    X(HPA_INVALID_ALIGNMENT, 1003, "a pointer is not aligned for its element or its kernel")     \
    X(HPA_INVALID_DTYPE, 1004, "a dtype is unknown or not the plan's")                           \
    X(HPA_INVALID_DEVICE, 1005, "a device is unknown or there is no such device_id")             \
    X(HPA_INVALID_STRUCT_SIZE, 1006, "struct_size is not that of this library's hpa_desc")       \
    X(HPA_INVALID_MASK, 1007, "the mask was not built by a plan of these shapes, or is damaged") \
    X(HPA_BUFFER_TOO_SMALL, 1008, "a buffer has fewer bytes or elements than the call needs")    \
    X(HPA_UNSUPPORTED, 2000, "no kernel serves this combination")                                \
    X(HPA_UNSUPPORTED_ARCHITECTURE, 2001, "no kernel was built for this device's architecture")  \
    X(HPA_BACKEND_NOT_BUILT, 2002, "the library was built without this backend")                 \
    X(HPA_NO_DEVICE, 2003, "the machine has no such device or no driver for it")                 \
    X(HPA_OUT_OF_MEMORY, 3000, "the host is out of memory")                                      \
    X(HPA_CUDA_ERROR, 4000, "a CUDA call or a launch failed")                                    \
    X(HPA_INTERNAL_ERROR, 5000, "a bug in the library")

/* What a call returns. */
typedef enum hpa_status {
#define HPA_STATUS_ENUM(name, value, sentence) name = value,
    HPA_STATUS_LIST(HPA_STATUS_ENUM)
#undef HPA_STATUS_ENUM
} hpa_status;

/* Such as "HPA_INVALID_SHAPE"; "HPA_UNKNOWN_STATUS" for any other number. Static text. */
HPA_API const char *hpa_status_name(hpa_status status);

/* The status in a sentence; "unknown status" for any other number. Static text. */
HPA_API const char *hpa_status_string(hpa_status status);

/* This thread's last failure in words: argument, value, what was expected. "" before the first
 * failure. The text stays until the next failing call on this thread. */
HPA_API const char *hpa_last_error(void);

/* HPA_VERSION of the library that is loaded, which may differ from that of the header. */
HPA_API int hpa_version(void);

/* One line: version, commit, compilers, instruction sets or architectures. Static text. */
HPA_API const char *hpa_build_info(void);

/* Tensors */

/* Where tensors lie. The numbers are DLPack's. */
typedef enum hpa_device { HPA_CPU = 1, HPA_CUDA = 2 } hpa_device;

/* The type of a tensor's elements. */
typedef enum hpa_dtype {
    HPA_F64 = 1,
    HPA_F32 = 2,
    HPA_F16 = 3,
    HPA_BF16 = 4,
    HPA_I32 = 5,
    HPA_I64 = 6
} hpa_dtype;

/* A view of memory that somebody else owns.
 * Logical order, whatever the memory order: [batch, head, token, dim], or packed
 * [token, head, dim]; lse has no dim: [batch, head, token], or packed [token, head].
 * stride[n] is in elements, never negative; the stride of dim is 1. [B, H, T, D], [B, T, H, D] and
 * the three parts of one packed QKV buffer are therefore the same call with other strides.
 * Outputs may interleave but not overlap. On CUDA the tensor-core kernels read 16 bytes at a time:
 * a call whose 16-bit rows do not begin at multiples of that is run by the any-shape kernels, which
 * are many times slower. */
typedef struct hpa_tensor {
    void *data;        /* of the first element */
    hpa_dtype dtype;   /* of every element */
    int32_t ndim;      /* 4 or 3, lse 3 or 2 */
    int64_t shape[4];  /* ndim of them count; so too stride */
    int64_t stride[4]; /* in elements */
} hpa_tensor;

/* Description */

/* What you want. hpa_desc_default fills in everything but the lengths. */
typedef struct hpa_desc {
    size_t
        struct_size;   /* sizeof(hpa_desc), set by hpa_desc_default: the header you compiled with */
    hpa_device device; /* where tensors, mask and scratch live */
    int32_t device_id; /* CUDA ordinal; 0 for the CPU */
    int32_t
        num_threads; /* CPU: threads of one call, 0: OpenMP's choice. Results do not depend on it */
    hpa_dtype dtype; /* of q, k, v, out and their gradients. lse is f32, and f64 when dtype is f64.
                        16-bit types are storage only: sums run in f32 */

    int64_t batch;    /* B, sequences, at least 1 */
    int64_t heads_q;  /* Hq, a multiple of heads_kv */
    int64_t heads_kv; /* Hkv */
    int64_t head_dim; /* D, a multiple of 8, at most 256 */
    int64_t seq_q;    /* Tq; when packed, no sequence has more queries. 0 is allowed */
    int64_t seq_kv;   /* Tk; when packed, no sequence has more keys. 0 is allowed */
    bool packed;      /* variable lengths laid end to end, with cu_seqlens in hpa_inputs */
    int64_t total_q;  /* packed only: rows of q, at least cu_seqlens_q[B] */
    int64_t total_kv; /* packed only: rows of k and v, at least cu_seqlens_kv[B] */

    bool causal;  /* query i sees keys j <= p(i) */
    double scale; /* of the scores, >= 0; 0 means 1 / sqrt(head_dim) */

    int32_t block_q; /* queries that share one list of kept blocks: a multiple of 16, 16 to 256 */
    int32_t block_k; /* keys in a block: 16, 32, 64 or 128 */
    int32_t top_k;   /* keys kept by the search, rounded up to blocks. 0: none. >= Tk: dense */
    int32_t sink;    /* first keys, always kept, rounded up to whole blocks */
    int32_t window;  /* last keys before each query, always kept, in whole blocks. Causal: at least
                        1, so that every query sees itself. Not causal: on either side, 0 is none */

    int32_t beam;       /* tree nodes carried from level to level, in units of M. More finds more */
    int32_t rep_tokens; /* keys scored for a node of the tree, which is judged by them and by those
                           of the node it was split from that lie in it */
    int32_t leaf_tokens;  /* the same for a node at the last level, block_k: every key */
    int32_t query_stride; /* every how many queries of a block take part in the search */
    int32_t search_span;  /* neighbouring query blocks that share the coarse levels of the search,
                             which the first of them does, faster and worse: 1 to 64, 1: each
                             searches for itself, as it does, whatever is set, when not causal */
    bool share_heads;     /* one mask for all query heads of a key/value head, not one for each */

    bool training;               /* the mask carries its transpose, which hpa_backward needs */
    bool allow_nondeterministic; /* let a faster backward add in any order */
    bool reference;              /* run the plain double-precision loops, to compare with */
} hpa_desc;

/* One causal f32 sequence with one head of 64 on the CPU, training on, and the default knobs:
 * block_q 128, block_k 64, top_k 1024, sink 64, window 512, beam 2, rep_tokens 4, leaf_tokens 8,
 * query_stride 1, search_span 1, share_heads off. Set the lengths. */
HPA_API hpa_desc hpa_desc_default(void);

/* How carefully to search: settings of the knobs that trade quality against time. Behind each what
 * the README measures at 16,384 tokens, 19% of the pairs kept: by how many nats a model's loss is
 * above that with dense attention, how many planted keys it recalls (dense: 98%), and the time of
 * mask, forward and backward (dense: 28.5 ms). */
typedef enum hpa_preset {
    HPA_PRESET_FAST = 1,     /* the cheapest search: +0.007, 41%, 7.6 ms */
    HPA_PRESET_BALANCED = 2, /* the knobs of hpa_desc_default: +0.001, 47%, 8.0 ms */
    HPA_PRESET_FAITHFUL = 3  /* closest to dense attention: -0.001, 97%, 10.1 ms */
} hpa_preset;

/* Sets block_q, block_k, beam, rep_tokens, leaf_tokens, query_stride, search_span and share_heads,
 * and leaves all else alone: shapes, device, and how much is kept (top_k, window, sink). Fields may
 * be changed afterwards as before. Errors, which leave *desc as it was: HPA_INVALID_ARGUMENT, _STRUCT_SIZE. */
HPA_API hpa_status hpa_desc_set_preset(hpa_desc *desc, hpa_preset preset);

/* Plan */

/* A checked description and the kernels chosen for it, which nothing changes any more. */
typedef struct hpa_plan hpa_plan;

/* Checks *desc and chooses the kernels. On success *plan is a new plan to be given to
 * hpa_plan_destroy; on failure *plan is NULL and hpa_last_error() says which field was wrong and
 * what was expected, so this is the support check as well. Errors: HPA_INVALID_ARGUMENT, _DTYPE,
 * _DEVICE, _STRUCT_SIZE, HPA_UNSUPPORTED, HPA_UNSUPPORTED_ARCHITECTURE, HPA_BACKEND_NOT_BUILT,
 * HPA_NO_DEVICE, HPA_OUT_OF_MEMORY. */
HPA_API hpa_status hpa_plan_create(hpa_plan **plan, const hpa_desc *desc);

/* NULL is a no-op. */
HPA_API void hpa_plan_destroy(hpa_plan *plan);

/* Bytes of the buffers that the caller brings. A size of 0 means that NULL will do. */
typedef struct hpa_sizes {
    size_t mask;             /* of the mask itself */
    size_t mask_scratch;     /* for hpa_mask_build and the (sync) calls */
    size_t forward_scratch;  /* for hpa_forward */
    size_t backward_scratch; /* 0 when training is false */
} hpa_sizes;

/* They depend on the description alone, and on the device where it is CUDA. */
HPA_API hpa_status hpa_plan_sizes(const hpa_plan *plan, hpa_sizes *sizes);

/* Text that lives as long as the plan: kernels chosen and why, tree levels, mask rows, blocks a row
 * can keep. */
HPA_API const char *hpa_plan_describe(const hpa_plan *plan);

/* Work */

/* How to run a call. mask, scratch and the start of every scratch buffer are aligned to 16 bytes.
 * A NULL hpa_exec means no stream and no scratch. */
typedef struct hpa_exec {
    void *stream;         /* CUDA: a cudaStream_t; CPU: ignored */
    void *scratch;        /* on the plan's device */
    size_t scratch_bytes; /* at least what hpa_sizes says for the call, else HPA_BUFFER_TOO_SMALL
                             and nothing written */
} hpa_exec;

/* What all three calls read. */
typedef struct hpa_inputs {
    hpa_tensor q;                 /* [B, Hq, Tq, D], or packed [total_q, Hq, D] */
    hpa_tensor k;                 /* [B, Hkv, Tk, D], or packed [total_kv, Hkv, D] */
    hpa_tensor v;                 /* as k; not read by hpa_mask_build, which ignores it */
    const int32_t *cu_seqlens_q;  /* packed only, else ignored: [B + 1] from 0, never falling, */
    const int32_t *cu_seqlens_kv; /* on the plan's device. Sequence b, which may be empty, is rows
                                     cu_seqlens[b] ... cu_seqlens[b + 1] - 1 */
} hpa_inputs;

/* What hpa_forward writes and hpa_backward reads. */
typedef struct hpa_outputs {
    hpa_tensor out; /* shape of q */
    hpa_tensor lse; /* log sum exp of the scaled scores: [B, Hq, Tq], or packed [total_q, Hq] */
} hpa_outputs;

/* What hpa_backward reads besides, and what it writes. */
typedef struct hpa_gradients {
    hpa_tensor d_out; /* in: shape of q */
    hpa_tensor d_lse; /* in: shape of lse. data NULL: zero. Needed when partial results are merged
                         by their lse */
    hpa_tensor dq; /* out: shape of q. data NULL: not wanted, its work is not done; so too dk, dv */
    hpa_tensor dk; /* out: shape of k */
    hpa_tensor dv; /* out: shape of v */
    bool accumulate; /* add to dq, dk and dv instead of writing them */
} hpa_gradients;

/* Chooses the kept key blocks of every query block from q and k, and writes the mask.
 * mask: hpa_sizes.mask bytes. A NaN score counts as -inf, so garbage in q or k cannot crash the
 * search. Source: algorithm 1 of arXiv 2406.09827, in the block form that mask/mask_ref.c spells
 * out. */
HPA_API hpa_status hpa_mask_build(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                  const hpa_exec *exec);

/* out = softmax(scale * q k^T over the kept, visible keys) v, and lse. A query that sees no key
 * gets out 0, lse -inf. A NaN or Inf in a key that takes part reaches the rows that keep it, and no
 * others; on CUDA the others near it may be rounded differently then. Packed rows past
 * cu_seqlens_q[B] are left as they are. Errors: those of the arguments, HPA_INVALID_MASK,
 * HPA_BUFFER_TOO_SMALL. */
HPA_API hpa_status hpa_forward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_exec *exec);

/* dq, dk and dv of a loss whose gradients at out and lse are d_out and d_lse, the mask held
 * constant (selection is piecewise constant, so its derivative is zero wherever it exists). out is
 * what hpa_forward wrote for this mask. Needs desc.training. Every element is written, or added to
 * with accumulate. A NaN or Inf reaches the gradients of the queries and keys that meet it, and, as
 * in hpa_forward, changes at most the rounding of others. */
HPA_API hpa_status hpa_backward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                                const hpa_outputs *out, const hpa_gradients *grads,
                                const hpa_exec *exec);

/* Looking into a mask (sync) */

/* Rows are counted in the order (sequence, mask head, query block); sequence b has mask_heads *
 * ceil(Tq[b] / block_q) of them, mask_heads being heads_q, or heads_kv with share_heads. These
 * calls wait for their answer. Arrays are on the host. exec gives the stream and mask_scratch bytes
 * of scratch. */

/* A mask in numbers. */
typedef struct hpa_mask_stats {
    int64_t rows;       /* one for each sequence, mask head and query block */
    int64_t blocks;     /* kept, over all rows */
    int64_t empty_rows; /* rows that keep nothing */
    int64_t row_min;    /* fewest blocks in a row */
    int64_t row_max;    /* most blocks in a row */
    int64_t column_max; /* most query blocks that keep one key block: the longest list of the
                           transpose */
    double density; /* pairs attended to / pairs that dense attention computes; 0 where it computes
                       none */
    uint64_t fingerprint; /* equal masks have equal numbers, on any backend */
} hpa_mask_stats;

/* Counts what the mask keeps. */
HPA_API hpa_status hpa_mask_statistics(const hpa_plan *plan, const void *mask,
                                       hpa_mask_stats *stats, const hpa_exec *exec);

/* HPA_OK when every list is ascending, unique, in range, causal, and the transpose says the same as
 * the rows. Trusts no byte of the mask; else HPA_INVALID_MASK, and hpa_last_error() says where. */
HPA_API hpa_status hpa_mask_validate(const hpa_plan *plan, const void *mask, const hpa_exec *exec);

/* The mask as compressed sparse rows: row r keeps blocks[row_ptr[r]] ... blocks[row_ptr[r + 1] - 1],
 * ascending.
 *   row_ptr   [rows + 1], or NULL: not wanted
 *   blocks    [*n_blocks], or NULL: not wanted
 *   n_blocks  in: elements that blocks can hold; out: kept blocks
 * HPA_BUFFER_TOO_SMALL writes the number needed to *n_blocks and nothing else. With both arrays
 * NULL it only counts. */
HPA_API hpa_status hpa_mask_export_csr(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                                       int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec);

/* Writes a mask from compressed sparse rows, which are checked and may come from anywhere:
 * HPA_INVALID_MASK where a row is not ascending, unique, in range and causal, or is longer than the
 * plan's rows can be (hpa_plan_describe). What the search would have kept does not matter. in: its
 * cu_seqlens are read when packed; else it may be NULL. blocks may be NULL when no row keeps any. */
HPA_API hpa_status hpa_mask_import_csr(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                                       const int64_t *row_ptr, const int32_t *blocks,
                                       const hpa_exec *exec);

/* Draws the mask of one sequence and mask head as text, a line for each query block and a character
 * for each key block: S sink, W window, # found by the search, . visible and dropped, blank not
 * visible. As snprintf: writes at most size bytes with the closing 0 and returns the length of the
 * whole text, or -1 on an error. */
HPA_API int hpa_mask_snprint(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head,
                             char *text, size_t size, const hpa_exec *exec);

#ifdef __cplusplus
}
#endif
#endif
