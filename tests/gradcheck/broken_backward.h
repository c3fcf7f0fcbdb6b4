/* A small backward of masked attention, written apart from the library's and from the checker's, and
 * breakable on purpose: the checker must accept it whole and reject it broken. */
#ifndef HPA_TESTS_BROKEN_BACKWARD_H
#define HPA_TESTS_BROKEN_BACKWARD_H

#include <hpa/gradcheck.h>

enum fault {
    CORRECT,
    DROP_DELTA,           /* ds = p * dp */
    DROP_SCALE,           /* dq and dk without the scale */
    SKIP_BLOCK_OF_ROW,    /* one kept block of one query block adds nothing to dq */
    SKIP_BLOCK_OF_COLUMN, /* one query block of one key block adds nothing to dk and dv */
    SHIFT_TRANSPOSE,      /* each key block's dk and dv from the query blocks of the one before */
    SWAP_HEADS_OF_DQ,     /* the first two query heads of a group get each other's dq */
    SWAP_HEADS_OF_D_OUT,  /* dk and dv read the d_out of each other's query head there */
    DROP_D_LSE,           /* the gradient that reaches lse is lost */
    LAST_HEAD_ONLY,       /* dk and dv are those of the last query head of a group */
    FAULTS
};

extern const char *const fault_names[FAULTS];

struct broken_backward {
    const hpa_desc *desc; /* not packed, f64 or f32 */
    enum fault fault;
};

/* An hpa_gradcheck_backward; context is a struct broken_backward. */
hpa_status broken_backward_run(void *context, const hpa_plan *plan, const void *mask,
                               const hpa_inputs *in, const hpa_outputs *out,
                               const hpa_gradients *gradients, const hpa_exec *exec);

#endif
