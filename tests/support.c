#define _POSIX_C_SOURCE 200809L
#include "support.h"
#ifdef HPA_WITH_CUDA
#include "device.h"
#endif

#include <inttypes.h>
#include <stdio.h>

/* gcc defines macros, clang has features. */
#if defined(__SANITIZE_ADDRESS__)
#define TEST_ADDRESS_SANITIZER 1
#elif defined(__SANITIZE_THREAD__)
#define TEST_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEST_ADDRESS_SANITIZER 1
#elif __has_feature(thread_sanitizer)
#define TEST_THREAD_SANITIZER 1
#endif
#endif

#ifdef TEST_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#define POISON(address, bytes) ASAN_POISON_MEMORY_REGION(address, bytes)
#define UNPOISON(address, bytes) ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#else
#define POISON(address, bytes) ((void)(address), (void)(bytes))
#define UNPOISON(address, bytes) ((void)(address), (void)(bytes))
#endif

/* Backend */

static bool backend_is(const char *name)
{
    const char *backend = getenv("HPA_TEST_BACKEND");
    return strcmp(backend ? backend : "cpu", name) == 0;
}

static bool on_device(void)
{
    return backend_is("cuda");
}

hpa_desc test_desc(void)
{
    hpa_desc desc = hpa_desc_default();
    assert_that(backend_is("cpu") || backend_is("reference") || backend_is("cuda"),
                "HPA_TEST_BACKEND is \"%s\", expected cpu, reference or cuda",
                getenv("HPA_TEST_BACKEND"));
    desc.device = on_device() ? HPA_CUDA : HPA_CPU;
    desc.reference = backend_is("reference");
    return desc;
}

void *test_stream(void)
{
#ifdef HPA_WITH_CUDA
    if (on_device())
        return test_device_stream();
#endif
    return NULL;
}

bool test_calls_wait(void)
{
    return !on_device();
}

bool test_rounds_factors(hpa_dtype dtype)
{
    return on_device() && (dtype == HPA_F16 || dtype == HPA_BF16);
}

bool test_is_unchanged(hpa_dtype dtype, double now, double before)
{
    if (!test_rounds_factors(dtype))
        return now == before || (isnan(now) && isnan(before));
    return now == before || fabs(now - before) <= 0.02 * fabs(before) + 0.002;
}

hpa_desc test_reference_desc(const hpa_desc *desc)
{
    hpa_desc reference = *desc;
    reference.device = HPA_CPU;
    reference.device_id = 0;
    reference.reference = true;
    return reference;
}

/* Is there no CUDA device? A driver that is there and fails is not that. */
static bool has_no_device(void)
{
    const hpa_desc desc = test_desc();
    hpa_plan *plan;
    const hpa_status status = hpa_plan_create(&plan, &desc);
    hpa_plan_destroy(plan);
    return status == HPA_NO_DEVICE;
}

enum { SKIPPED = 77 };

