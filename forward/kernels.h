/* The kernels of the forward pass. */
#ifndef HPA_FORWARD_KERNELS_H
#define HPA_FORWARD_KERNELS_H

#include "core/plan.h"

extern const hpa_forward_kernel
    hpa_forward_ref; /* plain loops in double precision: the specification */
extern const hpa_forward_kernel hpa_forward_cpu; /* all cores, vectorised */

#endif
