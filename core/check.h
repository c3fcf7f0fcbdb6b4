/* What every front door checks in the same words: plan, mask, inputs, scratch. */
#ifndef HPA_CORE_CHECK_H
#define HPA_CORE_CHECK_H

#include "core/plan.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* mask, scratch and their parts begin at multiples of this many bytes. */
#define HPA_BUFFER_ALIGNMENT 16

hpa_status hpa_check_pointer(const char *name, const void *pointer);

/* NULL, alignment and, for a mask that is read on the host, its header. */
hpa_status hpa_check_mask(const hpa_plan *plan, const void *mask, bool is_read);

/* The first bytes of a mask, on the host: are they those of a mask of this plan? */
hpa_status hpa_check_header(const hpa_plan *plan, const void *mask);

/* q and k, v when the call reads it, and cu_seqlens when packed. */
hpa_status hpa_check_inputs(const hpa_plan *plan, const hpa_inputs *in, bool reads_v);

/* Lengths that begin at 0, never fall, and stay within the plan's. Host arrays. */
hpa_status hpa_check_lengths(const hpa_plan *plan, const hpa_inputs *in);

/* The lengths are those that the mask was built for. Nothing to do unless packed, nor on a device,
 * where kernels read the mask's own. */
hpa_status hpa_check_same_lengths(const hpa_plan *plan, const void *mask, const hpa_inputs *in);

/* exec may be NULL: no scratch. */
hpa_status hpa_check_scratch(const hpa_exec *exec, size_t needed);

#ifdef __cplusplus
}
#endif
#endif
