/* One check of the library's attention: everything that hpa_gradcheck_attention owns while it runs.
 */
#ifndef HPA_GRADCHECK_ATTENTION_H
#define HPA_GRADCHECK_ATTENTION_H

#include "compare.h"
#include "problem.h"
#include "tensor.h"

enum { OUT, LSE, DQ, DK, DV, N_WRITTEN };

struct attention {
    hpa_desc desc;
    hpa_gradcheck_options options;
    hpa_gradcheck_backward backward; /* run NULL: hpa_backward */
    hpa_gradcheck_report *report;
    struct random random;

    hpa_plan *plan;
    bool entered; /* the plan's device is the thread's, and device_before was */
    int32_t device_before;
    struct buffer mask;
    struct buffer scratch;
    struct buffer cu_seqlens_q;
    struct buffer cu_seqlens_kv;
    struct problem problem;
    struct tensor q, k, v, d_out, d_lse;

    /* What the code under test writes, and on the host what it wrote the first time. */
    struct tensor written[N_WRITTEN];
    double *first[N_WRITTEN];
    void *first_stored[N_WRITTEN];
};

/* "out", "lse", "dq", "dk", "dv". */
extern const char *const written_names[N_WRITTEN];

/* One forward into out and lse, filled with NaN before. */
hpa_status attention_forward(struct attention *attention);

/* One backward into dq, dk and dv, which the caller has filled. */
hpa_status attention_backward(struct attention *attention, bool accumulate);

void attention_fill_gradients(struct attention *attention, double value);

/* The lines of the report: out, lse, dq, dk, dv. */
hpa_status attention_compare(struct attention *attention);

/* Its lines after those. Runs forward and backward some times more. */
hpa_status attention_properties(struct attention *attention);

#endif
