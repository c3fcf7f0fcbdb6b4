/* The 16-bit storage formats of the library against the tests' own conversions, which go by the
 * definition: every 16-bit number, and floats at, between and beside them. */
#include "core/float16.h"
#include "support.h"

#include <stdio.h>

typedef struct format {
    hpa_dtype dtype;
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
} format;

static float widen_f16(uint16_t bits)
{
    return hpa_float_from_f16(bits);
}

static uint16_t narrow_f16(float value)
{
    return hpa_f16_from_float(value);
}

static float widen_bf16(uint16_t bits)
{
    return hpa_float_from_bf16(bits);
}

static uint16_t narrow_bf16(float value)
{
    return hpa_bf16_from_float(value);
}

static const format formats[] = {{HPA_F16, widen_f16, narrow_f16},
                                 {HPA_BF16, widen_bf16, narrow_bf16}};

static bool same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b && !signbit(a) == !signbit(b);
}

static void check_narrow(const format *f, float value)
{
    const uint16_t got = f->narrow(value);
    uint16_t want;
    test_store(f->dtype, (unsigned char *)&want, (double)value);
    const double got_value = test_load(f->dtype, (const unsigned char *)&got);
    const double want_value = test_load(f->dtype, (const unsigned char *)&want);
    assert_that(same(got_value, want_value), "dtype %d: %a became %04x (%a), expected %04x (%a)",
                (int)f->dtype, (double)value, got, got_value, want, want_value);
}

START_TEST(every_number_widens_exactly_and_returns)
{
    const format *f = &formats[_i];
    for (int bits = 0; bits < 65536; bits++) {
        const uint16_t stored = (uint16_t)bits;
        const double want = test_load(f->dtype, (const unsigned char *)&stored);
        const float got = f->widen(stored);
        assert_that(same((double)got, want), "dtype %d: %04x is %a, expected %a", (int)f->dtype,
                    bits, (double)got, want);
        if (!isnan(want))
            assert_that(f->narrow(got) == stored, "dtype %d: %04x came back as %04x", (int)f->dtype,
                        bits, f->narrow(got));
        else
            assert_that(isnan(f->widen(f->narrow(got))), "a NaN came back as a number");
    }
}
END_TEST

/* A float beside each number, half way to the next, and beside that. */
START_TEST(what_lies_between_rounds_to_nearest_even)
{
    const format *f = &formats[_i];
    for (int bits = 0; bits < 65536; bits++) {
        const uint16_t stored = (uint16_t)bits, next = (uint16_t)(bits + 1);
        const double low = test_load(f->dtype, (const unsigned char *)&stored);
        const double high = test_load(f->dtype, (const unsigned char *)&next);
        if (!isfinite(low))
            continue;
        /* past the largest number lies one that would have been the next */
        const double step = isfinite(high) ? (high - low) / 2 : ldexp(low, -11);
        const float values[] = {(float)low, (float)(low + step)};
        for (int n = 0; n < 2; n++) {
            check_narrow(f, values[n]);
            check_narrow(f, nextafterf(values[n], INFINITY));
            check_narrow(f, nextafterf(values[n], -INFINITY));
        }
    }
}
END_TEST

START_TEST(random_floats_round_alike)
{
    const format *f = &formats[_i];
    test_random random = {(uint64_t)_i};
    for (int n = 0; n < 1000000; n++) {
        const uint32_t bits = (uint32_t)test_random_bits(&random);
        float value;
        memcpy(&value, &bits, sizeof value);
        check_narrow(f, value);
    }
}
END_TEST

START_TEST(the_ends_of_the_range)
{
    static const float values[] = {0,        -0.0F,     INFINITY,  -INFINITY,    NAN,
                                   65504,    65519.9F,  65520,     65536,        1e30F,
                                   3.4e38F,  0x1p-24F,  0x1p-25F,  0x1.8p-25F,   0x1p-26F,
                                   0x1p-14F, 0x1p-126F, 0x1p-149F, 0x1.fffp-15F, 0x1.ffcp-15F};
    for (size_t n = 0; n < sizeof values / sizeof values[0]; n++) {
        check_narrow(&formats[_i], values[n]);
        check_narrow(&formats[_i], -values[n]);
    }
    /* and known answers, so that the two do not share an error */
    ck_assert_uint_eq(hpa_f16_from_float(1), 0x3c00);
    ck_assert_uint_eq(hpa_f16_from_float(-2), 0xc000);
    ck_assert_uint_eq(hpa_f16_from_float(65504), 0x7bff);
    ck_assert_uint_eq(hpa_f16_from_float(65520), 0x7c00);
    ck_assert_uint_eq(hpa_f16_from_float(0x1p-24F), 0x0001);
    ck_assert_uint_eq(hpa_f16_from_float(0.333251953125F), 0x3555);
    ck_assert_uint_eq(hpa_bf16_from_float(1), 0x3f80);
    ck_assert_uint_eq(hpa_bf16_from_float(-2), 0xc000);
    ck_assert_uint_eq(hpa_bf16_from_float(1 + 0x1p-8F), 0x3f80);
    ck_assert_uint_eq(hpa_bf16_from_float(1 + 0x1.8p-7F), 0x3f82);
}
END_TEST

static Suite *float16_suite(void)
{
    Suite *suite = suite_create("float16");
    TCase *t = test_add_case(suite, "conversions", 30);
    tcase_add_loop_test(t, every_number_widens_exactly_and_returns, 0, 2);
    tcase_add_loop_test(t, what_lies_between_rounds_to_nearest_even, 0, 2);
    tcase_add_loop_test(t, random_floats_round_alike, 0, 2);
    tcase_add_loop_test(t, the_ends_of_the_range, 0, 2);
    return suite;
}

int main(void)
{
    return test_run(float16_suite());
}
