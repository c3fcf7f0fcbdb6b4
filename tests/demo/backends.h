/* The backend under test: HPA_TEST_BACKEND is "cpu" (the default) or "cuda". */
#ifndef HPA_TESTS_DEMO_BACKENDS_H
#define HPA_TESTS_DEMO_BACKENDS_H

#include "backend.h"

#include <check.h>

bool test_on_cuda(void);

/* The backend under test in this dtype; fails the test where that cannot be opened. */
backend *open_backend(dtype_choice dtype);
backend *open_cpu(dtype_choice dtype);

/* Runs a suite and gives main's exit status: 77, for "skipped", where the backend is CUDA and the
 * machine has no device, unless HPA_REQUIRE_GPU is set. */
int run_suite(Suite *suite);

#endif
