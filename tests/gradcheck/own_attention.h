/* A small attention that has nothing to do with libhpa, as a user of the checker would bring it:
 * dense softmax attention of two query heads over one key/value head, with a backward written by
 * hand that can be broken on purpose. */
#ifndef HPA_TESTS_OWN_ATTENTION_H
#define HPA_TESTS_OWN_ATTENTION_H

#include <hpa/gradcheck.h>

enum { OWN_HEADS = 2, OWN_QUERIES = 5, OWN_KEYS = 7, OWN_DIM = 4 };

enum own_fault {
    OWN_CORRECT,
    OWN_WRONG_SIGN,    /* of dq */
    OWN_ONE_ELEMENT,   /* of dv is a thousandth too large, and a little more */
    OWN_NO_ACCUMULATE, /* dk is that of the last head alone */
    OWN_NO_DELTA,      /* ds = p * dp */
    OWN_NAN,           /* in one element of dk */
    OWN_INFINITY,      /* in one element of dq */
    OWN_FAULTS
};

struct own_attention {
    double q[OWN_HEADS][OWN_QUERIES][OWN_DIM];
    double k[OWN_KEYS][OWN_DIM];
    double v[OWN_KEYS][OWN_DIM];
    double weights[OWN_HEADS][OWN_QUERIES][OWN_DIM]; /* of the loss */
    double dq[OWN_HEADS][OWN_QUERIES][OWN_DIM];
    double dk[OWN_KEYS][OWN_DIM];
    double dv[OWN_KEYS][OWN_DIM];
};

/* Draws q, k, v and weights. */
void own_attention_fill(struct own_attention *attention);

/* sum of weights * out; context is a struct own_attention. */
double own_attention_loss(void *context);

/* dq, dk and dv of that loss. */
void own_attention_backward(struct own_attention *attention, enum own_fault fault);

/* q, k and v with their gradients, for hpa_gradcheck_loss. */
void own_attention_inputs(struct own_attention *attention, hpa_gradcheck_input inputs[3]);

#endif
