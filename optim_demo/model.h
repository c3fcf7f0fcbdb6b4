/* A Llama-style transformer over bytes: RMSNorm, rotary positions, grouped-query attention, SwiGLU,
 * and an embedding that is also the output layer. model.c has its forward and its backward.
 *
 * Symbols: B sequences, T tokens in each, N = B T rows, C numbers in the residual stream,
 * Hq query heads, Hkv key/value heads, D numbers in a head, F hidden numbers, V bytes. */
#ifndef DEMO_MODEL_H
#define DEMO_MODEL_H

#include "attention.h"
#include "failure.h"
#include "real.h"

#include <stdint.h>

enum { VOCABULARY = 256 };

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
} model_shape;

/* Says which dimension cannot be, and what was expected. */
bool model_shape_check(const model_shape *shape, failure *why);

/* All weights are one array, in the order of this list. Names are those of Llama checkpoints. */
typedef struct weight_info {
    char name[64];
    int64_t rows, columns; /* columns 0: a vector */
    int64_t offset, count; /* in the array, in elements */
} weight_info;

int64_t model_weight_infos(const model_shape *shape, weight_info *infos); /* infos NULL: counts */

typedef struct layer_weights {
    real *attention_norm; /* (C) */
    real *qkv;            /* (Hq + 2 Hkv, D, C): q, k and v lie side by side, one product */
    real *attention_out;  /* (C, Hq D) */
    real *mlp_norm;       /* (C) */
    real *gate_up;        /* (2 F, C): gate and up, likewise */
    real *down;           /* (C, F) */
} layer_weights;

typedef struct model_weights {
    real *all;       /* (count) */
    real *embedding; /* (V, C) */
    layer_weights layer[MAX_LAYERS];
    real *final_norm; /* (C) */
} model_weights;

/* What the forward leaves for the backward, layer by layer. */
typedef struct layer_activations {
    real *in;               /* (N, C) the residual stream on entry */
    real *attention_normed; /* (N, C) */
    real *attention_scale;  /* (N) */
    real *qkv;              /* (N, Hq + 2 Hkv, D), rotated */
    real *attended;         /* (N, Hq, D) */
    real *lse;              /* (B, Hq, T) */
    real *middle;           /* (N, C) the residual stream after attention */
    real *mlp_normed;       /* (N, C) */
    real *mlp_scale;        /* (N) */
    real *gate_up;          /* (N, 2 F) */
    real *activated;        /* (N, F) */
} layer_activations;

typedef struct model {
    model_shape shape;
    attention *attention;
    int64_t n_infos, n_weights;
    weight_info *infos;               /* (n_infos) */
    model_weights weights, gradients; /* (n_weights) each */
    real *rope;                       /* (T, D/2, 2) */
    layer_activations layer[MAX_LAYERS];
    real *last;                /* (N, C) the residual stream after the last layer */
    real *last_normed;         /* (N, C) */
    real *last_scale;          /* (N) */
    real *probabilities;       /* (N, V) */
    real *losses;              /* (N) */
    real *d_stream, *d_normed; /* (N, C) */
    real *d_attended;          /* (N, Hq, D) */
    real *d_qkv;               /* (N, Hq + 2 Hkv, D) */
    real *d_gate_up;           /* (N, 2 F) */
    real *d_activated;         /* (N, F) */
    void *memory;              /* all of the above */
} model;

/* Weights and gradients start at zero. */
bool model_create(model **self, const model_shape *shape, const attention_settings *settings,
                  failure *why);
void model_destroy(model *self); /* NULL is a no-op */
void model_initialize(model *self, uint64_t seed);

/* tokens and targets (B, T); *loss is the mean of -log probability of the targets, in nats. */
bool model_forward(model *self, const uint8_t *tokens, const uint8_t *targets, mask_use use,
                   double *loss, failure *why);
/* Adds the gradient of factor * loss of the last forward, which was not MASK_EVALUATE. */
bool model_backward(model *self, const uint8_t *tokens, const uint8_t *targets, double factor,
                    failure *why);
void model_zero_gradients(model *self);
void model_scale_gradients(model *self, double factor);

#endif
