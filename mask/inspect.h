/* Looking into masks, by where they lie: on the host or on a CUDA device. Arguments are checked. */
#ifndef HPA_MASK_INSPECT_H
#define HPA_MASK_INSPECT_H

#include "core/plan.h"
#include "mask/inspect_rules.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As the calls of hpa.h that begin with hpa_mask_. */
typedef struct hpa_mask_inspector {
    hpa_status (*statistics)(const hpa_plan *plan, const void *mask, hpa_mask_stats *stats,
                             const hpa_exec *exec);
    hpa_status (*validate)(const hpa_plan *plan, const void *mask, const hpa_exec *exec);
    hpa_status (*export_csr)(const hpa_plan *plan, const void *mask, int64_t *row_ptr,
                             int32_t *blocks, int64_t *n_blocks, const hpa_exec *exec);
    hpa_status (*import_csr)(const hpa_plan *plan, const hpa_inputs *in, void *mask,
                             const int64_t *row_ptr, const int32_t *blocks, const hpa_exec *exec);
    int (*snprint)(const hpa_plan *plan, const void *mask, int64_t batch, int64_t head, char *text,
                   size_t size, const hpa_exec *exec);
} hpa_mask_inspector;

extern const hpa_mask_inspector hpa_mask_inspect_cpu;
extern const hpa_mask_inspector hpa_mask_inspect_cuda;

/* HPA_INVALID_MASK with the problem in words, HPA_OK where there is none. */
hpa_status hpa_mask_fail_row(const row_view *r, const row_problem *problem);

/* Characters of the drawing of a sequence, the closing 0 not counted; -1 when that is no int. */
int hpa_mask_text_length(const hpa_sequence *s);

#ifdef __cplusplus
}
#endif
#endif
