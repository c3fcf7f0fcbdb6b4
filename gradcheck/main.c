/* hpa-gradcheck - do the gradients of libhpa's attention agree with finite differences?
 * Exit status: 0 every gradient agrees, 1 one does not, 2 the arguments cannot be or the check could
 * not be made. */
#define _POSIX_C_SOURCE 200809L

#include "program.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { AGREES = 0, DISAGREES = 1, NOT_CHECKED = 2 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* [batch + 1] offsets from lengths, allocated; NULL: out of memory. */
static int32_t *offsets_from_lengths(const int32_t *lengths, int64_t batch)
{
    int32_t *offsets = calloc((size_t)batch + 1, sizeof *offsets);
    for (int64_t b = 0; offsets && b < batch; b++)
        offsets[b + 1] = offsets[b] + lengths[b];
    return offsets;
}

static void run_case(struct gradcheck_case *checked, const hpa_gradcheck_options *options)
{
    double start = now();
    int32_t *offsets_q = NULL, *offsets_kv = NULL;
    if (checked->desc.packed) {
        offsets_q = offsets_from_lengths(checked->lengths_q, checked->desc.batch);
        offsets_kv = offsets_from_lengths(checked->lengths_kv, checked->desc.batch);
    }
    checked->status = hpa_gradcheck_attention(&checked->desc, offsets_q, offsets_kv, NULL, options,
                                              &checked->report);
    free(offsets_q);
    free(offsets_kv);
    checked->seconds = now() - start;
}

/* A library that cannot do its work gives no right gradients; one that refuses the description was
 * not checked. */
static int exit_status(const struct gradcheck_case *checked)
{
    switch (checked->status) {
    case HPA_OK:
        return checked->report.passed ? AGREES : DISAGREES;
    case HPA_INVALID_MASK:
    case HPA_CUDA_ERROR:
    case HPA_INTERNAL_ERROR:
        return DISAGREES;
    default:
        return NOT_CHECKED;
    }
}

static int explain(const struct gradcheck_case *checked)
{
    fprintf(stderr, "hpa-gradcheck: %s\n", checked->report.message);
    return exit_status(checked);
}

static int not_written(void)
{
    fprintf(stderr, "hpa-gradcheck: the report could not be written\n");
    return NOT_CHECKED;
}

static int run_single(const struct command *command)
{
    struct gradcheck_case checked = {.name = "command line",
                                     .desc = command->desc,
                                     .lengths_q = command->lengths,
                                     .lengths_kv = command->lengths};
    run_case(&checked, &command->options);
    if (checked.status != HPA_OK)
        return explain(&checked);
    bool printed = command->json ? print_json(&checked, 1) : print_single(&checked);
    return printed ? exit_status(&checked) : not_written();
}

static int run_sweep(const struct command *command)
{
    int n, worst = AGREES;
    struct gradcheck_case *cases = sweep_cases(&command->desc, &n);
    for (int i = 0; i < n; i++) {
        run_case(&cases[i], &command->options);
        if (cases[i].status != HPA_OK)
            return explain(&cases[i]);
        if (!command->json && !print_sweep_line(&cases[i], i + 1, n))
            return not_written();
        if (exit_status(&cases[i]) > worst)
            worst = exit_status(&cases[i]);
    }
    bool printed = command->json ? print_json(cases, n) : print_sweep_end(cases, n);
    return printed ? worst : not_written();
}

int main(int argc, char **argv)
{
    struct command command;
    int status = NOT_CHECKED;
    if (command_parse(&command, argc, argv)) {
        if (command.help) {
            command_print_help();
            status = fflush(stdout) == 0 ? AGREES : not_written();
        } else {
            status = command.single ? run_single(&command) : run_sweep(&command);
        }
    }
    command_destroy(&command);
    return status;
}
