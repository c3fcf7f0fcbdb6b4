#ifndef HPA_TESTS_UNEVEN_BACKWARD_H
#define HPA_TESTS_UNEVEN_BACKWARD_H

#include <hpa/hpa.h>

hpa_status uneven_backward(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                           const hpa_outputs *out, const hpa_gradients *grads,
                           const hpa_exec *exec);

#endif
