/* Where the model's arrays live and who computes with them: one table of operations, which the CPU
 * serves (cpu.c; layers.c: loops and OpenBLAS) and a CUDA device (device.c; layers.cu: kernels and
 * cuBLAS).
 *
 * There are two kinds of arrays. *Numbers* are weights, their gradients, sums and the residual
 * stream: f32, or f64. *Operands* are what products and attention read and write: bf16 beside
 * numbers of f32, or else of the numbers' type. Both are addresses of the backend, which the host
 * passes on and never reads through: read and write carry elements to and from it.
 *
 * Calls may return before their work is done; it runs in the order of the calls. What fails on the
 * way is kept until the next read, which waits for all the work so far and tells.
 *
 * Every sum runs in an order that depends on shapes and threads alone, so that a run can be
 * repeated to the bit. Every backward that writes the gradient of a weight adds to it, so that
 * several batches can share one step. N is a number of rows, of one token each. */
#ifndef DEMO_BACKEND_H
#define DEMO_BACKEND_H

#include "failure.h"
#include "random.h"

#include <hpa/hpa.h>

#include <stdbool.h>
#include <stdint.h>

typedef struct backend backend;

/* What the time of a step goes to. */
typedef enum phase {
    PHASE_MASK,     /* the search for the keys to keep */
    PHASE_FORWARD,  /* attention over them */
    PHASE_BACKWARD, /* and its gradients */
    PHASE_PRODUCTS, /* of matrices */
    PHASE_REST,
    N_PHASES
} phase;

/* Where a product goes. */
typedef enum into {
    INTO_OPERANDS, /* out (operands) = product */
    INTO_NUMBERS,  /* out (numbers) = product */
    ONTO_NUMBERS   /* out (numbers) += product */
} into;

typedef struct adamw_step {
    double beta1, beta2, weight_decay, learning_rate;
    int64_t decayed; /* weights that decay: the first of all */
    int64_t number;  /* 1, 2, ... */
} adamw_step;

#define NORM_EPSILON 1e-5  /* keeps a row of zeros finite */
#define ADAMW_EPSILON 1e-8 /* and a weight that has no gradient */

