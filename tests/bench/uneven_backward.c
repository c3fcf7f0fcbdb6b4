/* What the program is linked with, in the place of hpa_backward, to see it fail: the fifth call of
 * the process leaves one bit of dk other than it should be. */
#include <hpa/hpa.h>

#include "uneven_backward.h"

hpa_status uneven_backward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                           const hpa_outputs *out, const hpa_gradients *grads, const hpa_exec *exec)
{
    static int calls;
    const hpa_status status = hpa_backward(plan, mask, in, out, grads, exec);
    if (++calls == 5 && status == HPA_OK)
        *(unsigned char *)grads->dk.data ^= 1;
    return status;
}
