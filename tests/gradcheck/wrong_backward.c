/* What the program is linked with, in the place of hpa_backward, to see it fail: one element of dv
 * is off, or, where HPA_TEST_NAN is set, no number. */
#include <hpa/hpa.h>
#include <math.h>
#include <stdlib.h>

#include "wrong_backward.h"

hpa_status wrong_backward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                          const hpa_outputs *out, const hpa_gradients *grads, const hpa_exec *exec)
{
    hpa_status status = hpa_backward(plan, mask, in, out, grads, exec);
    if (status == HPA_OK && grads->dv.dtype == HPA_F64)
        *(double *)grads->dv.data *= getenv("HPA_TEST_NAN") ? NAN : 1.001;
    return status;
}
