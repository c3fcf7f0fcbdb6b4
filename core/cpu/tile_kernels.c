/* The tile operations, for one instruction set and one kind of real numbers. The build compiles this
 * file for each, with the flags of the set, HPA_REAL_BITS, and HPA_TILES_NAME for the table that it
 * exports. The code is the same for all of them: vectors of the compiler's own, and loops that it
 * vectorises. */
#include "core/cpu/real.h"
#include "core/float16.h"

#include <math.h>
#include <string.h>

/* Bytes of a vector, and the largest piece of C that a product keeps in registers: rows times
 * vectors of them, beside one row of B and one number of A. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64 /* 32 registers: 24 for C */
#define PIECE_ROWS 6
#define PIECE_VECTORS 4
#elif defined(__AVX2__)
#define VECTOR_BYTES 32 /* 16 registers: 12 for C */
#define PIECE_ROWS 6
#define PIECE_VECTORS 2
#else
#define VECTOR_BYTES 16 /* at least 16 registers: 8 for C */
#define PIECE_ROWS 4
#define PIECE_VECTORS 2
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A loop of a few steps, their number known to the compiler, becomes straight code: the arrays that
 * it runs over can then live in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#if HPA_REAL_BITS == 32
#define bits_t uint32_t
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUNDER 0x1.8p23f /* adding it rounds to a whole number, kept in the low bits */
#else
#define bits_t uint64_t
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUNDER 0x1.8p52
#endif

typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(real)))

/* Products */

/* A piece of C of rows x vectors, summed in registers. rows, vectors and transposed are constants
 * where this is called, so the loops over them unroll. 2 rows vectors LANES k FLOPs. */
ALWAYS_INLINE void piece(const int rows, const int vectors, const bool transposed, int64_t k,
                         const real *a, int64_t a_stride, const real *b, int64_t b_stride, real *c,
                         int64_t c_stride, bool add)
{
    vector sum[PIECE_ROWS][PIECE_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? *(const vector *)(c + r * c_stride + v * LANES) : (vector){0};
    }
    for (int64_t n = 0; n < k; n++) {
        vector b_row[PIECE_VECTORS];
        UNROLL
        for (int v = 0; v < vectors; v++)
            b_row[v] = *(const vector *)(b + n * b_stride + v * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const real a_rk = transposed ? a[n * a_stride + r] : a[r * a_stride + n];
            UNROLL
            for (int v = 0; v < vectors; v++)
                sum[r][v] += a_rk * b_row[v];
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < vectors; v++)
            *(vector *)(c + r * c_stride + v * LANES) = sum[r][v];
    }
}

#define PIECE_CASE(rows, vectors)                                                       \
    case rows:                                                                          \
        if (transposed)                                                                 \
            piece(rows, vectors, true, k, a, a_stride, b, b_stride, c, c_stride, add);  \
        else                                                                            \
            piece(rows, vectors, false, k, a, a_stride, b, b_stride, c, c_stride, add); \
        break;

#if PIECE_ROWS == 6
#define PIECE_CASES(vectors) \
    PIECE_CASE(6, vectors)   \
    PIECE_CASE(5, vectors)   \
    PIECE_CASE(4, vectors)   \
    PIECE_CASE(3, vectors)   \
    PIECE_CASE(2, vectors)   \
    PIECE_CASE(1, vectors)
#else
#define PIECE_CASES(vectors) \
    PIECE_CASE(4, vectors)   \
    PIECE_CASE(3, vectors)   \
    PIECE_CASE(2, vectors)   \
    PIECE_CASE(1, vectors)
#endif

#define DEFINE_PIECES(vectors)                                                               \
    static void pieces_##vectors(int64_t rows, bool transposed, int64_t k, const real *a,    \
                                 int64_t a_stride, const real *b, int64_t b_stride, real *c, \
                                 int64_t c_stride, bool add)                                 \
    {                                                                                        \
        switch (rows) {                                                                      \
            PIECE_CASES(vectors)                                                             \
        default:                                                                             \
            break;                                                                           \
        }                                                                                    \
    }

DEFINE_PIECES(1)
DEFINE_PIECES(2)
#if PIECE_VECTORS == 4
DEFINE_PIECES(4)
#endif

typedef void (*piece_function)(int64_t rows, bool transposed, int64_t k, const real *a,
                               int64_t a_stride, const real *b, int64_t b_stride, real *c,
                               int64_t c_stride, bool add);

