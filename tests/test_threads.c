/* Many host threads on one plan, each with its own mask, outputs and scratch: the results are those
 * of one thread, and each thread has its own last error. */
#define _POSIX_C_SOURCE 200809L
#include "problem.h"

#include <pthread.h>
#include <stdio.h>

enum { THREADS = 8, ROUNDS = 5 };

typedef struct worker {
    pthread_t thread;
    int number;
    pthread_barrier_t *start;
    test_problem problem; /* its plan is everybody's */
    hpa_exec exec;
    test_buffer scratch;
    hpa_status status; /* of the first call that failed */
    bool own_error;    /* hpa_last_error spoke of this thread's failures alone */
} worker;

static hpa_status run_all(worker *w)
{
    test_problem *p = &w->problem;
    const hpa_inputs in = test_inputs(p);
    const hpa_outputs out = test_outputs(p);
    const hpa_gradients gradients = test_gradients(p);
    hpa_mask_stats stats;
    hpa_status status = hpa_mask_build(p->plan, &in, p->mask.data, &w->exec);
    if (status == HPA_OK)
        status = hpa_forward(p->plan, p->mask.data, &in, &out, &w->exec);
    if (status == HPA_OK)
        status = hpa_backward(p->plan, p->mask.data, &in, &out, &gradients, &w->exec);
    if (status == HPA_OK)
        status = hpa_mask_validate(p->plan, p->mask.data, &w->exec);
    if (status == HPA_OK)
        status = hpa_mask_statistics(p->plan, p->mask.data, &stats, &w->exec);
    return status;
}

/* Fails with this thread's number as the wrong argument. */
static bool has_own_error(const worker *w)
{
    char text[1], number[32];
    const int64_t batch = 1000 + w->number;
    snprintf(number, sizeof number, " %d,", 1000 + w->number);
    hpa_mask_snprint(w->problem.plan, w->problem.mask.data, batch, 0, text, 1, &w->exec);
    return strstr(hpa_last_error(), number) != NULL;
}

static void *work(void *argument)
{
    worker *w = argument;
    pthread_barrier_wait(w->start);
    w->own_error = strcmp(hpa_last_error(), "") == 0;
    for (int round = 0; round < ROUNDS && w->status == HPA_OK; round++) {
        w->status = run_all(w);
        w->own_error = w->own_error && has_own_error(w);
    }
    return NULL;
}

static size_t largest(const hpa_sizes *s)
{
    size_t most = s->mask_scratch;
    most = s->forward_scratch > most ? s->forward_scratch : most;
    return s->backward_scratch > most ? s->backward_scratch : most;
}

static void new_worker(worker *w, int number, const test_problem *of, pthread_barrier_t *start)
{
    *w = (worker){.number = number, .start = start, .status = HPA_OK};
    test_problem_new(&w->problem, &of->desc, of->layout, NULL, NULL);
    test_problem_fill(&w->problem, (uint64_t)number, TEST_NORMAL);
    hpa_plan_destroy(w->problem.plan);
    w->problem.plan = of->plan;
    w->exec = test_scratch_new(&w->scratch, largest(&of->sizes), 0xff);
}

static void free_worker(worker *w)
{
    test_scratch_free(&w->scratch);
    w->problem.plan = NULL;
    test_problem_free(&w->problem);
}

static uint64_t hash_of_results(const test_problem *p)
{
    uint64_t hash = test_buffer_hash(p->out.buffer);
    hash = 3 * hash + test_buffer_hash(p->lse.buffer);
    hash = 3 * hash + test_buffer_hash(p->dq.buffer);
    hash = 3 * hash + test_buffer_hash(p->dk.buffer);
    return 3 * hash + test_buffer_hash(p->dv.buffer);
}

static void check_worker(const worker *w, const test_problem *shared)
{
    assert_that(w->status == HPA_OK, "thread %d: %s", w->number, hpa_status_name(w->status));
    assert_that(w->own_error, "thread %d saw another thread's error", w->number);
    test_problem alone;
    test_problem_copy(&alone, &w->problem, &shared->desc, shared->layout);
    test_build(&alone);
    test_forward(&alone);
    test_backward(&alone);
    assert_that(hash_of_results(&alone) == hash_of_results(&w->problem),
                "thread %d has other results than one thread alone", w->number);
    test_problem_free(&alone);
}

START_TEST(threads_share_a_plan)
{
    hpa_desc desc = test_desc();
    desc.dtype = _i % 2 ? HPA_BF16 : HPA_F32;
    desc.heads_q = 4;
    desc.heads_kv = 2;
    desc.head_dim = 32;
    desc.seq_q = desc.seq_kv = 300;
    desc.block_q = 32;
    desc.block_k = 16;
    desc.top_k = 64;
    desc.window = 32;
    desc.sink = 16;
    desc.num_threads = 1 + _i / 2;
    test_problem shared;
    test_problem_new(&shared, &desc, TEST_BSHD, NULL, NULL);
    pthread_barrier_t start;
    ck_assert_int_eq(pthread_barrier_init(&start, NULL, THREADS), 0);
    static worker workers[THREADS];
    for (int n = 0; n < THREADS; n++)
        new_worker(&workers[n], n, &shared, &start);
    for (int n = 0; n < THREADS; n++)
        ck_assert_int_eq(pthread_create(&workers[n].thread, NULL, work, &workers[n]), 0);
    for (int n = 0; n < THREADS; n++)
        ck_assert_int_eq(pthread_join(workers[n].thread, NULL), 0);
    for (int n = 0; n < THREADS; n++) {
        check_worker(&workers[n], &shared);
        free_worker(&workers[n]);
    }
    pthread_barrier_destroy(&start);
    test_problem_free(&shared);
}
END_TEST

/* Plans come and go on many threads at once. */
static void *make_plans(void *argument)
{
    const hpa_desc *desc = argument;
    for (int n = 0; n < 100; n++) {
        hpa_plan *plan;
        if (hpa_plan_create(&plan, desc) != HPA_OK)
            return argument;
        hpa_plan_destroy(plan);
    }
    return NULL;
}

START_TEST(threads_make_plans)
{
    hpa_desc desc = test_desc();
    desc.seq_q = desc.seq_kv = 1000;
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++)
        ck_assert_int_eq(pthread_create(&threads[n], NULL, make_plans, &desc), 0);
    for (int n = 0; n < THREADS; n++) {
        void *failed;
        ck_assert_int_eq(pthread_join(threads[n], &failed), 0);
        ck_assert_ptr_null(failed);
    }
}
END_TEST

static Suite *threads_suite(void)
{
    Suite *suite = suite_create("threads");
    TCase *t = test_add_case(suite, "host threads", 30);
    tcase_add_loop_test(t, threads_share_a_plan, 0, 6);
    tcase_add_test(t, threads_make_plans);
    return suite;
}

int main(void)
{
    return test_run(threads_suite());
}
