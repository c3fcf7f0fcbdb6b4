/* gradcheck.h - checks gradients against finite differences: yours, and libhpa's.
 *
 * WHAT IT IS
 *   A backward pass is easy to get almost right: training still goes down, only worse. The one sure
 *   test is to move an input a little, to look how the loss moves, and to compare that with the
 *   gradient that the backward pass gave. This library does so in two ways:
 *
 *     hpa_gradcheck_loss        any loss function of tensors that you write: your own attention, a
 *                               layer around it, a norm. It need not use libhpa at all.
 *     hpa_gradcheck_attention   libhpa's attention for one description, or a backward of your own in
 *                               its place. The numeric side never touches the kernels: it is dense
 *                               attention in plain double-precision loops, with the mask that the
 *                               library built, exported and held fixed, applied as -inf.
 *
 *   The program hpa-gradcheck is the second one with a command line.
 *
 * LIFE CYCLE           options -> check -> report
 *   hpa_gradcheck_options   How far to step and how closely to look. A plain struct; start with
 *                           hpa_gradcheck_options_default or hpa_gradcheck_attention_options.
 *   the check               One call. It allocates what it needs and frees it before it returns.
 *   hpa_gradcheck_report    A plain struct of yours that the call fills in. It holds no pointers
 *                           into the checker: copy it, print it, drop it.
 *
 *     static double loss(void *context)
 *     {
 *         struct layer *layer = context;
 *         layer_forward(layer);                  // reads layer->x, writes layer->y
 *         return weighted_sum(layer->y, layer->weights);
 *     }
 *     ...
 *     layer_backward(layer);                     // d_y = weights; writes layer->dx
 *     hpa_gradcheck_input input = {.name = "x", .value = layer->x, .gradient = layer->dx};
 *     hpa_gradcheck_options options = hpa_gradcheck_options_default();
 *     hpa_gradcheck_report report;
 *     if (hpa_gradcheck_loss(loss, layer, &input, 1, &options, &report) != HPA_OK || !report.passed)
 *         return puts(report.message), 1;
 *
 * CHOOSING A LOSS
 *   Weigh every output with a random number of its own. A plain sum hides mistakes: the outputs of
 *   a softmax sum to one, so many wrong gradients of that sum are rightly zero.
 *
 * HOW CLOSE IS CLOSE
 *   For a gradient element a (analytic, yours) and n (numeric, a difference quotient),
 *
 *     size           = max(|a|, |n|, 1e-3 * the largest |n| in that input)
 *     absolute error = |a - n|
 *     relative error = |a - n| / size
 *     agrees         when |a - n| <= atol + rtol * size
 *
 *   The last term of size is there because a difference quotient has an absolute error of its own,
 *   which says nothing about an element that happens to be a thousand times smaller than its
 *   neighbours. NaN and infinity never agree with anything.
 *
 *   A quotient of order 2, (f(x + e) - f(x - e)) / 2e, errs by e^2 f''' / 6 from truncation and by
 *   about 1e-16 |f| / e from rounding. At the customary e = 1e-6 the rounding alone is 1e-10 of
 *   |f|: fine for telling right from wrong with rtol 1e-3, too coarse for a relative error of 1e-6.
 *   A quotient of order 4, (8 f(x + e) - 8 f(x - e) - f(x + 2e) + f(x - 2e)) / 12e, errs by
 *   e^4 f''''' / 30, so that it affords a larger e and with it a rounding error a thousand
 *   times smaller. The check of the library's attention uses order 4 and e = 2^-10, where the two
 *   errors meet. Measured on 257 tokens, the worst relative error of right gradients: order 2 and
 *   2^-20, 5e-6; order 2 at its best, 2^-14, 9e-8; order 4 and 2^-10, 5e-9.
 *
 * ERRORS
 *   A check that could not be made returns a status other than HPA_OK, and report.message says which
 *   argument was wrong, its value, and what was expected. A check that was made returns HPA_OK, and
 *   report.passed is the verdict. report.passed is false in every other case.
 *
 * THREADS
 *   No globals. Calls on different tensors may run at the same time.
 */
#ifndef HPA_GRADCHECK_H
#define HPA_GRADCHECK_H

#include <hpa/hpa.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Options */

