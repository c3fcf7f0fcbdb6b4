/* Dense attention with a mask applied as -inf, in plain loops: what the kernels are held against. It
 * shares no code with them. Every call reads problem->kept and problem->workspace. */
#ifndef HPA_GRADCHECK_DENSE_H
#define HPA_GRADCHECK_DENSE_H

#include "problem.h"

/* Everything in double. Either output may be NULL. out as q, lse as d_lse. A query that attends to
 * nothing gets out 0 and lse -inf. */
void dense_forward(const struct problem *problem, double *out, double *lse);

/* sum of d_out * out and of d_lse * lse, over the queries that attend to something. */
double dense_loss(const struct problem *problem);

/* The analytic gradients of dense_loss, in double. dq as q, dk and dv as k. */
void dense_backward(const struct problem *problem, double *dq, double *dk, double *dv);

/* probability[j] of every key of the sequence, 0 where the mask hides it; returns lse. */
double dense_probabilities(const struct problem *problem, int64_t b, int64_t head, int64_t i,
                           double *probability);

/* Whether the query attends to any key. */
bool dense_query_sees_a_key(const struct problem *problem, int64_t b, int64_t head, int64_t i);

/* What forward and backward make when every tensor, the scores and probabilities among them, is
 * stored in dtype (f32, f16 or bf16) and every sum runs in float: attention as one matrix operation
 * after the other. */
struct rounded_attention {
    double *out;
    double *lse; /* in float */
    double *dq;
    double *dk;
    double *dv;
};

hpa_status dense_rounded(const struct problem *problem, hpa_dtype dtype,
                         const struct rounded_attention *result);

/* How far off float arithmetic may be expected to be, whatever the order of its sums and however small
 * they are: to first order, where each score is off by one float rounding of the terms that it is
 * summed from, each d_out . v likewise, and out has been stored in dtype. The largest over all
 * elements. */
struct dense_noise {
    double out;
    double lse;
    double dq;
    double dk;
    double dv;
};

hpa_status dense_noise(const struct problem *problem, hpa_dtype dtype, struct dense_noise *noise);

#endif