/* Rows [row, row + rows) of C in one panel of columns; k runs over [begin, end). */
ALWAYS_INLINE void piece_of(const hpa_product *p, piece_function pieces, int64_t column,
                            int64_t row, int64_t rows, int64_t begin, int64_t end, bool add)
{
    if (begin >= end && add)
        return;
    const real *a =
        p->a_transposed ? p->a + begin * p->a_stride + row : p->a + row * p->a_stride + begin;
    pieces(rows, p->a_transposed, end - begin, a, p->a_stride, p->b + begin * p->b_stride + column,
           p->b_stride, p->c + row * p->c_stride + column, p->c_stride, add);
}

ALWAYS_INLINE int64_t clamp(int64_t x, int64_t high)
{
    return x < 0 ? 0 : x > high ? high : x;
}

/* k <= row + shift: what all the rows share first, then what each has more. */
static void piece_up_to(const hpa_product *p, piece_function pieces, int64_t column, int64_t row,
                        int64_t rows)
{
    const int64_t shared = clamp(row + p->shift + 1, p->k);
    piece_of(p, pieces, column, row, rows, 0, shared, p->add);
    for (int64_t r = 1; r < rows; r++)
        piece_of(p, pieces, column, row + r, 1, shared, clamp(row + r + p->shift + 1, p->k), true);
}

/* k >= row - shift: what each row has more first, then what all share. */
static void piece_from(const hpa_product *p, piece_function pieces, int64_t column, int64_t row,
                       int64_t rows)
{
    const int64_t shared = clamp(row + rows - 1 - p->shift, p->k);
    for (int64_t r = 0; r < rows; r++)
        piece_of(p, pieces, column, row + r, 1, clamp(row + r - p->shift, p->k), shared, p->add);
    piece_of(p, pieces, column, row, rows, shared, p->k, true);
}

static void panel(const hpa_product *p, piece_function pieces, int64_t column)
{
    for (int64_t row = 0; row < p->m; row += PIECE_ROWS) {
        const int64_t rows = p->m - row < PIECE_ROWS ? p->m - row : PIECE_ROWS;
        if (p->part == HPA_UP_TO)
            piece_up_to(p, pieces, column, row, rows);
        else if (p->part == HPA_FROM)
            piece_from(p, pieces, column, row, rows);
        else
            piece_of(p, pieces, column, row, rows, 0, p->k, p->add);
    }
}

static void multiply(const hpa_product *p)
{
    int64_t column = 0;
#if PIECE_VECTORS == 4
    for (; column + 4 * LANES <= p->n; column += 4 * LANES)
        panel(p, pieces_4, column);
#endif
    for (; column + 2 * LANES <= p->n; column += 2 * LANES)
        panel(p, pieces_2, column);
    for (; column < p->n; column += LANES)
        panel(p, pieces_1, column);
}

/* Softmax */

#define STRIP 128 /* queries whose references are kept near */

ALWAYS_INLINE bits_t bits_of_real(real value)
{
    bits_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

ALWAYS_INLINE real real_of_bits(bits_t bits)
{
    real value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* 2^x = 2^n 2^r with n whole and |r| <= 1/2. 2^r is 1 + r q(r), q the polynomial that agrees with
 * (2^r - 1) / r at the Chebyshev nodes of [-1/2, 1/2]; its relative error is 5e-9 for float, 1e-19
 * for double. Below the smallest normal number the result is 0; NaN stays NaN, as the comparisons
 * are written so that they are false for it. */
ALWAYS_INLINE real power_of_two(real x, bool may_be_large)
{
    const real high = EXPONENT_BIAS + 1, low = -EXPONENT_BIAS;
    if (may_be_large)
        x = x > high ? high : x;
    x = x < low ? low : x;
    const real shifted = x + ROUNDER;
    const real r = x - (shifted - ROUNDER);
#if HPA_REAL_BITS == 32
    real q = 0.000154531629451206902f;
    q = q * r + 0.00133908633646712344f;
    q = q * r + 0.00961808255727785149f;
    q = q * r + 0.0555035711421907782f;
    q = q * r + 0.240226507605681269f;
    q = q * r + 0.693147188026228781f;
#else
    real q = 2.57293241773623042e-11;
    q = q * r + 4.45581790833606449e-10;
    q = q * r + 7.05489730415549928e-9;
    q = q * r + 1.01780570877339411e-7;
    q = q * r + 1.32154868087055628e-6;
    q = q * r + 0.0000152527338415567726;
    q = q * r + 0.000154035303933707334;
    q = q * r + 0.00133335581464064707;
    q = q * r + 0.00961812910762847949;
    q = q * r + 0.055504108664821627;
    q = q * r + 0.240226506959100712;
    q = q * r + 0.693147180559945309;
#endif
    const bits_t exponent = bits_of_real(shifted) + EXPONENT_BIAS;
    return (q * r + 1) * real_of_bits(exponent << MANTISSA_BITS);
}

/* What is subtracted from the scores before they become weights: their maximum, or 0 where there is
 * no score yet, so that -inf - -inf is not asked for. */
ALWAYS_INLINE real reference_score(real highest)
{
    return highest == -(real)INFINITY ? 0 : highest;
}

/* Queries [0, queries) of the tile, at most STRIP of them. */
static void softmax_strip(const hpa_score_tile *t, real *restrict highest, real *restrict sum,
                          real *restrict rescale)
{
    real reference[STRIP];
    for (int64_t q = 0; q < t->queries; q++)
        rescale[q] = highest[q];
    for (int64_t key = 0; key < t->keys; key++) {
        const real *restrict scores = t->data + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++)
            highest[q] = scores[q] > highest[q] ? scores[q] : highest[q];
    }
    for (int64_t q = 0; q < t->queries; q++) {
        reference[q] = reference_score(highest[q]);
        rescale[q] = power_of_two(rescale[q] - reference[q], false);
        sum[q] *= rescale[q];
    }
    for (int64_t key = 0; key < t->keys; key++) {
        real *restrict scores = t->data + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++) {
            const real weight = power_of_two(scores[q] - reference[q], false);
            scores[q] = weight;
            sum[q] += weight;
        }
    }
}

