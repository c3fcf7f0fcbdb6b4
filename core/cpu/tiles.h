/* The tile operations for one kind of real numbers. kernels.h includes this twice, with `real` and
 * NAMED(x) defined for that kind. */

/* C = A B, or C += A B. A is [m, k], or stored as [k, m] when a_transposed; B is [k, n], C [m, n].
 * n is a multiple of HPA_TILE_PAD. Every element of C is summed over k in ascending order, whatever
 * the shape, so a product cut in pieces along m or n gives the same bits. */
typedef struct NAMED(hpa_product) {
    int64_t m, n, k;
    const real *a;
    int64_t a_stride;
    bool a_transposed;
    const real *b;
    int64_t b_stride;
    real *c;
    int64_t c_stride;
    bool add;
    hpa_part part; /* of the pairs (row of C, k) */
    int64_t shift;
} NAMED(hpa_product);

/* The scores of some keys against the queries of a block: [keys, queries], so that neighbours in
 * memory are queries, and a maximum or a sum over keys needs no step across a vector. */
typedef struct NAMED(hpa_score_tile) {
    real *data;
    int64_t stride;        /* reals from a key to the next */
    int64_t keys, queries; /* queries: a multiple of HPA_TILE_PAD */
} NAMED(hpa_score_tile);

typedef struct NAMED(hpa_tiles) {
    void (*multiply)(const NAMED(hpa_product) * product);

    /* Online softmax in powers of two, one step: takes the keys of the tile in. scores s become
     * weights 2^(s - highest); highest and sum, [queries], are brought up to date; what was summed
     * with older weights must be multiplied by rescale, [queries]. */
    void (*softmax)(const NAMED(hpa_score_tile) * scores, real *highest, real *sum, real *rescale);

    /* scores s become weights p = 2^(s - lse), dp become ds = p (dp - delta). lse is in powers of
     * two; lse and delta are [queries]. */
    void (*softmax_gradient)(const NAMED(hpa_score_tile) * scores, real *dp, const real *lse,
                             const real *delta);

    /* The highest score of the tile; NaN is passed over, -inf is the least. Spoils the tile. */
    real (*highest)(const NAMED(hpa_score_tile) * scores);

    /* row r of [rows, n] times factor[r]; rows with factor 1 are left alone. */
    void (*scale_rows)(real *data, int64_t stride, int64_t rows, int64_t n, const real *factor);

    /* dots[r] = sum_n a[r][n] b[r][n], summed in an order that n alone determines. */
    void (*row_dots)(real *dots, const real *a, const real *b, int64_t stride, int64_t rows,
                     int64_t n);

    /* Rows of a tensor as reals, each followed by zeros up to the next multiple of
     * HPA_TILE_PAD. */
    void (*read_rows)(real *to, int64_t to_stride, const void *from, hpa_dtype dtype,
                      int64_t from_stride, int64_t rows, int64_t n);

    /* Rows of reals times factor into a tensor: written, or added to what is there. */
    void (*write_rows)(void *to, hpa_dtype dtype, int64_t to_stride, const real *from,
                       int64_t from_stride, int64_t rows, int64_t n, real factor, bool add);

    /* to[c][r] = factor * from[r][c]. */
    void (*transpose)(real *to, int64_t to_stride, const real *from, int64_t from_stride,
                      int64_t rows, int64_t columns, real factor);
} NAMED(hpa_tiles);
