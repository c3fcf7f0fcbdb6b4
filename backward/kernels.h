/* The kernels of the backward pass. */
#ifndef HPA_BACKWARD_KERNELS_H
#define HPA_BACKWARD_KERNELS_H

#include "core/plan.h"

extern const hpa_backward_kernel hpa_backward_ref; /* plain loops in double precision */
extern const hpa_backward_kernel hpa_backward_cpu; /* all cores, vectorised */

#endif
