/* Every operation of the backend under test against the same operation in double precision on the
 * CPU, on random inputs, in f32 and (where it is there) in bf16; and that it repeats to the bit. */
#include "backends.h"
#include "random.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TESTED, REFERENCE, N_SIDES };

static backend *sides[N_SIDES];
static random_source source;

/* An array on both sides: the same random values, which operands of the tested side can hold. */
typedef struct array {
    void *at[N_SIDES];
    int64_t n;
    bool operands;
} array;

static void open_sides(dtype_choice dtype)
{
    sides[TESTED] = open_backend(dtype);
    sides[REFERENCE] = open_cpu(DTYPE_F64);
    source.state = 7;
}

static void close_sides(void)
{
    backend_close(sides[TESTED]);
    backend_close(sides[REFERENCE]);
}

static float bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void *to_dtype(hpa_dtype dtype, const float *values, int64_t n, int64_t *bytes)
{
    *bytes = n * (dtype == HPA_F64 ? 8 : dtype == HPA_F32 ? 4 : 2);
    void *out = malloc((size_t)*bytes);
    ck_assert_ptr_nonnull(out);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        if (dtype == HPA_F64)
            ((double *)out)[i] = (double)values[i];
        else if (dtype == HPA_F32)
            ((float *)out)[i] = values[i];
        else
            ((uint16_t *)out)[i] = (uint16_t)(bits >> 16);
    }
    return out;
}

static hpa_dtype dtype_of(const array *a, int side)
{
    return a->operands ? sides[side]->operand : sides[side]->number;
}

static array new_array(int64_t n, bool operands, double size)
{
    array a = {.n = n, .operands = operands};
    float *values = malloc((size_t)n * sizeof *values);
    ck_assert_ptr_nonnull(values);
    bool narrow = dtype_of(&a, TESTED) == HPA_BF16;
    for (int64_t i = 0; i < n; i++) {
        values[i] = (float)(size * random_normal(&source));
        values[i] = narrow ? bf16(values[i]) : values[i];
    }
    for (int side = 0; side < N_SIDES; side++) {
        int64_t bytes;
        void *host = to_dtype(dtype_of(&a, side), values, n, &bytes);
        a.at[side] = sides[side]->op->allocate(sides[side], bytes);
        ck_assert_ptr_nonnull(a.at[side]);
        sides[side]->op->write(sides[side], a.at[side], host, bytes);
        free(host);
    }
    free(values);
    return a;
}

static array operands(int64_t n)
{
    return new_array(n, true, 1);
}

static array numbers(int64_t n)
{
    return new_array(n, false, 1);
}

static array bytes(int64_t n)
{
    array a = {.n = n};
    uint8_t *host = malloc((size_t)n);
    ck_assert_ptr_nonnull(host);
    for (int64_t i = 0; i < n; i++) /* some often, many seldom, some never */
        host[i] = (uint8_t)(random_below(&source, 3) ? 'e' : random_below(&source, 200));
    for (int side = 0; side < N_SIDES; side++) {
        a.at[side] = sides[side]->op->allocate(sides[side], n);
        sides[side]->op->write(sides[side], a.at[side], host, n);
    }
    free(host);
    return a;
}

static void drop(array *a)
{
    for (int side = 0; side < N_SIDES; side++)
        sides[side]->op->release(sides[side], a->at[side]);
}

static double *fetch(const array *a, int side)
{
    failure why;
    hpa_dtype dtype = dtype_of(a, side);
    int64_t size = a->n * (dtype == HPA_F64 ? 8 : dtype == HPA_F32 ? 4 : 2);
    void *host = malloc((size_t)size);
    double *values = malloc((size_t)a->n * sizeof *values);
    ck_assert(host && values);
    ck_assert_msg(sides[side]->op->read(sides[side], host, a->at[side], size, &why), "%s",
                  why.text);
    for (int64_t i = 0; i < a->n; i++) {
        uint32_t bits = dtype == HPA_BF16 ? (uint32_t)((uint16_t *)host)[i] << 16 : 0;
        float wide;
        memcpy(&wide, &bits, sizeof wide);
        values[i] = dtype == HPA_F64   ? ((double *)host)[i]
                    : dtype == HPA_F32 ? (double)((float *)host)[i]
                                       : (double)wide;
    }
    free(host);
    return values;
}

