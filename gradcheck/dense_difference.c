/* The loss of one query row, with w and u the random weights of its out and lse:
 *
 *   s_j = scale * q . k_j      e_j = exp(s_j - largest)      c_j = w . v_j
 *   Z = sum_j e_j              N = sum_j e_j c_j
 *   loss = w . out + u * lse = N / Z + u * (largest + log Z)
 *
 * over the keys j that the row attends to.
 */
#include "dense_difference.h"

#include "difference.h"

#include <math.h>
#include <stdlib.h>

struct row {
    double largest; /* -inf: attends to nothing, has no loss */
    double Z;
    double N;
    double u;
    double loss;
};

/* What a row has to do with one key. */
struct meeting {
    int64_t row; /* token * heads_q + head */
    double s;
    double c;
    double e;        /* of one key with its rows only */
    const double *k; /* [head_dim] */
};

struct dense_difference {
    const struct problem *problem;
    double eps;
    int32_t order;
    struct row *rows;         /* [tokens_q * heads_q] */
    int64_t *sequence_of_q;   /* [tokens_q] */
    int64_t *sequence_of_kv;  /* [tokens_kv] */
    struct meeting *meetings; /* of one row with its keys, or of one key with its rows */
    int64_t n_meetings;
    int64_t met_row; /* whose meetings they are: one of the two, the other is -1 */
    int64_t met_key;
    int64_t moving; /* the dimension that moves */
};

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t d = 0; d < n; d++)
        sum += a[d] * b[d];
    return sum;
}

static double row_loss(double largest, double Z, double N, double u)
{
    return N / Z + u * (largest + log(Z));
}

static struct meeting meet(const struct problem *problem, int64_t b, int64_t head, int64_t i,
                           int64_t j)
{
    int64_t head_kv = head / (problem->heads_q / problem->heads_kv), D = problem->head_dim;
    int64_t query = problem_query_row(problem, b, head, i);
    int64_t key = problem_key_row(problem, b, head_kv, j);
    return (struct meeting){
        .row = query / D,
        .s = problem->scale * dot(problem->q + query, problem->k + key, D),
        .c = dot(problem->d_out + query, problem->v + key, D),
        .k = problem->k + key,
    };
}

static void meet_keys(struct dense_difference *difference, int64_t row)
{
    const struct problem *problem = difference->problem;
    int64_t token = row / problem->heads_q, head = row % problem->heads_q;
    int64_t b = difference->sequence_of_q[token], i = token - problem->start_q[b];
    int64_t n = 0;
    for (int64_t j = 0; j < problem_keys(problem, b); j++)
        if (problem_visible(problem, b, head, i, j))
            difference->meetings[n++] = meet(problem, b, head, i, j);
    difference->n_meetings = n;
    difference->met_row = row;
    difference->met_key = -1;
}

static void meet_rows(struct dense_difference *difference, int64_t key)
{
    const struct problem *problem = difference->problem;
    int64_t token = key / problem->heads_kv, head_kv = key % problem->heads_kv;
    int64_t b = difference->sequence_of_kv[token], j = token - problem->start_kv[b];
    int64_t group = problem->heads_q / problem->heads_kv, n = 0;
    for (int64_t i = 0; i < problem_queries(problem, b); i++)
        for (int64_t head = head_kv * group; head < (head_kv + 1) * group; head++)
            if (problem_visible(problem, b, head, i, j)) {
                struct meeting meeting = meet(problem, b, head, i, j);
                meeting.e = exp(meeting.s - difference->rows[meeting.row].largest);
                difference->meetings[n++] = meeting;
            }
    difference->n_meetings = n;
    difference->met_key = key;
    difference->met_row = -1;
}

/* Z and N of the row that has met its keys, its q moved by step in one dimension. */
static struct row sum_row(const struct dense_difference *difference, double step)
{
    struct row row = {.largest = -INFINITY};
    double move = difference->problem->scale * step;
    int64_t d = difference->moving;
    for (int64_t n = 0; n < difference->n_meetings; n++)
        row.largest =
            fmax(row.largest, difference->meetings[n].s + move * difference->meetings[n].k[d]);
    for (int64_t n = 0; n < difference->n_meetings; n++) {
        const struct meeting *meeting = &difference->meetings[n];
        double e = exp(meeting->s + move * difference->meetings[n].k[d] - row.largest);
        row.Z += e;
        row.N += e * meeting->c;
    }
    return row;
}

static double loss_with_q_moved(void *context, double step)
{
    const struct dense_difference *difference = context;
    if (difference->n_meetings == 0)
        return 0;
    struct row row = sum_row(difference, step);
    return row_loss(row.largest, row.Z, row.N, difference->rows[difference->met_row].u);
}

