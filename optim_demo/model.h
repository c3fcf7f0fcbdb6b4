/* A Llama-style transformer over bytes: RMSNorm, rotary positions, grouped-query attention, SwiGLU,
 * and an embedding that is also the output layer. model.c has its forward and its backward,
 * model_create.c what comes before.
 *
 * All arrays lie on the backend: (N) is an array of numbers, [N] one of operands; see backend.h.
 * Symbols: B sequences, T tokens in each, N = B T rows, C numbers in the residual stream,
 * Hq query heads, Hkv key/value heads, D numbers in a head, F hidden numbers, V bytes. */
#ifndef DEMO_MODEL_H
#define DEMO_MODEL_H

#include "attention.h"
#include "backend.h"
#include "failure.h"

#include <stdint.h>

enum {
    VOCABULARY = 256,
    HEAD_ROWS = 32768 /* that have their logits in memory at a time */
};

typedef struct model_shape {
    int64_t batch;   /* B */
    int64_t context; /* T */
    int64_t layers;
    int64_t dim;      /* C */
    int64_t heads;    /* Hq */
    int64_t kv_heads; /* Hkv */
    int64_t head_dim; /* D */
    int64_t hidden;   /* F */
    double rope_base;
    bool checkpoint_layers; /* keep what enters a layer, compute the rest anew for the backward */
} model_shape;

/* Says which dimension cannot be, and what was expected. */
bool model_shape_check(const model_shape *shape, failure *why);

/* Numbers in a row of q, k and v, side by side. */
static inline int64_t model_qkv_width(const model_shape *s)
{
    return (s->heads + 2 * s->kv_heads) * s->head_dim;
}

/* All weights are one array: the matrices in the order of this list, and then the vectors, so that
 * those that decay are the first. Names are those of Llama checkpoints. */
typedef struct weight_info {
    char name[64];
    int64_t rows, columns; /* columns 0: a vector */
    int64_t offset, count; /* in the array, in elements */
} weight_info;

int64_t model_weight_infos(const model_shape *shape, weight_info *infos); /* infos NULL: counts */

typedef struct layer_weights {
    void *attention_norm; /* (C) */
    void *qkv;            /* [Hq + 2 Hkv, D, C]: q, k and v lie side by side, one product */
    void *attention_out;  /* [C, Hq D] */
    void *mlp_norm;       /* (C) */
    void *gate_up;        /* [2 F, C]: gate and up, likewise */
    void *down;           /* [C, F] */
} layer_weights;

/* The weights of products are operands: rounded copies of the numbers, where those differ. The
 * gradients are all numbers. */
typedef struct model_weights {
    void *all;       /* (n_weights) */
    void *operands;  /* [n_weights], or `all` itself */
    void *embedding; /* (V, C) */
    void *output;    /* [V, C] the same once more, as the last product */
    layer_weights layer[MAX_LAYERS];
    void *final_norm; /* (C) */
} model_weights;

/* What the forward leaves for the backward, layer by layer. With checkpoint_layers, all but `in` is
 * the same memory in each layer. */
typedef struct layer_activations {
    void *in;               /* (N, C) the residual stream on entry */
    void *attention_normed; /* [N, C] */
    void *attention_scale;  /* (N) */
    void *qkv;              /* [N, Hq + 2 Hkv, D], rotated */
    void *attended;         /* [N, Hq, D] */
    void *lse;              /* (B, Hq, T) */
    void *middle;           /* (N, C) the residual stream after attention */
    void *mlp_normed;       /* [N, C] */
    void *mlp_scale;        /* (N) */
    void *gate_up;          /* [N, 2 F] */
    void *activated;        /* [N, F] */
} layer_activations;

typedef struct model {
    model_shape shape;
    backend *on;
    attention *attention;
    int64_t n_infos, n_weights, n_decayed;
    weight_info *infos; /* (n_infos), on the host */
    model_weights weights, gradients;
    void *first_moments, *second_moments; /* (n_weights) AdamW's running means */
    void *rope;                           /* (T, D/2, 2) */
    uint8_t *tokens, *targets;            /* (N) bytes */
    layer_activations layer[MAX_LAYERS];
    void *last;        /* (N, C) the residual stream after the last layer */
    void *last_normed; /* [N, C] */
    void *last_scale;  /* (N) */
    void *logits;      /* (HEAD_ROWS, V) of some rows at a time */
    void *d_logits;    /* [HEAD_ROWS, V] */
    void *losses;      /* (N) */
    void *d_stream;    /* (N, C) */
    void *d_rounded;   /* [N, C] d_stream as a factor of products, or d_stream itself */
    void *branch;      /* [N, C] what a branch adds to the residual stream */
    void *d_normed;    /* [N, C], where the forward has its branches */
    void *d_attended;  /* [N, Hq, D] */
    void *d_qkv;       /* [N, Hq + 2 Hkv, D] */
    void *d_gate_up;   /* [N, 2 F] */
    void *d_activated; /* [N, F] */
    void *memory;      /* all of the above */
    void *host_losses; /* (N) on the host */
} model;

/* Weights, gradients and running means start at zero. `on` must outlive the model. */
bool model_create(model **self, backend *on, const model_shape *shape,
                  const attention_settings *settings, failure *why);
void model_destroy(model *self); /* NULL is a no-op */

/* The same weights for a seed, whatever the backend. */
bool model_initialize(model *self, uint64_t seed, failure *why);
/* To be called after a change of weights.all. */
void model_weights_changed(model *self);

/* tokens and targets (B, T), on the host. Leaves the losses, -log probability of the targets in
 * nats. */
bool model_forward(model *self, const uint8_t *tokens, const uint8_t *targets, mask_use use,
                   failure *why);
/* Adds the gradient of factor * mean loss of the last forward, which was not MASK_EVALUATE. */
bool model_backward(model *self, double factor, failure *why);
/* The mean loss of the last forward. Waits for all the work so far, so ask for it last. */
bool model_loss(model *self, double *loss, failure *why);
/* The losses themselves, into host_losses. */
bool model_read_losses(model *self, failure *why);
void model_zero_gradients(model *self);

#endif