/* As close as the sums of `terms` terms of about 1, and the rounding of the result, allow. */
static void compare(const char *name, array *a, double terms)
{
    double *got = fetch(a, TESTED), *want = fetch(a, REFERENCE), size = 0;
    bool narrow = dtype_of(a, TESTED) == HPA_BF16;
    for (int64_t i = 0; i < a->n; i++)
        size += want[i] * want[i] / (double)a->n;
    double atol = sqrt(size) * (narrow ? 1e-3 : 2e-6) + 1e-6 * sqrt(terms) * fmin(1, sqrt(size));
    double rtol = narrow ? 1.0 / 256 : 1e-5;
    for (int64_t i = 0; i < a->n; i++)
        if (!(fabs(got[i] - want[i]) <= atol + rtol * fabs(want[i])))
            ck_abort_msg("%s: element %" PRId64 " of %" PRId64 ": got %.9g, expected %.9g", name, i,
                         a->n, got[i], want[i]);
    free(got);
    free(want);
}

/* One call on each side. P(array): its address on this side. */
#define ON_BOTH(operation, ...)                  \
    for (int side = 0; side < N_SIDES; side++) { \
        backend *on = sides[side];               \
        on->op->operation(on, __VA_ARGS__);      \
    }
#define P(array) (array).at[side]