static double loss_with_k_moved(void *context, double step)
{
    const struct dense_difference *difference = context;
    const struct problem *problem = difference->problem;
    struct exact_sum change = {0};
    for (int64_t n = 0; n < difference->n_meetings; n++) {
        const struct meeting *meeting = &difference->meetings[n];
        const struct row *row = &difference->rows[meeting->row];
        double q = problem->q[meeting->row * problem->head_dim + difference->moving];
        double grown = exp(meeting->s + problem->scale * q * step - row->largest) - meeting->e;
        double loss = row_loss(row->largest, row->Z + grown, row->N + grown * meeting->c, row->u);
        exact_sum_add(&change, loss - row->loss);
    }
    return exact_sum_value(&change);
}

static double loss_with_v_moved(void *context, double step)
{
    const struct dense_difference *difference = context;
    const struct problem *problem = difference->problem;
    struct exact_sum change = {0};
    for (int64_t n = 0; n < difference->n_meetings; n++) {
        const struct meeting *meeting = &difference->meetings[n];
        const struct row *row = &difference->rows[meeting->row];
        double w = problem->d_out[meeting->row * problem->head_dim + difference->moving];
        /* N grows by e w step; the difference of two quotients over one Z */
        exact_sum_add(&change, meeting->e * w * step / row->Z);
    }
    return exact_sum_value(&change);
}

double dense_difference_q(struct dense_difference *difference, int64_t element)
{
    int64_t row = element / difference->problem->head_dim;
    if (difference->met_row != row)
        meet_keys(difference, row);
    difference->moving = element % difference->problem->head_dim;
    return difference_quotient(loss_with_q_moved, difference, difference->eps, difference->order);
}

static double difference_of_key(struct dense_difference *difference, int64_t element,
                                moved_loss loss)
{
    int64_t key = element / difference->problem->head_dim;
    if (difference->met_key != key)
        meet_rows(difference, key);
    difference->moving = element % difference->problem->head_dim;
    return difference_quotient(loss, difference, difference->eps, difference->order);
}

double dense_difference_k(struct dense_difference *difference, int64_t element)
{
    return difference_of_key(difference, element, loss_with_k_moved);
}

double dense_difference_v(struct dense_difference *difference, int64_t element)
{
    return difference_of_key(difference, element, loss_with_v_moved);
}

static void number_tokens(int64_t *sequence_of, const int64_t *start, int64_t batch)
{
    for (int64_t b = 0; b < batch; b++)
        for (int64_t token = start[b]; token < start[b + 1]; token++)
            sequence_of[token] = b;
}

static int64_t most_meetings(const struct problem *problem)
{
    int64_t most = problem->key_blocks * problem->block_k;
    for (int64_t b = 0; b < problem->batch; b++) {
        int64_t rows = problem_queries(problem, b) * (problem->heads_q / problem->heads_kv);
        if (rows > most)
            most = rows;
    }
    return most;
}

static void sum_rows(struct dense_difference *difference)
{
    const struct problem *problem = difference->problem;
    for (int64_t row = 0; row < problem->tokens_q * problem->heads_q; row++) {
        meet_keys(difference, row);
        struct row sums = sum_row(difference, 0);
        sums.u = problem->d_lse[row];
        if (difference->n_meetings > 0)
            sums.loss = row_loss(sums.largest, sums.Z, sums.N, sums.u);
        difference->rows[row] = sums;
    }
}

struct dense_difference *dense_difference_create(const struct problem *problem, double eps,
                                                 int32_t order)
{
    struct dense_difference *difference = calloc(1, sizeof *difference);
    if (!difference)
        return NULL;
    size_t most = (size_t)most_meetings(problem) + 1;
    *difference = (struct dense_difference){
        .problem = problem,
        .eps = eps,
        .order = order,
        .rows = calloc((size_t)(problem->tokens_q * problem->heads_q) + 1, sizeof(struct row)),
        .sequence_of_q = calloc((size_t)problem->tokens_q + 1, sizeof(int64_t)),
        .sequence_of_kv = calloc((size_t)problem->tokens_kv + 1, sizeof(int64_t)),
        .meetings = calloc(most, sizeof(struct meeting)),
        .met_row = -1,
        .met_key = -1,
    };
    if (!difference->rows || !difference->sequence_of_q || !difference->sequence_of_kv ||
        !difference->meetings) {
        dense_difference_destroy(difference);
        return NULL;
    }
    number_tokens(difference->sequence_of_q, problem->start_q, problem->batch);
    number_tokens(difference->sequence_of_kv, problem->start_kv, problem->batch);
    sum_rows(difference);
    return difference;
}

void dense_difference_destroy(struct dense_difference *difference)
{
    if (!difference)
        return;
    free(difference->rows);
    free(difference->sequence_of_q);
    free(difference->sequence_of_kv);
    free(difference->meetings);
    free(difference);
}