static void softmax(const hpa_score_tile *t, real *highest, real *sum, real *rescale)
{
    for (int64_t q = 0; q < t->queries; q += STRIP) {
        hpa_score_tile strip = *t;
        strip.data += q;
        strip.queries = t->queries - q < STRIP ? t->queries - q : STRIP;
        softmax_strip(&strip, highest + q, sum + q, rescale + q);
    }
}

static void softmax_gradient(const hpa_score_tile *t, real *restrict dp, const real *restrict lse,
                             const real *restrict delta)
{
    for (int64_t key = 0; key < t->keys; key++) {
        real *restrict scores = t->data + key * t->stride;
        real *restrict gradients = dp + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++) {
            const real weight = power_of_two(scores[q] - lse[q], true);
            scores[q] = weight;
            gradients[q] = weight * (gradients[q] - delta[q]);
        }
    }
}

/* Folds all keys into the first, then that one's vectors into one, then its halves. */
static real highest_score(const hpa_score_tile *t)
{
    real *restrict best = t->data;
    for (int64_t q = 0; q < t->queries; q++)
        best[q] = best[q] > -(real)INFINITY ? best[q] : -(real)INFINITY;
    for (int64_t key = 1; key < t->keys; key++) {
        const real *restrict scores = t->data + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++)
            best[q] = scores[q] > best[q] ? scores[q] : best[q];
    }
    for (int64_t q = HPA_TILE_PAD; q < t->queries; q += HPA_TILE_PAD)
        for (int64_t lane = 0; lane < HPA_TILE_PAD; lane++)
            best[lane] = best[q + lane] > best[lane] ? best[q + lane] : best[lane];
    for (int64_t width = HPA_TILE_PAD / 2; width > 0; width /= 2)
        for (int64_t lane = 0; lane < width; lane++)
            best[lane] = best[lane + width] > best[lane] ? best[lane + width] : best[lane];
    return best[0];
}

/* Rows */

#if HPA_REAL_BITS == 32
/* The conversions of core/float16.h without a branch, so that loops over them vectorise. */

ALWAYS_INLINE float float_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    /* 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal. */
    const float finite = hpa_float_from_bits(magnitude << 13) * 0x1p112f;
    const uint32_t special = 0x7f800000u | magnitude << 13;
    return hpa_float_from_bits(sign |
                               (magnitude >= 0x7c00u ? special : hpa_bits_from_float(finite)));
}