static const struct {
    int64_t N, K, O;
} shapes[] = {{1, 8, 8},      {5, 24, 40},      {67, 64, 96},
              {300, 129, 33}, {1000, 256, 256}, {9, 2304, 24}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

#define FOR_DTYPES_AND_SHAPES                                                \
    for (int narrow = 0; narrow <= (int)test_on_cuda(); narrow++)            \
        for (int n_shape = (open_sides(narrow ? DTYPE_BF16 : DTYPE_F32), 0); \
             n_shape < N_SHAPES || (close_sides(), false); n_shape++)
#define SHAPE const int64_t N = shapes[n_shape].N, K = shapes[n_shape].K, O = shapes[n_shape].O

START_TEST(products)
{
    FOR_DTYPES_AND_SHAPES
    {
        SHAPE;
        array in = operands(N * K), weight = operands(O * K), d_out = operands(N * O);
        array out = operands(N * O), wide = numbers(N * O), d_in = operands(N * K);
        array d_weight = numbers(O * K);
        ON_BOTH(linear_forward, INTO_OPERANDS, P(out), P(in), P(weight), N, K, O);
        compare("product into operands", &out, (double)K);
        ON_BOTH(linear_forward, ONTO_NUMBERS, P(wide), P(in), P(weight), N, K, O);
        compare("product onto numbers", &wide, (double)K);
        ON_BOTH(linear_forward, INTO_NUMBERS, P(wide), P(in), P(weight), N, K, O);
        compare("product into numbers", &wide, (double)K);
        ON_BOTH(linear_backward, P(d_in), P(d_weight), P(d_out), P(in), P(weight), N, K, O);
        compare("d_in of a product", &d_in, (double)O);
        compare("d_weight of a product", &d_weight, (double)N);
        array *all[] = {&in, &weight, &d_out, &out, &wide, &d_in, &d_weight};
        for (size_t n = 0; n < sizeof all / sizeof *all; n++)
            drop(all[n]);
    }
}
END_TEST

START_TEST(rounding)
{
    FOR_DTYPES_AND_SHAPES
    {
        SHAPE;
        array from = numbers(N * K), to = operands(N * K);
        (void)O;
        ON_BOTH(round, P(to), P(from), N * K);
        compare("round", &to, 1);
        drop(&from);
        drop(&to);
    }
}
END_TEST

START_TEST(rmsnorm)
{
    FOR_DTYPES_AND_SHAPES
    {
        SHAPE;
        array in = numbers(N * K), branch = operands(N * K), sum = numbers(N * K);
        array weight = numbers(K), out = operands(N * K), scale = numbers(N);
        array d_out = operands(N * K), d_in = numbers(N * K), d_weight = numbers(K);
        array rounded = operands(N * K);
        (void)O;
        ON_BOTH(rmsnorm_forward, P(out), P(scale), P(sum), P(in), P(branch), P(weight), N, K);
        compare("rmsnorm of a sum", &out, (double)K);
        compare("the sum", &sum, 1);
        ON_BOTH(rmsnorm_forward, P(out), P(scale), P(sum), P(in), NULL, P(weight), N, K);
        compare("rmsnorm", &out, (double)K);
        compare("scale of rmsnorm", &scale, (double)K);
        compare("the sum, left alone", &sum, 1);
        for (into where = INTO_NUMBERS; where <= ONTO_NUMBERS; where++) {
            ON_BOTH(rmsnorm_backward, where, P(d_in), P(rounded), P(d_weight), P(d_out), P(in),
                    P(scale), P(weight), N, K);
            compare("d_in of rmsnorm", &d_in, (double)K);
            compare("its copy", &rounded, (double)K);
            compare("d_weight of rmsnorm", &d_weight, (double)N);
        }
        array *all[] = {&in,    &branch, &sum,  &weight,   &out,
                        &scale, &d_out,  &d_in, &d_weight, &rounded};
        for (size_t n = 0; n < sizeof all / sizeof *all; n++)
            drop(all[n]);
    }
}
END_TEST

/* Where operands are numbers, the gradient may be its own copy. */
START_TEST(rmsnorm_in_place)
{
    enum { N = 70, C = 48 };
    open_sides(DTYPE_F32);
    array in = numbers(N * C), weight = numbers(C), scale = numbers(N);
    array d_out = numbers(N * C), d_in = numbers(N * C), d_weight = numbers(C);
    ON_BOTH(rmsnorm_backward, ONTO_NUMBERS, P(d_in), P(d_in), P(d_weight), P(d_out), P(in),
            P(scale), P(weight), N, C);
    compare("d_in of rmsnorm", &d_in, C);
    compare("d_weight of rmsnorm", &d_weight, N);
    drop(&in), drop(&weight), drop(&scale), drop(&d_out), drop(&d_in), drop(&d_weight);
    close_sides();
}
END_TEST

START_TEST(rotary_positions)
{
    FOR_DTYPES_AND_SHAPES
    {
        const int64_t T = shapes[n_shape].N, N = 2 * T, D = 16, heads = 3, stride = 5 * D;
        failure why;
        array x = operands(N * stride), table = numbers((T + 2) * D);
        for (int side = 0; side < N_SIDES; side++)
            ck_assert(rope_table(sides[side], table.at[side], T + 2, D, 1000, &why));
        compare("table of rope", &table, 1);
        ON_BOTH(rope, P(x), P(table), N, T, 2, stride, heads, D, 1);
        compare("rope", &x, 1);
        drop(&x);
        x = operands(N * stride);
        ON_BOTH(rope, P(x), P(table), N, T, 0, stride, heads, D, -1);
        compare("rope back", &x, 1);
        drop(&x);
        drop(&table);
    }
}
END_TEST

START_TEST(swiglu)
{
    FOR_DTYPES_AND_SHAPES
    {
        SHAPE;
        array gate_up = operands(N * 2 * K), out = operands(N * K), d_out = operands(N * K);
        array d_gate_up = operands(N * 2 * K);
        (void)O;
        ON_BOTH(swiglu_forward, P(out), P(gate_up), N, K);
        compare("swiglu", &out, 1);
        ON_BOTH(swiglu_backward, P(d_gate_up), P(d_out), P(gate_up), N, K);
        compare("d_gate_up of swiglu", &d_gate_up, 1);
        drop(&gate_up), drop(&out), drop(&d_out), drop(&d_gate_up);
    }
}
END_TEST

START_TEST(embedding)
{
    FOR_DTYPES_AND_SHAPES
    {
        SHAPE;
        array tokens = bytes(N), table = numbers(256 * K), out = numbers(N * K);
        (void)O;
        ON_BOTH(embedding_forward, P(out), P(tokens), P(table), N, K);
        compare("embedding", &out, 0);
        ON_BOTH(embedding_backward, P(table), P(out), P(tokens), N, K);
        compare("d_table of embedding", &table, (double)N);
        drop(&tokens), drop(&table), drop(&out);
    }
}
END_TEST

START_TEST(cross_entropy)
{
    enum { V = 256 };
    FOR_DTYPES_AND_SHAPES
    {
        const int64_t N = shapes[n_shape].N;
        array targets = bytes(N), losses = numbers(N), d_logits = operands(N * V);
        array logits = new_array(N * V, false, 3);
        ON_BOTH(cross_entropy, P(losses), P(d_logits), P(logits), P(targets), 0.25, N, V);
        compare("losses", &losses, V);
        compare("d_logits", &d_logits, 1);
        drop(&logits);
        logits = new_array(N * V, false, 30);
        ON_BOTH(cross_entropy, P(losses), NULL, P(logits), P(targets), 0, N, V);
        compare("losses alone", &losses, V);
        drop(&targets), drop(&losses), drop(&d_logits), drop(&logits);
    }
}
END_TEST

START_TEST(optimizer)
{
    FOR_DTYPES_AND_SHAPES
    {
        SHAPE;
        const int64_t n = N * K + O;
        array weights = numbers(n), gradients = numbers(n), first = numbers(n), second = numbers(n);
        array rounded = operands(n);
        double sums[N_SIDES], squares[N_SIDES];
        failure why;
        for (int side = 0; side < N_SIDES; side++) {
            sides[side]->op->clear(sides[side], first.at[side], n * sides[side]->number_bytes);
            sides[side]->op->clear(sides[side], second.at[side], n * sides[side]->number_bytes);
        }
        for (int64_t number = 1; number <= 3; number++) {
            adamw_step step = {.beta1 = 0.9,
                               .beta2 = 0.99,
                               .weight_decay = 0.1,
                               .learning_rate = 0.01,
                               .decayed = N * K / 2,
                               .number = number};
            ON_BOTH(adamw, P(weights), P(rounded), P(first), P(second), P(gradients), n, &step);
            ON_BOTH(scale, P(gradients), -0.7, n);
        }
        compare("weights after AdamW", &weights, 1);
        compare("their copy", &rounded, 1);
        compare("running mean", &first, 1);
        compare("running mean of squares", &second, 1);
        for (int side = 0; side < N_SIDES; side++) {
            backend *on = sides[side];
            ck_assert(on->op->sum(on, weights.at[side], n, &sums[side], &why));
            ck_assert(on->op->sum_of_squares(on, weights.at[side], n, &squares[side], &why));
        }
        double size = sqrt((double)n * squares[REFERENCE]); /* at least that of all terms */
        ck_assert_double_eq_tol(sums[TESTED], sums[REFERENCE], 1e-5 * size);
        ck_assert_double_eq_tol(squares[TESTED], squares[REFERENCE], 1e-5 * squares[REFERENCE]);
        array *all[] = {&weights, &gradients, &first, &second, &rounded};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            drop(all[i]);
    }
}
END_TEST

/* Each sum over the rows of a batch, twice: bit for bit the same. */
START_TEST(sums_repeat)
{
    enum { N = 3000, C = 200, TIMES = 5 };
    open_sides(test_on_cuda() ? DTYPE_BF16 : DTYPE_F32);
    backend *on = sides[TESTED];
    array tokens = bytes(N), d_stream = numbers(N * C), in = numbers(N * C), scale = numbers(N);
    array weight = numbers(C), d_out = operands(N * C), factor = operands(N * C);
    double *first[3] = {NULL};
    for (int time = 0; time < TIMES; time++) {
        array d[3] = {numbers(256 * C), numbers(C), numbers(C * C)}, d_in = operands(N * C);
        array matrix = operands(C * C);
        for (int n = 0; n < 3; n++)
            on->op->clear(on, d[n].at[TESTED], d[n].n * on->number_bytes);
        on->op->clear(on, matrix.at[TESTED], matrix.n * on->operand_bytes);
        array d_norm_in = numbers(N * C), rounded = operands(N * C);
        on->op->embedding_backward(on, d[0].at[TESTED], d_stream.at[TESTED], tokens.at[TESTED], N,
                                   C);
        on->op->rmsnorm_backward(on, INTO_NUMBERS, d_norm_in.at[TESTED], rounded.at[TESTED],
                                 d[1].at[TESTED], d_out.at[TESTED], in.at[TESTED], scale.at[TESTED],
                                 weight.at[TESTED], N, C);
        on->op->linear_backward(on, d_in.at[TESTED], d[2].at[TESTED], d_out.at[TESTED],
                                factor.at[TESTED], matrix.at[TESTED], N, C, C);
        for (int n = 0; n < 3; n++) {
            double *got = fetch(&d[n], TESTED);
            if (first[n])
                ck_assert_mem_eq(got, first[n], (size_t)d[n].n * sizeof *got);
            else
                first[n] = got;
            if (got != first[n])
                free(got);
            drop(&d[n]);
        }
        drop(&d_in), drop(&matrix), drop(&d_norm_in), drop(&rounded);
    }
    for (int n = 0; n < 3; n++)
        free(first[n]);
    drop(&tokens), drop(&d_stream), drop(&in), drop(&scale);
    drop(&weight), drop(&d_out), drop(&factor);
    close_sides();
}
END_TEST

/* Bytes are drawn as often as softmax says; at temperature 0 the likeliest, the first of equals. */
START_TEST(draws)
{
    enum { V = 256, DRAWS = 4000 };
    failure why;
    uint8_t drawn;
    float values[V];
    double expected[V], sum = 0;
    int count[V] = {0};
    for (int v = 0; v < V; v++)
        values[v] = v < 8 ? (float)(v % 7) * 0.5f : -INFINITY;
    for (int v = 0; v < V; v++)
        sum += expected[v] = exp((double)values[v] / 0.7);
    open_sides(DTYPE_F32);
    backend *on = sides[TESTED];
    array logits = numbers(V);
    on->op->write(on, logits.at[TESTED], values, sizeof values);
    random_source draw_source = {3};
    for (int n = 0; n < DRAWS; n++) {
        ck_assert(on->op->draw(on, logits.at[TESTED], V, 0.7, &draw_source, &drawn, &why));
        count[drawn]++;
    }
    for (int v = 0; v < V; v++) { /* within five standard deviations */
        double p = expected[v] / sum, deviation = sqrt(DRAWS * p * (1 - p));
        ck_assert_msg(fabs(count[v] - DRAWS * p) <= 5 * deviation, "byte %d: %d draws of %d", v,
                      count[v], DRAWS);
    }
    values[3] = values[200] = 9;
    on->op->write(on, logits.at[TESTED], values, sizeof values);
    ck_assert(on->op->draw(on, logits.at[TESTED], V, 0, &draw_source, &drawn, &why));
    ck_assert_int_eq(drawn, 3);
    drop(&logits);
    close_sides();
}
END_TEST

/* The clock counts each phase for itself, and begins anew at each reading. */
START_TEST(clock_counts_phases)
{
    double seconds[N_PHASES];
    failure why;
    open_sides(DTYPE_F32);
    backend *on = sides[TESTED];
    array a = operands(512 * 512), b = operands(512 * 512), c = operands(512 * 512);
    ck_assert(on->op->read_clock(on, seconds, &why));
    ck_assert_int_eq(on->op->enter(on, PHASE_MASK), PHASE_REST);
    ck_assert_int_eq(on->op->enter(on, PHASE_REST), PHASE_MASK);
    for (int n = 0; n < 3000; n++) /* more marks than a device has room for */
        on->op->linear_forward(on, INTO_OPERANDS, c.at[TESTED], a.at[TESTED], b.at[TESTED],
                               n % 100 ? 1 : 512, 512, 512);
    ck_assert(on->op->read_clock(on, seconds, &why));
    ck_assert(seconds[PHASE_PRODUCTS] > 0 && seconds[PHASE_REST] > 0 && seconds[PHASE_MASK] > 0);
    ck_assert(seconds[PHASE_FORWARD] == 0 && seconds[PHASE_BACKWARD] == 0);
    ck_assert(on->op->read_clock(on, seconds, &why));
    ck_assert(seconds[PHASE_PRODUCTS] == 0 && seconds[PHASE_MASK] == 0);
    drop(&a), drop(&b), drop(&c);
    close_sides();
}
END_TEST

/* Each test is a case of its own, so that CK_RUN_CASE can name the one to run. */
static void add(Suite *suite, const char *name, const TTest *test)
{
    TCase *only = tcase_create(name);
    tcase_set_timeout(only, 60);
    tcase_add_test(only, test);
    suite_add_tcase(suite, only);
}

int main(void)
{
    Suite *suite = suite_create("demo: operations");
    add(suite, "products", products);
    add(suite, "rounding", rounding);
    add(suite, "rmsnorm", rmsnorm);
    add(suite, "rmsnorm_in_place", rmsnorm_in_place);
    add(suite, "rotary_positions", rotary_positions);
    add(suite, "swiglu", swiglu);
    add(suite, "embedding", embedding);
    add(suite, "cross_entropy", cross_entropy);
    add(suite, "optimizer", optimizer);
    add(suite, "sums_repeat", sums_repeat);
    add(suite, "draws", draws);
    add(suite, "clock_counts_phases", clock_counts_phases);
    return run_suite(suite);
}