int test_run(Suite *suite)
{
    if (on_device() && !getenv("HPA_REQUIRE_GPU") && has_no_device()) {
        printf("skipped: %s\n", hpa_last_error());
        return SKIPPED;
    }
    SRunner *runner = srunner_create(suite);
    if (on_device()) /* a CUDA context does not survive a fork */
        srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    const int ran = srunner_ntests_run(runner);
    srunner_free(runner);
    return failed == 0 && ran > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

TCase *test_add_case(Suite *suite, const char *name, double seconds)
{
    TCase *tcase = tcase_create(name);
#if defined(TEST_ADDRESS_SANITIZER) || defined(TEST_THREAD_SANITIZER) || !defined(__OPTIMIZE__)
    seconds *= 10;
#endif
    tcase_set_timeout(tcase, seconds);
    suite_add_tcase(suite, tcase);
    return tcase;
}

/* Memory */

enum { GUARD_BYTES = 64, ALIGNMENT = 64, GUARD = 0x5a, FILL = 0xff };

void *test_allocate(int64_t count, size_t size)
{
    void *memory = malloc(count > 0 ? (size_t)count * size : 1);
    assert_that(memory != NULL, "the test is out of memory");
    return memory;
}

static void copy_from(const test_buffer *b, void *to, const unsigned char *from, size_t bytes)
{
    if (bytes == 0)
        return;
#ifdef HPA_WITH_CUDA
    if (!b->on_host) {
        test_device_read(to, from, bytes);
        return;
    }
#endif
    (void)b;
    memcpy(to, from, bytes);
}

static void copy_to(const test_buffer *b, unsigned char *to, const void *from, size_t bytes)
{
    if (bytes == 0)
        return;
#ifdef HPA_WITH_CUDA
    if (!b->on_host) {
        test_device_write(to, from, bytes);
        return;
    }
#endif
    (void)b;
    memcpy(to, from, bytes);
}

static void fill(const test_buffer *b, unsigned char *at, int byte, size_t bytes)
{
    if (bytes == 0)
        return;
#ifdef HPA_WITH_CUDA
    if (!b->on_host) {
        test_device_fill(at, byte, bytes);
        return;
    }
#endif
    (void)b;
    memset(at, byte, bytes);
}

static void set_guards(const test_buffer *b, bool poisoned)
{
    if (!b->on_host)
        return;
    unsigned char *end = b->data + b->bytes;
    const size_t before = (size_t)(b->data - b->block);
    const size_t after = (size_t)(b->block + b->block_bytes - end);
    if (poisoned) {
        POISON(b->block, before);
        POISON(end, after);
    } else {
        UNPOISON(b->block, before);
        UNPOISON(end, after);
    }
}

static unsigned char *allocate_block(const test_buffer *b)
{
#ifdef HPA_WITH_CUDA
    if (!b->on_host)
        return test_device_allocate(b->block_bytes);
#endif
    unsigned char *block = malloc(b->block_bytes);
    assert_that(block != NULL, "the test is out of memory");
    return block;
}

static void new_buffer(test_buffer *b, size_t bytes, bool on_host)
{
    b->bytes = bytes;
    b->on_host = on_host;
    b->block_bytes = bytes + 2 * GUARD_BYTES + 2 * ALIGNMENT;
    b->block = allocate_block(b);
    const uintptr_t first = (uintptr_t)b->block + GUARD_BYTES;
    b->data = b->block + GUARD_BYTES + (ALIGNMENT - first % ALIGNMENT) + 16;
    fill(b, b->block, GUARD, b->block_bytes);
    fill(b, b->data, FILL, bytes);
    set_guards(b, true);
}

void test_buffer_new(test_buffer *b, size_t bytes)
{
    new_buffer(b, bytes, !on_device());
}

void test_buffer_new_for(test_buffer *b, size_t bytes, hpa_device device)
{
    new_buffer(b, bytes, device == HPA_CPU);
}

void test_buffer_new_on_host(test_buffer *b, size_t bytes)
{
    new_buffer(b, bytes, true);
}

/* One guard: the bytes from `at` to `end`. */
static void assert_guard(const test_buffer *b, const unsigned char *at, const unsigned char *end)
{
    unsigned char guard[2 * GUARD_BYTES + 2 * ALIGNMENT];
    const size_t bytes = (size_t)(end - at);
    copy_from(b, guard, at, bytes);
    for (size_t n = 0; n < bytes; n++)
        assert_that(guard[n] == GUARD, "byte %td of a buffer of %zu bytes was written",
                    at + n - b->data, b->bytes);
}

void assert_guards(const test_buffer *b)
{
    if (!b->block)
        return;
    set_guards(b, false);
    assert_guard(b, b->block, b->data);
    assert_guard(b, b->data + b->bytes, b->block + b->block_bytes);
    set_guards(b, true);
}

void test_buffer_free(test_buffer *b)
{
    if (!b->block)
        return;
    assert_guards(b);
    set_guards(b, false);
#ifdef HPA_WITH_CUDA
    if (!b->on_host)
        test_device_free(b->block);
#endif
    if (b->on_host)
        free(b->block);
    *b = (test_buffer){0};
}

void test_buffer_read(const test_buffer *b, size_t offset, void *to, size_t bytes)
{
    copy_from(b, to, b->data + offset, bytes);
}

void test_buffer_write(const test_buffer *b, size_t offset, const void *from, size_t bytes)
{
    copy_to(b, b->data + offset, from, bytes);
}

void test_buffer_fill(const test_buffer *b, int byte)
{
    fill(b, b->data, byte, b->bytes);
}

unsigned char *test_buffer_copy(const test_buffer *b)
{
    unsigned char *copy = test_allocate((int64_t)b->bytes, 1);
    test_buffer_read(b, 0, copy, b->bytes);
    return copy;
}

uint64_t test_buffer_hash(const test_buffer *b)
{
    if (b->bytes == 0)
        return 0;
    unsigned char *copy = test_buffer_copy(b);
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t n = 0; n < b->bytes; n++)
        hash = (hash ^ copy[n]) * UINT64_C(1099511628211);
    free(copy);
    return hash;
}

/* Elements */

size_t test_dtype_size(hpa_dtype dtype)
{
    switch (dtype) {
    case HPA_F64:
        return 8;
    case HPA_F32:
        return 4;
    case HPA_F16:
    case HPA_BF16:
        return 2;
    default:
        ck_abort_msg("no tensor has dtype %d", (int)dtype);
    }
    return 0;
}

