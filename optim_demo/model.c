/* The transformer, forward and backward. model_create.c has its memory; (N) is an array of numbers,
 * [N] one of operands: see model.h and backend.h. */
#include "model.h"

#include <stdlib.h>

/* Forward */

/* What a layer leaves for the backward, all but its last product. It begins where the stream is
 * `before` and the branch of the layer before it is still to be added; NULL: nothing is. */
static bool layer_activate(model *self, int64_t l, mask_use use, const void *before,
                           const void *branch, failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, T = s->context, C = s->dim, F = s->hidden;
    int64_t D = s->head_dim, rotated = s->heads + s->kv_heads, width = model_qkv_width(s);
    const layer_weights *w = &self->weights.layer[l];
    layer_activations *a = &self->layer[l];
    backend *on = self->on;
    const operations *op = on->op;

    op->rmsnorm_forward(on, a->attention_normed, a->attention_scale, a->in, before, branch,
                        w->attention_norm, N, C);
    op->linear_forward(on, INTO_OPERANDS, a->qkv, a->attention_normed, w->qkv, N, C, width);
    op->rope(on, a->qkv, self->rope, N, T, 0, width, rotated, D, 1);
    if (!attention_forward(self->attention, l, use, a->qkv, a->attended, a->lse, why))
        return false;
    op->linear_forward(on, INTO_OPERANDS, self->branch, a->attended, w->attention_out, N,
                       s->heads * D, C);

    op->rmsnorm_forward(on, a->mlp_normed, a->mlp_scale, a->middle, a->in, self->branch,
                        w->mlp_norm, N, C);
    op->linear_forward(on, INTO_OPERANDS, a->gate_up, a->mlp_normed, w->gate_up, N, C, 2 * F);
    op->swiglu_forward(on, a->activated, a->gate_up, N, F);
    return true;
}

/* The logits of `rows` rows from `first` on, at the start of self->logits. */
static void head_logits(model *self, int64_t first, int64_t rows)
{
    backend *on = self->on;
    int64_t C = self->shape.dim;
    on->op->linear_forward(on, INTO_NUMBERS, self->logits,
                           operand_at(on, self->last_normed, first * C), self->weights.output, rows,
                           C, VOCABULARY);
}

static int64_t head_rows(const model *self, int64_t first)
{
    int64_t left = self->shape.batch * self->shape.context - first;
    return left < HEAD_ROWS ? left : HEAD_ROWS;
}

bool model_forward(model *self, const uint8_t *tokens, const uint8_t *targets, mask_use use,
                   failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim, F = s->hidden;
    const model_weights *w = &self->weights;
    const void *before = self->layer[0].in, *branch = NULL;
    backend *on = self->on;
    const operations *op = on->op;

    op->write(on, self->tokens, tokens, N);
    op->write(on, self->targets, targets, N);
    op->embedding_forward(on, self->layer[0].in, self->tokens, w->embedding, N, C);
    for (int64_t l = 0; l < s->layers; l++) {
        if (!layer_activate(self, l, use, before, branch, why))
            return false;
        op->linear_forward(on, INTO_OPERANDS, self->branch, self->layer[l].activated,
                           w->layer[l].down, N, F, C);
        before = self->layer[l].middle;
        branch = self->branch;
    }
    op->rmsnorm_forward(on, self->last_normed, self->last_scale, self->last, before, branch,
                        w->final_norm, N, C);
    for (int64_t first = 0; first < N; first += HEAD_ROWS) {
        head_logits(self, first, head_rows(self, first));
        op->cross_entropy(on, number_at(on, self->losses, first), NULL, self->logits,
                          self->targets + first, 0, head_rows(self, first), VOCABULARY);
    }
    return true;
}

bool model_loss(model *self, double *loss, failure *why)
{
    int64_t N = self->shape.batch * self->shape.context;
    if (!self->on->op->sum(self->on, self->losses, N, loss, why))
        return false;
    *loss /= (double)N;
    return true;
}

bool model_read_losses(model *self, failure *why)
{
    int64_t N = self->shape.batch * self->shape.context;
    return self->on->op->read(self->on, self->host_losses, self->losses, N * self->on->number_bytes,
                              why);
}

/* Backward: the forward's lines from last to first. d_stream carries the gradient of the residual
 * stream: a branch out = in + f(in) adds its f'(in) to it. d_rounded is the same as products want
 * it. */