/* How far to step and how closely to look. */
typedef struct hpa_gradcheck_options {
    double eps;    /* the step e, > 0. The element becomes x + e and x - e (and x +- 2e) */
    int32_t order; /* 2 or 4: two or four evaluations of the loss for each element */
    double atol;   /* >= 0, see HOW CLOSE IS CLOSE */
    double rtol;   /* >= 0 */

    int64_t samples;    /* elements of each input that are compared one by one: all of them where it
                           has no more than this, else one drawn from each of so many equal
                           stretches. 0: all */
    int32_t directions; /* random directions in the space of a whole input along which the slope is
                           compared too, where not every element was. A direction has norm 1 and
                           catches a wrong element that no sample fell on */
    uint64_t seed;      /* of samples, directions, and random tensors. Equal seeds, equal checks */
} hpa_gradcheck_options;

/* For hpa_gradcheck_loss, as torch.autograd.gradcheck: eps 1e-6, order 2, atol 1e-5, rtol 1e-3.
 * samples 4096, directions 4, seed 0. */
HPA_API hpa_gradcheck_options hpa_gradcheck_options_default(void);

/* For hpa_gradcheck_attention: eps 2^-10, order 4, atol 1e-10, rtol 1e-6. samples 2048, directions
 * 1, seed 0. */
HPA_API hpa_gradcheck_options hpa_gradcheck_attention_options(void);

/* Report */

/* What a line of the report compares. */
typedef enum hpa_gradcheck_kind {
    HPA_GRADCHECK_GRADIENT = 1, /* analytic against numeric gradients */
    HPA_GRADCHECK_OUTPUT = 2,   /* what the forward pass wrote against the dense forward pass */
    HPA_GRADCHECK_PROPERTY = 3  /* something that must hold exactly, or to rounding */
} hpa_gradcheck_kind;

#define HPA_GRADCHECK_NAME_SIZE 24 /* bytes of a name, the closing 0 among them */

/* One line of the report. */
typedef struct hpa_gradcheck_result {
    char name[HPA_GRADCHECK_NAME_SIZE]; /* of the tensor or the property */
    hpa_gradcheck_kind kind;            /* of comparison */
    bool passed;                        /* every comparison agrees */
    int64_t elements;                   /* that the tensor has */
    int64_t checked;                    /* of them, compared one by one */
    int64_t directions;                 /* random directions compared besides */
    double max_abs_error;               /* over all comparisons; NaN once one of them was NaN */
    double max_rel_error;               /* likewise */

    /* The worst comparison: the one whose error is the largest part of what is allowed. */
    int64_t direction; /* the number of the direction, or -1: an element */
    int32_t ndim;      /* of index; 0 for a direction, and where nothing was compared */
    int64_t index[4];  /* where the element is, in the tensor's logical order */
    double analytic;   /* what the code under test says */
    double numeric;    /* what the checker says */
    double allowed;    /* the largest |analytic - numeric| that passes here */

    /* dtypes below f64: the largest error that dense attention in the same dtype makes, on which
     * allowed is based. Otherwise 0. */
    double dense_error;
} hpa_gradcheck_result;

#define HPA_GRADCHECK_MAX_RESULTS 16 /* lines of a report, at most */

/* All lines of the report. */
typedef struct hpa_gradcheck_report {
    bool passed;          /* every result passed */
    int64_t checked;      /* elements and directions compared, over the gradients */
    double max_abs_error; /* over the gradients; NaN once one comparison was NaN */
    double max_rel_error; /* likewise */
    int32_t n_results;    /* that results holds */
    hpa_gradcheck_result results[HPA_GRADCHECK_MAX_RESULTS]; /* one for each comparison made */
    uint64_t fingerprint; /* hpa_gradcheck_attention: of the mask. Else 0 */
    double density;       /* hpa_gradcheck_attention: of the mask. Else 0 */
    char message[512];    /* one line: what went wrong or what does not agree; "" when passed */
} hpa_gradcheck_report;

/* Your own loss */

/* Computes the loss from the caller's tensors as they are now. Called many times; must depend on
 * nothing but those tensors. A loss that cannot be computed is NaN, which fails the check. */
typedef double (*hpa_gradcheck_loss_function)(void *context);

