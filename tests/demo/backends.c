#include "backends.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_SKIPPED = 77 };

bool test_on_cuda(void)
{
    const char *name = getenv("HPA_TEST_BACKEND");
    return name && strcmp(name, "cuda") == 0;
}

static backend *open_on(backend_choice where, dtype_choice dtype)
{
    backend *on;
    failure why;
    ck_assert_msg(backend_open(&on, where, dtype, &why), "%s", why.text);
    return on;
}

backend *open_backend(dtype_choice dtype)
{
    return open_on(test_on_cuda() ? BACKEND_CUDA : BACKEND_CPU, dtype);
}

backend *open_cpu(dtype_choice dtype)
{
    return open_on(BACKEND_CPU, dtype);
}

int run_suite(Suite *suite)
{
    if (test_on_cuda() && !backend_cuda_is_there() && !getenv("HPA_REQUIRE_GPU")) {
        puts("skipped: there is no CUDA device");
        return EXIT_SKIPPED;
    }
    SRunner *runner = srunner_create(suite);
    if (test_on_cuda())
        srunner_set_fork_status(runner, CK_NOFORK); /* CUDA does not survive a fork */
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