/* IEEE 754 interchange with so many bits of mantissa; the exponent has the rest of the 15. */
static double widen(uint16_t bits, int mantissa_bits)
{
    const int exponent_mask = (1 << (15 - mantissa_bits)) - 1;
    const int bias = exponent_mask / 2;
    const int exponent = bits >> mantissa_bits & exponent_mask;
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    double value;
    if (exponent == exponent_mask)
        value = mantissa ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        value = ldexp(mantissa, 1 - bias - mantissa_bits);
    else
        value = ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return bits >> 15 ? -value : value;
}

/* To nearest, ties to even. */
static uint16_t narrow(double value, int mantissa_bits)
{
    const int exponent_mask = (1 << (15 - mantissa_bits)) - 1;
    const int bias = exponent_mask / 2;
    const int infinity = exponent_mask << mantissa_bits;
    const int sign = signbit(value) ? 1 << 15 : 0;
    if (isnan(value))
        return (uint16_t)(sign | infinity | 1 << (mantissa_bits - 1));
    if (isinf(value))
        return (uint16_t)(sign | infinity);
    if (value == 0)
        return (uint16_t)sign;
    int exponent; /* |value| < 2^exponent */
    frexp(value, &exponent);
    const int biased = exponent - 1 + bias > 1 ? exponent - 1 + bias : 1;
    if (biased >= exponent_mask)
        return (uint16_t)(sign | infinity);
    const int quanta = (int)nearbyint(ldexp(fabs(value), mantissa_bits + bias - biased));
    const int magnitude =
        ((biased - 1) << mantissa_bits) + quanta; /* a carry raises the exponent */
    return (uint16_t)(sign | (magnitude < infinity ? magnitude : infinity));
}

enum { F16_MANTISSA = 10, BF16_MANTISSA = 7 };

double test_load(hpa_dtype dtype, const unsigned char *at)
{
    double f64;
    float f32;
    uint16_t bits;
    switch (dtype) {
    case HPA_F64:
        memcpy(&f64, at, sizeof f64);
        return f64;
    case HPA_F32:
        memcpy(&f32, at, sizeof f32);
        return (double)f32;
    default:
        memcpy(&bits, at, sizeof bits);
        return widen(bits, dtype == HPA_F16 ? F16_MANTISSA : BF16_MANTISSA);
    }
}

void test_store(hpa_dtype dtype, unsigned char *at, double value)
{
    const float f32 = (float)value;
    uint16_t bits;
    switch (dtype) {
    case HPA_F64:
        memcpy(at, &value, sizeof value);
        return;
    case HPA_F32:
        memcpy(at, &f32, sizeof f32);
        return;
    default:
        bits = narrow(value, dtype == HPA_F16 ? F16_MANTISSA : BF16_MANTISSA);
        memcpy(at, &bits, sizeof bits);
    }
}

double test_rounded(hpa_dtype dtype, double value)
{
    unsigned char bytes[8];
    test_store(dtype, bytes, value);
    return test_load(dtype, bytes);
}

/* Random numbers */

uint64_t test_random_bits(test_random *random)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

int64_t test_random_integer(test_random *random, int64_t low, int64_t high)
{
    return low + (int64_t)(test_random_bits(random) % (uint64_t)(high - low + 1));
}

double test_random_uniform(test_random *random)
{
    return (double)(test_random_bits(random) >> 11) * 0x1p-53;
}

double test_random_normal(test_random *random)
{
    const double radius = sqrt(-2 * log(1 - test_random_uniform(random)));
    return radius * cos(6.283185307179586 * test_random_uniform(random));
}

/* Assertions */

void assert_failure_is(const char *call, hpa_status got, hpa_status want, const char *words,
                       const char *file, int line)
{
    const char *error = hpa_last_error();
    assert_that(got == want, "%s:%d: %s gave %s (%s), expected %s", file, line, call,
                hpa_status_name(got), error, hpa_status_name(want));
    char list[256];
    ck_assert_int_lt(snprintf(list, sizeof list, "%s", words), (int)sizeof list);
    char *rest = NULL;
    for (char *word = strtok_r(list, "|", &rest); word; word = strtok_r(NULL, "|", &rest))
        assert_that(strstr(error, word) != NULL, "%s:%d: %s: the error \"%s\" lacks \"%s\"", file,
                    line, call, error, word);
}

void assert_close(const char *name, const double *got, const double *want, int64_t n, double atol,
                  double rtol)
{
    int64_t worst = -1;
    double worst_excess = 0;
    for (int64_t i = 0; i < n; i++) {
        if (got[i] == want[i])
            continue;
        const double excess = fabs(got[i] - want[i]) / (atol + rtol * fabs(want[i]));
        if (!(excess <= 1) && (worst < 0 || !(excess <= worst_excess))) {
            worst = i;
            worst_excess = excess;
        }
    }
    if (worst >= 0)
        ck_abort_msg("%s: element %" PRId64 " of %" PRId64 " is %.17g, expected %.17g: %g times "
                     "the tolerance of %g + %g relative",
                     name, worst, n, got[worst], want[worst], worst_excess, atol, rtol);
}