typedef struct operations {
    void (*close)(backend *on);

    /* Memory. Allocations start at multiples of 256 bytes and are zero; NULL when there is not
     * enough. available: how many bytes there are for them. */
    void *(*allocate)(backend *on, int64_t bytes);
    void (*release)(backend *on, void *memory);
    int64_t (*available)(backend *on);
    void (*clear)(backend *on, void *to, int64_t bytes);
    void (*copy)(backend *on, void *to, const void *from, int64_t bytes);
    void (*write)(backend *on, void *to, const void *host, int64_t bytes);
    bool (*read)(backend *on, void *host, const void *from, int64_t bytes, failure *why);

    /* The clock. enter: from here on time counts for this phase; gives the one before. read_clock:
     * the seconds of each phase since the last call, after all the work so far. */
    phase (*enter)(backend *on, phase next);
    bool (*read_clock)(backend *on, double seconds[N_PHASES], failure *why);

    /* out (N, O) = in (N, K) weight^T, weight (O, K): operands. */
    void (*linear_forward)(backend *on, into where, void *out, const void *in, const void *weight,
                           int64_t N, int64_t K, int64_t O);
    /* d_in (N, K) is written; d_weight (O, K), numbers, is added to. The rest: operands. */
    void (*linear_backward)(backend *on, void *d_in, void *d_weight, const void *d_out,
                            const void *in, const void *weight, int64_t N, int64_t K, int64_t O);

    /* to (n), operands, = from, numbers, rounded. */
    void (*round)(backend *on, void *to, const void *from, int64_t n);

    /* The residual stream and its norm: sum (N, C) = in (N, C) + branch (N, C), operands; then
     * out (N, C), operands, = weight (C) * sum / root mean square of the row. scale (N) is the
     * reciprocal of that root, kept for the backward. branch NULL: the norm of `in`, and sum is
     * not written. */
    void (*rmsnorm_forward)(backend *on, void *out, void *scale, void *sum, const void *in,
                            const void *branch, const void *weight, int64_t N, int64_t C);
    /* d_in (N, C) is the gradient, INTO_NUMBERS, or that much more, ONTO_NUMBERS; rounded (N, C),
     * operands, is a copy of it, and may be d_in where operands are numbers. d_weight (C) is added
     * to; d_out (N, C): operands; in (N, C): what was normed. */
    void (*rmsnorm_backward)(backend *on, into where, void *d_in, void *rounded, void *d_weight,
                             const void *d_out, const void *in, const void *scale,
                             const void *weight, int64_t N, int64_t C);

    /* Rotates, in place, the first `heads` heads of each row of x (N, stride), operands, by the
     * angles of rope_table. Row n stands at position first + n % T. direction 1 goes forward; -1
     * undoes it, which is also the backward. */
    void (*rope)(backend *on, void *x, const void *table, int64_t N, int64_t T, int64_t first,
                 int64_t stride, int64_t heads, int64_t D, int direction);

    /* out (N, F) = silu(gate) * up, where gate_up (N, 2F) holds gate and up side by side: operands.
     * The backward writes d_gate_up (N, 2F). */
    void (*swiglu_forward)(backend *on, void *out, const void *gate_up, int64_t N, int64_t F);
    void (*swiglu_backward)(backend *on, void *d_gate_up, const void *d_out, const void *gate_up,
                            int64_t N, int64_t F);

    /* out (N, C) = the row of table (V, C) of each token, bytes. d_table (V, C) is added to. */
    void (*embedding_forward)(backend *on, void *out, const uint8_t *tokens, const void *table,
                              int64_t N, int64_t C);
    void (*embedding_backward)(backend *on, void *d_table, const void *d_out, const uint8_t *tokens,
                               int64_t N, int64_t C);

    /* losses (N) = -log probability of the targets, bytes; d_logits (N, V), operands: the gradient
     * of factor * sum of the losses, or NULL. logits (N, V), numbers, are destroyed. */
    void (*cross_entropy)(backend *on, void *losses, void *d_logits, void *logits,
                          const uint8_t *targets, double factor, int64_t N, int64_t V);

    /* The optimizer, on n numbers each. first and second are the running means of the gradient
     * and of its square; rounded (n), operands, is a copy of the new weights, and may be `weights`
     * where operands are numbers. */
    void (*adamw)(backend *on, void *weights, void *rounded, void *first, void *second,
                  const void *gradients, int64_t n, const adamw_step *step);
    void (*scale)(backend *on, void *x, double factor, int64_t n);

    /* Of n numbers, in double precision; they wait for all the work so far. */
    bool (*sum)(backend *on, const void *x, int64_t n, double *sum, failure *why);
    bool (*sum_of_squares)(backend *on, const void *x, int64_t n, double *sum, failure *why);

    /* Draws a byte from softmax(logits (V) / temperature); temperature 0: the likeliest. */
    bool (*draw)(backend *on, const void *logits, int64_t V, double temperature,
                 random_source *source, uint8_t *drawn, failure *why);
} operations;

struct backend {
    const operations *op;
    hpa_device device;
    const char *place; /* in words */
    void *stream;      /* for hpa_exec */
    hpa_dtype number, operand;
    int64_t number_bytes, operand_bytes; /* of one element */
    int64_t allocated, peak;             /* bytes: now, and at the most */
};

typedef enum backend_choice { BACKEND_AUTO, BACKEND_CPU, BACKEND_CUDA } backend_choice;
typedef enum dtype_choice { DTYPE_AUTO, DTYPE_F32, DTYPE_BF16, DTYPE_F64 } dtype_choice;

/* AUTO: a CUDA device where there is one and the program was built for it, otherwise the CPU; bf16
 * there and f32 here. */
bool backend_open(backend **on, backend_choice where, dtype_choice dtype, failure *why);
void backend_close(backend *on); /* NULL is a no-op */

/* That of operands: "f32", ... */
const char *backend_dtype_name(const backend *on);

/* What backend_open chooses from. backend_open_cuda is only there in a build with CUDA. */
bool backend_open_cpu(backend **on, hpa_dtype number, failure *why);
bool backend_open_cuda(backend **on, hpa_dtype operand, failure *why);
bool backend_cuda_is_there(void);

/* Element n of an array: its address, never its value. */
static inline void *number_at(const backend *on, void *numbers, int64_t n)
{
    return (char *)numbers + n * on->number_bytes;
}

static inline void *operand_at(const backend *on, void *operands, int64_t n)
{
    return (char *)operands + n * on->operand_bytes;
}

/* Numbers on the host: what read has brought, or write will take. */
double number_get(const backend *on, const void *host, int64_t n);
void number_set(const backend *on, void *host, int64_t n, double value);

/* Fills table (T, D/2, 2), numbers, with cosine and sine of position * base^(-2i/D). */
bool rope_table(backend *on, void *table, int64_t T, int64_t D, double base, failure *why);

#endif
