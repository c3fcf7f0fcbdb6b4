/* The bodies of the tile operations for one kind of real numbers: tile_kernels.c includes this
 * twice. */
#include "core/cpu/real.h"

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

typedef real NAMED(vector)
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
#define vector NAMED(vector)
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(real)))

/* Products */

/* A piece of C of rows x vectors, summed in registers. rows, vectors and transposed are constants
 * where this is called, so the loops over them unroll. 2 rows vectors LANES k FLOPs. */
ALWAYS_INLINE void NAMED(piece)(const int rows, const int vectors, const bool transposed, int64_t k,
                                const real *a, int64_t a_stride, const real *b, int64_t b_stride,
                                real *c, int64_t c_stride, bool add)
{
    vector sum[PIECE_ROWS][PIECE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? *(const vector *)(c + r * c_stride + v * LANES) : (vector){0};
    for (int64_t n = 0; n < k; n++) {
        vector b_row[PIECE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            b_row[v] = *(const vector *)(b + n * b_stride + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const real a_rk = transposed ? a[n * a_stride + r] : a[r * a_stride + n];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] += a_rk * b_row[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            *(vector *)(c + r * c_stride + v * LANES) = sum[r][v];
}

#define PIECE_CASE(rows, vectors)                                                              \
    case rows:                                                                                 \
        if (transposed)                                                                        \
            NAMED(piece)(rows, vectors, true, k, a, a_stride, b, b_stride, c, c_stride, add);  \
        else                                                                                   \
            NAMED(piece)(rows, vectors, false, k, a, a_stride, b, b_stride, c, c_stride, add); \
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

#define DEFINE_PIECES(vectors)                                                                   \
    static void NAMED(pieces_##vectors)(int64_t rows, bool transposed, int64_t k, const real *a, \
                                        int64_t a_stride, const real *b, int64_t b_stride,       \
                                        real *c, int64_t c_stride, bool add)                     \
    {                                                                                            \
        switch (rows) {                                                                          \
            PIECE_CASES(vectors)                                                                 \
        default:                                                                                 \
            break;                                                                               \
        }                                                                                        \
    }

DEFINE_PIECES(1)
DEFINE_PIECES(2)
#if PIECE_VECTORS == 4
DEFINE_PIECES(4)
#endif

typedef void (*NAMED(pieces))(int64_t rows, bool transposed, int64_t k, const real *a,
                              int64_t a_stride, const real *b, int64_t b_stride, real *c,
                              int64_t c_stride, bool add);

/* Rows [row, row + rows) of C in one panel of columns; k runs over [begin, end). */
ALWAYS_INLINE void NAMED(piece_of)(const NAMED(hpa_product) * p, NAMED(pieces) pieces,
                                   int64_t column, int64_t row, int64_t rows, int64_t begin,
                                   int64_t end, bool add)
{
    if (begin >= end && add)
        return;
    const real *a =
        p->a_transposed ? p->a + begin * p->a_stride + row : p->a + row * p->a_stride + begin;
    pieces(rows, p->a_transposed, end - begin, a, p->a_stride, p->b + begin * p->b_stride + column,
           p->b_stride, p->c + row * p->c_stride + column, p->c_stride, add);
}

ALWAYS_INLINE int64_t NAMED(clamp)(int64_t x, int64_t high)
{
    return x < 0 ? 0 : x > high ? high : x;
}

/* k <= row + shift: what all the rows share first, then what each has more. */
static void NAMED(piece_up_to)(const NAMED(hpa_product) * p, NAMED(pieces) pieces, int64_t column,
                               int64_t row, int64_t rows)
{
    const int64_t shared = NAMED(clamp)(row + p->shift + 1, p->k);
    NAMED(piece_of)(p, pieces, column, row, rows, 0, shared, p->add);
    for (int64_t r = 1; r < rows; r++)
        NAMED(piece_of)
        (p, pieces, column, row + r, 1, shared, NAMED(clamp)(row + r + p->shift + 1, p->k), true);
}

/* k >= row - shift: what each row has more first, then what all share. */
static void NAMED(piece_from)(const NAMED(hpa_product) * p, NAMED(pieces) pieces, int64_t column,
                              int64_t row, int64_t rows)
{
    const int64_t shared = NAMED(clamp)(row + rows - 1 - p->shift, p->k);
    for (int64_t r = 0; r < rows; r++)
        NAMED(piece_of)
        (p, pieces, column, row + r, 1, NAMED(clamp)(row + r - p->shift, p->k), shared, p->add);
    NAMED(piece_of)(p, pieces, column, row, rows, shared, p->k, true);
}

static void NAMED(panel)(const NAMED(hpa_product) * p, NAMED(pieces) pieces, int64_t column)
{
    for (int64_t row = 0; row < p->m; row += PIECE_ROWS) {
        const int64_t rows = p->m - row < PIECE_ROWS ? p->m - row : PIECE_ROWS;
        if (p->part == HPA_UP_TO)
            NAMED(piece_up_to)(p, pieces, column, row, rows);
        else if (p->part == HPA_FROM)
            NAMED(piece_from)(p, pieces, column, row, rows);
        else
            NAMED(piece_of)(p, pieces, column, row, rows, 0, p->k, p->add);
    }
}

static void NAMED(multiply)(const NAMED(hpa_product) * p)
{
    int64_t column = 0;
#if PIECE_VECTORS == 4
    for (; column + 4 * LANES <= p->n; column += 4 * LANES)
        NAMED(panel)(p, NAMED(pieces_4), column);
#endif
    for (; column + 2 * LANES <= p->n; column += 2 * LANES)
        NAMED(panel)(p, NAMED(pieces_2), column);
    for (; column < p->n; column += LANES)
        NAMED(panel)(p, NAMED(pieces_1), column);
}

/* Softmax */

ALWAYS_INLINE bits_t NAMED(bits_of)(real value)
{
    bits_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

ALWAYS_INLINE real NAMED(real_of)(bits_t bits)
{
    real value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* 2^x = 2^n 2^r with n whole and |r| <= 1/2. 2^r is 1 + r q(r), q the polynomial that agrees with
 * (2^r - 1) / r at the Chebyshev nodes of [-1/2, 1/2]; its relative error is 5e-9 for float, 1e-19
 * for double. Below the smallest normal number the result is 0; NaN stays NaN, as the comparisons
 * are written so that they are false for it. */
ALWAYS_INLINE real NAMED(power_of_two)(real x)
{
    const real high = EXPONENT_BIAS + 1, low = -EXPONENT_BIAS;
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
    const bits_t exponent = NAMED(bits_of)(shifted) + EXPONENT_BIAS;
    return (q * r + 1) * NAMED(real_of)(exponent << MANTISSA_BITS);
}

/* What is subtracted from the scores before they become weights: their maximum, or 0 where there is
 * no score yet, so that -inf - -inf is not asked for. */
ALWAYS_INLINE real NAMED(reference_score)(real highest)
{
    return highest == -(real)INFINITY ? 0 : highest;
}

static void NAMED(softmax)(const NAMED(hpa_score_tile) * t, real *restrict highest,
                           real *restrict sum, real *restrict rescale)
{
    for (int64_t q = 0; q < t->queries; q++)
        rescale[q] = highest[q];
    for (int64_t key = 0; key < t->keys; key++) {
        const real *restrict scores = t->data + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++)
            highest[q] = scores[q] > highest[q] ? scores[q] : highest[q];
    }
    for (int64_t q = 0; q < t->queries; q++) {
        rescale[q] = NAMED(power_of_two)(rescale[q] - NAMED(reference_score)(highest[q]));
        sum[q] *= rescale[q];
    }
    for (int64_t key = 0; key < t->keys; key++) {
        real *restrict scores = t->data + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++) {
            const real weight = NAMED(power_of_two)(scores[q] - NAMED(reference_score)(highest[q]));
            scores[q] = weight;
            sum[q] += weight;
        }
    }
}

static void NAMED(softmax_gradient)(const NAMED(hpa_score_tile) * t, real *restrict dp,
                                    const real *restrict lse, const real *restrict delta)
{
    for (int64_t key = 0; key < t->keys; key++) {
        real *restrict scores = t->data + key * t->stride;
        real *restrict gradients = dp + key * t->stride;
        for (int64_t q = 0; q < t->queries; q++) {
            const real weight = NAMED(power_of_two)(scores[q] - lse[q]);
            scores[q] = weight;
            gradients[q] = weight * (gradients[q] - delta[q]);
        }
    }
}

/* Folds all keys into the first, then that one's vectors into one, then its halves. */
static real NAMED(highest)(const NAMED(hpa_score_tile) * t)
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

static void NAMED(scale_rows)(real *data, int64_t stride, int64_t rows, int64_t n,
                              const real *factor)
{
    for (int64_t r = 0; r < rows; r++) {
        const real f = factor[r];
        if (f == 1)
            continue;
        for (int64_t i = 0; i < n; i++)
            data[r * stride + i] *= f;
    }
}

static void NAMED(row_dots)(real *dots, const real *a, const real *b, int64_t stride, int64_t rows,
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

static void NAMED(transpose)(real *restrict to, int64_t to_stride, const real *restrict from,
                             int64_t from_stride, int64_t rows, int64_t columns, real factor)
{
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++)
            to[c * to_stride + r] = factor * from[r * from_stride + c];
}

static void NAMED(read_row)(real *restrict to, const void *restrict from, hpa_dtype dtype,
                            int64_t at, int64_t n)
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

static void NAMED(read_rows)(real *to, int64_t to_stride, const void *from, hpa_dtype dtype,
                             int64_t from_stride, int64_t rows, int64_t n)
{
    const int64_t padded = (n + HPA_TILE_PAD - 1) / HPA_TILE_PAD * HPA_TILE_PAD;
    for (int64_t r = 0; r < rows; r++) {
        NAMED(read_row)(to + r * to_stride, from, dtype, r * from_stride, n);
        for (int64_t i = n; i < padded; i++)
            to[r * to_stride + i] = 0;
    }
}

static void NAMED(write_row)(void *restrict to, hpa_dtype dtype, int64_t at,
                             const real *restrict from, int64_t n, real factor, bool add)
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

static void NAMED(write_rows)(void *to, hpa_dtype dtype, int64_t to_stride, const real *from,
                              int64_t from_stride, int64_t rows, int64_t n, real factor, bool add)
{
    for (int64_t r = 0; r < rows; r++)
        NAMED(write_row)(to, dtype, r * to_stride, from + r * from_stride, n, factor, add);
}

#undef bits_t
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUNDER
#undef vector
#undef LANES
