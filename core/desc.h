/* Is a description one that some kernel could serve? */
#ifndef HPA_CORE_DESC_H
#define HPA_CORE_DESC_H

#include "core/status.h"

hpa_status hpa_desc_check(const hpa_desc *desc);

#endif
