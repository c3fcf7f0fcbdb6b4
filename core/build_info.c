#include "hpa/hpa.h"

/* HPA_COMMIT, HPA_COMPILER and HPA_CPU_SETS come from the build. */
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

#ifndef HPA_CUDA_BUILD /* ", cuda (compiler; architectures)" */
#define HPA_CUDA_BUILD ""
#endif

int hpa_version(void)
{
    return HPA_VERSION;
}

const char *hpa_build_info(void)
{
    return "libhpa " TEXT(HPA_VERSION_MAJOR) "." TEXT(HPA_VERSION_MINOR) "." TEXT(
        HPA_VERSION_PATCH) ", commit " HPA_COMMIT ", " HPA_COMPILER ", backends: cpu (" HPA_CPU_SETS
                           ")" HPA_CUDA_BUILD;
}