ALWAYS_INLINE uint16_t f16_from_float(float value)
{
    const uint32_t bits = hpa_bits_from_float(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    const uint32_t subnormal =
        hpa_bits_from_float(hpa_float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t rounded = magnitude >= 0x38800000u ? normal : subnormal;
    rounded = magnitude >= 0x477ff000u ? 0x7c00u : rounded;
    rounded = magnitude > 0x7f800000u ? (0x7e00u | (magnitude >> 13 & 0x3ffu)) : rounded;
    return (uint16_t)(sign | rounded);
}

ALWAYS_INLINE uint16_t bf16_from_float(float value)
{
    const uint32_t bits = hpa_bits_from_float(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const uint32_t nan = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}
#endif

static void scale_rows(real *data, int64_t stride, int64_t rows, int64_t n, const real *factor)
{
    for (int64_t r = 0; r < rows; r++) {
        const real f = factor[r];
        if (f == 1)
            continue;
        for (int64_t i = 0; i < n; i++)
            data[r * stride + i] *= f;
    }
}

static void row_dots(real *dots, const real *a, const real *b, int64_t stride, int64_t rows,
                     int64_t n)
{
    for (int64_t r = 0; r < rows; r++) {
        real sum[HPA_TILE_PAD] = {0};
        for (int64_t i = 0; i < n; i += HPA_TILE_PAD)
            for (int64_t lane = 0; lane < HPA_TILE_PAD; lane++)
                sum[lane] += a[r * stride + i + lane] * b[r * stride + i + lane];
        for (int64_t width = HPA_TILE_PAD / 2; width > 0; width /= 2)
            for (int64_t lane = 0; lane < width; lane++)
                sum[lane] += sum[lane + width];
        dots[r] = sum[0];
    }
}

static void transpose(real *restrict to, int64_t to_stride, const real *restrict from,
                      int64_t from_stride, int64_t rows, int64_t columns, real factor)
{
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++)
            to[c * to_stride + r] = factor * from[r * from_stride + c];
}

static void read_row(real *restrict to, const void *restrict from, hpa_dtype dtype, int64_t at,
                     int64_t n)
{
#if HPA_REAL_BITS == 64
    (void)dtype; /* f64 alone is computed in double */
    memcpy(to, (const double *)from + at, (size_t)n * sizeof(double));
#else
    if (dtype == HPA_F32)
        memcpy(to, (const float *)from + at, (size_t)n * sizeof(float));
    else if (dtype == HPA_BF16)
        for (int64_t i = 0; i < n; i++)
            to[i] = hpa_float_from_bf16(((const uint16_t *)from)[at + i]);
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = float_from_f16(((const uint16_t *)from)[at + i]);
#endif
}

static void read_rows(real *to, int64_t to_stride, const void *from, hpa_dtype dtype,
                      int64_t from_stride, int64_t rows, int64_t n)
{
    const int64_t padded = (n + HPA_TILE_PAD - 1) / HPA_TILE_PAD * HPA_TILE_PAD;
    for (int64_t r = 0; r < rows; r++) {
        read_row(to + r * to_stride, from, dtype, r * from_stride, n);
        for (int64_t i = n; i < padded; i++)
            to[r * to_stride + i] = 0;
    }
}

static void write_row(void *restrict to, hpa_dtype dtype, int64_t at, const real *restrict from,
                      int64_t n, real factor, bool add)
{
#if HPA_REAL_BITS == 64
    (void)dtype;
    double *restrict t = (double *)to + at;
    for (int64_t i = 0; i < n; i++)
        t[i] = (add ? t[i] : 0) + factor * from[i];
#else
    if (dtype == HPA_F32) {
        float *restrict t = (float *)to + at;
        for (int64_t i = 0; i < n; i++)
            t[i] = (add ? t[i] : 0) + factor * from[i];
        return;
    }
    uint16_t *restrict t = (uint16_t *)to + at;
    if (dtype == HPA_BF16)
        for (int64_t i = 0; i < n; i++)
            t[i] = bf16_from_float((add ? hpa_float_from_bf16(t[i]) : 0) + factor * from[i]);
    else
        for (int64_t i = 0; i < n; i++)
            t[i] = f16_from_float((add ? float_from_f16(t[i]) : 0) + factor * from[i]);
#endif
}

static void write_rows(void *to, hpa_dtype dtype, int64_t to_stride, const real *from,
                       int64_t from_stride, int64_t rows, int64_t n, real factor, bool add)
{
    for (int64_t r = 0; r < rows; r++)
        write_row(to, dtype, r * to_stride, from + r * from_stride, n, factor, add);
}

extern const hpa_tiles HPA_TILES_NAME;
const hpa_tiles HPA_TILES_NAME = {
    .multiply = multiply,
    .softmax = softmax,
    .softmax_gradient = softmax_gradient,
    .highest = highest_score,
    .scale_rows = scale_rows,
    .row_dots = row_dots,
    .read_rows = read_rows,
    .write_rows = write_rows,
    .transpose = transpose,
};