/* A tensor that the loss depends on, and the gradient that is to be checked. Both f64 with the same
 * shape, 1 to 4 dimensions, any strides in elements that give each element a place of its own. */
typedef struct hpa_gradcheck_input {
    const char *name;    /* for the report, cut to HPA_GRADCHECK_NAME_SIZE - 1 bytes */
    hpa_tensor value;    /* moved in place while the check runs, and put back bit for bit */
    hpa_tensor gradient; /* d loss / d value at the values given; only read */
} hpa_gradcheck_input;

/* Compares inputs[n].gradient with differences of loss(context), for each of n_inputs inputs, at
 * most HPA_GRADCHECK_MAX_RESULTS. results[n] belongs to inputs[n]. options NULL: the default.
 * Errors: HPA_INVALID_ARGUMENT, _SHAPE, _STRIDE, _DTYPE, HPA_OUT_OF_MEMORY. */
HPA_API hpa_status hpa_gradcheck_loss(hpa_gradcheck_loss_function loss, void *context,
                                      const hpa_gradcheck_input *inputs, int32_t n_inputs,
                                      const hpa_gradcheck_options *options,
                                      hpa_gradcheck_report *report);

/* Attention over a mask */

/* For dtypes below f64 the largest error against float64 may be this many times the largest error
 * that dense attention makes when every tensor in it is stored in that dtype; or, where that is more,
 * this many times one rounding of the largest value and of the float sums behind it (with a few
 * tokens, dense attention may happen to be exact). Relative errors are relative to the largest value.
 * lse, which is f32 then, is held against dense attention in f32; kernels that compute it in powers of
 * two round it two times more. */
#define HPA_GRADCHECK_OUT_FACTOR 2.0
#define HPA_GRADCHECK_LSE_FACTOR 4.0      /* for lse */
#define HPA_GRADCHECK_GRADIENT_FACTOR 3.0 /* for dq, dk and dv */

/* A backward pass to be checked in the place of hpa_backward: its arguments, with a context of
 * yours in front. The mask can be read with hpa_mask_export_csr. */
typedef struct hpa_gradcheck_backward {
    /* Called as hpa_backward is, with context in front. */
    hpa_status (*run)(void *context, const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                      const hpa_outputs *out, const hpa_gradients *gradients, const hpa_exec *exec);
    void *context; /* handed to run */
} hpa_gradcheck_backward;

/* Draws random q, k, v and weights of the loss, which is the weighted sum of out and of lse; runs
 * hpa_mask_build, hpa_forward and the backward pass; and reports
 *
 *   out, lse            against dense attention over the exported mask
 *   dq, dk, dv          dtype f64: against differences of dense attention over the exported mask:
 *                       element by element, and along random directions with every row computed
 *                       anew. Other dtypes: every element against the float64 gradient of dense
 *                       attention, allowed the error described at HPA_GRADCHECK_OUT_FACTOR
 *   zero cotangent      d_out and d_lse of zero give gradients of exactly zero
 *   second run          a second forward and backward write the same bits
 *   accumulate          with accumulate, the gradients are added to what was there, to rounding
 *   empty rows          where there are any: queries that see no key give out 0, lse -inf, dq 0
 *   mask fingerprint    the mask is valid, and the same before and after all of this
 *
 * Every output is filled with NaN before the call that writes it, so that an element left out is
 * found. Shapes of up to some hundred tokens take a second or less; the work grows with the square
 * of the length.
 *   desc           any description for the CPU. training is taken as true
 *   cu_seqlens_q   packed only, else ignored: batch + 1 offsets, as in hpa_inputs, of which the
 *   cu_seqlens_kv  last are total_q and total_kv
 *   backward       NULL: hpa_backward
 *   options        NULL: hpa_gradcheck_attention_options(). Below f64 only the seed is used
 * Errors: those of the library's calls, HPA_UNSUPPORTED for a device other than the CPU. */
HPA_API hpa_status hpa_gradcheck_attention(const hpa_desc *desc, const int32_t *cu_seqlens_q,
                                           const int32_t *cu_seqlens_kv,
                                           const hpa_gradcheck_backward *backward,
                                           const hpa_gradcheck_options *options,
                                           hpa_gradcheck_report *report);

#ifdef __cplusplus
}
#endif
#endif
