/* The attention of the model: everything that this program asks of libhpa, and all of it through
 * the public header. One plan serves all sparse layers, another all dense ones; each layer has a
 * mask of its own.
 *
 * Symbols: B sequences, T tokens in each, Hq query heads, Hkv key/value heads, D numbers in a head.
 * A row of qkv is one token's Hq query, Hkv key and Hkv value heads, side by side. */
#ifndef DEMO_ATTENTION_H
#define DEMO_ATTENTION_H

#include "arena.h"
#include "backend.h"
#include "failure.h"

#include <stdbool.h>
#include <stdint.h>

enum { MAX_LAYERS = 64 };

typedef enum attention_kind {
    ATTENTION_HIP,    /* sink, window, and the top_k keys that the tree search finds */
    ATTENTION_WINDOW, /* the last keys alone: top_k is given to the window */
    ATTENTION_DENSE   /* every key: top_k is the whole context */
} attention_kind;

typedef struct attention_settings {
    attention_kind kind;
    uint64_t dense_layers; /* bit l: layer l is dense, whatever kind says */
    int64_t block_q, block_k, top_k, sink, window;
    int64_t beam, rep_tokens, leaf_tokens, query_stride, search_span;
    bool share_heads;
    bool reference; /* the library's plain double-precision loops */
} attention_settings;

typedef struct attention_shape {
    int64_t layers, batch, context, heads, kv_heads, head_dim;
} attention_shape;

/* Which mask a forward uses. */
typedef enum mask_use {
    MASK_BUILD,   /* search, and keep the mask in the layer */
    MASK_REUSE,   /* the one that the layer keeps from an earlier batch */
    MASK_EVALUATE /* search, into a spare mask that leaves the layer's alone */
} mask_use;

typedef struct attention attention;

/* Makes the plans, which say how much memory the rest needs. `on` must outlive the result. */
bool attention_create(attention **self, backend *on, const attention_settings *settings,
                      const attention_shape *shape, failure *why);
/* Takes the memory for masks and scratch. */
void attention_lay_out(attention *self, arena *a);
/* Once the memory is there. */
void attention_set_up(attention *self);
void attention_destroy(attention *self); /* NULL is a no-op */

/* qkv (B, T, Hq + 2 Hkv, D) -> out (B, T, Hq, D), operands; lse (B, Hq, T), numbers */
bool attention_forward(attention *self, int64_t layer, mask_use use, void *qkv, void *out,
                       void *lse, failure *why);
/* Writes d_qkv, given what the forward with the layer's own mask read and wrote. */
bool attention_backward(attention *self, int64_t layer, void *qkv, void *out, void *lse,
                        void *d_out, void *d_qkv, failure *why);

/* One new token, for sampling: q (Hq, D) looks back at cache (length, 2 Hkv, D), the keys and
 * values of the tokens up to and including its own. out (Hq, D). All operands. */
bool attention_step(attention *self, int64_t layer, void *q, void *cache, int64_t length, void *out,
                    failure *why);

/* Pairs attended to, as a share of those of dense attention, in the mask of the last forward. */
bool attention_density(attention *self, int64_t layer, double *density, failure *why);

/* The layer's own mask, an address on the backend; NULL before the first MASK_BUILD. */
const void *attention_mask(const attention *self, int64_t layer, int64_t *bytes);
/* Takes a mask from a checkpoint, on the host; refuses one that is damaged or of other shapes. */
bool attention_set_mask(attention *self, int64_t layer, const void *mask, int64_t bytes,
                        failure *why);

/* The mask of one head of sequence 0 in the last forward, as text: a line for each query block, a
 * character for each key block: S sink, W window, # found by the search, . dropped, blank not yet
 * visible. The caller frees *text. */
bool attention_draw_mask(attention *self, int64_t layer, int64_t head, char **text, failure *why);

#endif
