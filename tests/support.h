/* What every suite uses: the backend under test, its memory, random numbers and assertions.
 *
 * HPA_TEST_BACKEND names the backend: "cpu", the fast path (the default), "reference", the plain
 * loops, or "cuda". Tests reach the backend's memory through test_buffer_read and test_buffer_write alone. */
#ifndef HPA_TESTS_SUPPORT_H
#define HPA_TESTS_SUPPORT_H

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hpa/hpa.h"

/* Backend */

/* The defaults of hpa_desc_default, on the backend under test. */
hpa_desc test_desc(void);

/* The same description for the plain loops, which the other backends are compared with. */
hpa_desc test_reference_desc(const hpa_desc *desc);

/* What calls of the backend are enqueued on; NULL for the host. */
void *test_stream(void);

/* Does a call do its work before it returns, and so look into lengths and masks first? Not where it
 * only enqueues its work. */
bool test_calls_wait(void);

/* Are products of 16-bit tensors taken of 16-bit factors, the probabilities among them? */
bool test_rounds_factors(hpa_dtype dtype);

/* Is a result, that a NaN elsewhere must not reach, what it was without that NaN? To the bit, but for
 * kernels that round factors: they may compute what lies near a NaN another way. */
bool test_is_unchanged(hpa_dtype dtype, double now, double before);

/* Runs a suite and gives main's exit status: 77, for "skipped", where the backend is CUDA and the
 * machine has no device, unless HPA_REQUIRE_GPU is set. */
int test_run(Suite *suite);

/* A test case whose tests may run this long before Check kills them; sanitizers get more. */
TCase *test_add_case(Suite *suite, const char *name, double seconds);

/* Memory of the backend, or of the host for what calls return there, filled with 0xFF (a NaN in every dtype) between two guards.
 * It starts at an odd multiple of 16 bytes: the least that the interface asks for. */

typedef struct test_buffer {
    unsigned char *data; /* the backend's address */
    size_t bytes;
    unsigned char *block;
    size_t block_bytes;
    bool on_host;
} test_buffer;

void test_buffer_new(test_buffer *buffer, size_t bytes);
/* In the memory of plans of a device: not the backend's where the reference is asked for. */
void test_buffer_new_for(test_buffer *buffer, size_t bytes, hpa_device device);
void test_buffer_new_on_host(test_buffer *buffer, size_t bytes);
/* Checks the guards, then frees. */
void test_buffer_free(test_buffer *buffer);
void test_buffer_read(const test_buffer *buffer, size_t offset, void *to, size_t bytes);
void test_buffer_write(const test_buffer *buffer, size_t offset, const void *from, size_t bytes);
void test_buffer_fill(const test_buffer *buffer, int byte);
/* A copy on the host, to be freed. */
unsigned char *test_buffer_copy(const test_buffer *buffer);
uint64_t test_buffer_hash(const test_buffer *buffer);
void assert_guards(const test_buffer *buffer);

/* Elements, by conversions of the tests' own */

size_t test_dtype_size(hpa_dtype dtype);
double test_load(hpa_dtype dtype, const unsigned char *at);
void test_store(hpa_dtype dtype, unsigned char *at, double value);
/* What is left of value once it was stored. */
double test_rounded(hpa_dtype dtype, double value);
static inline hpa_dtype test_lse_dtype(hpa_dtype dtype)
{
    return dtype == HPA_F64 ? HPA_F64 : HPA_F32;
}

/* Random numbers: splitmix64 */

typedef struct test_random {
    uint64_t state;
} test_random;

uint64_t test_random_bits(test_random *random);
int64_t test_random_integer(test_random *random, int64_t low, int64_t high); /* both included */
double test_random_uniform(test_random *random);                             /* [0, 1) */
double test_random_normal(test_random *random);

/* malloc that fails the test */
void *test_allocate(int64_t count, size_t size);

/* Assertions */

/* As ck_assert_msg, which also writes to a file each time that it holds: too slow for a loop. */
#define assert_that(condition, ...)    \
    do {                               \
        if (!(condition))              \
            ck_abort_msg(__VA_ARGS__); \
    } while (0)

#define assert_ok(call)                                                   \
    do {                                                                  \
        const hpa_status assert_ok_status = (call);                       \
        assert_that(assert_ok_status == HPA_OK, "%s gave %s: %s", #call,  \
                    hpa_status_name(assert_ok_status), hpa_last_error()); \
    } while (0)

/* The status is as wanted, and hpa_last_error() holds each of the words (separated by '|'). */
#define assert_failure(call, want, words) \
    assert_failure_is(#call, (call), (want), (words), __FILE__, __LINE__)

void assert_failure_is(const char *call, hpa_status got, hpa_status want, const char *words,
                       const char *file, int line);

/* |got - want| <= atol + rtol * |want|, or both the same infinity. NaN fails. */
void assert_close(const char *name, const double *got, const double *want, int64_t n, double atol,
                  double rtol);

#endif