void model_zero_gradients(model *self)
{
    self->on->op->clear(self->on, self->gradients.all, self->n_weights * self->on->number_bytes);
}

static bool layer_backward(model *self, int64_t l, failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, T = s->context, C = s->dim, F = s->hidden;
    int64_t D = s->head_dim, rotated = s->heads + s->kv_heads, width = model_qkv_width(s);
    const layer_weights *w = &self->weights.layer[l];
    const layer_weights *d = &self->gradients.layer[l];
    const layer_activations *a = &self->layer[l];
    backend *on = self->on;
    const operations *op = on->op;

    /* forward: out = middle + activated down^T */
    op->linear_backward(on, self->d_activated, d->down, self->d_rounded, a->activated, w->down, N,
                        F, C);
    /* forward: activated = silu(gate) * up */
    op->swiglu_backward(on, self->d_gate_up, self->d_activated, a->gate_up, N, F);
    /* forward: gate_up = mlp_normed gate_up^T */
    op->linear_backward(on, self->d_normed, d->gate_up, self->d_gate_up, a->mlp_normed, w->gate_up,
                        N, C, 2 * F);
    /* forward: mlp_normed = rmsnorm(middle) */
    op->rmsnorm_backward(on, ONTO_NUMBERS, self->d_stream, self->d_rounded, d->mlp_norm,
                         self->d_normed, a->middle, a->mlp_scale, w->mlp_norm, N, C);

    /* forward: middle = in + attended attention_out^T */
    op->linear_backward(on, self->d_attended, d->attention_out, self->d_rounded, a->attended,
                        w->attention_out, N, s->heads * D, C);
    /* forward: attended = attention(qkv) */
    if (!attention_backward(self->attention, l, a->qkv, a->attended, a->lse, self->d_attended,
                            self->d_qkv, why))
        return false;
    /* forward: q and k turned by their positions   =>   their gradients turn back */
    op->rope(on, self->d_qkv, self->rope, N, T, 0, width, rotated, D, -1);
    /* forward: qkv = attention_normed qkv^T */
    op->linear_backward(on, self->d_normed, d->qkv, self->d_qkv, a->attention_normed, w->qkv, N, C,
                        width);
    /* forward: attention_normed = rmsnorm(in) */
    op->rmsnorm_backward(on, ONTO_NUMBERS, self->d_stream, self->d_rounded, d->attention_norm,
                         self->d_normed, a->in, a->attention_scale, w->attention_norm, N, C);
    return true;
}

/* The loss and the last product, some rows at a time: their logits are computed once more. */
static void head_backward(model *self, double factor)
{
    int64_t N = self->shape.batch * self->shape.context, C = self->shape.dim;
    backend *on = self->on;
    for (int64_t first = 0; first < N; first += HEAD_ROWS) {
        int64_t rows = head_rows(self, first);
        head_logits(self, first, rows);
        /* forward: loss = mean of losses */
        on->op->cross_entropy(on, number_at(on, self->losses, first), self->d_logits, self->logits,
                              self->targets + first, factor / (double)N, rows, VOCABULARY);
        /* forward: logits = last_normed output^T */
        on->op->linear_backward(on, operand_at(on, self->d_normed, first * C),
                                self->gradients.output, self->d_logits,
                                operand_at(on, self->last_normed, first * C), self->weights.output,
                                rows, C, VOCABULARY);
    }
}

bool model_backward(model *self, double factor, failure *why)
{
    const model_shape *s = &self->shape;
    int64_t N = s->batch * s->context, C = s->dim;
    const model_weights *w = &self->weights, *d = &self->gradients;
    backend *on = self->on;

    head_backward(self, factor);
    /* forward: last_normed = rmsnorm(last) */
    on->op->rmsnorm_backward(on, INTO_NUMBERS, self->d_stream, self->d_rounded, d->final_norm,
                             self->d_normed, self->last, self->last_scale, w->final_norm, N, C);
    for (int64_t l = s->layers - 1; l >= 0; l--) {
        /* The activations of the last layer are still there. The layer's own mask is used again, so
         * that the gradient is that of the forward that was run. */
        bool gone = s->checkpoint_layers && l + 1 < s->layers;
        if ((gone && !layer_activate(self, l, MASK_REUSE, self->layer[l].in, NULL, why)) ||
            !layer_backward(self, l, why))
            return false;
    }
    /* forward: in of layer 0 = the embedding's rows */
    on->op->embedding_backward(on, d->embedding, self->d_stream, self->tokens, N, C);
    return true;
}
