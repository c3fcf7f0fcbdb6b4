/* Code that is written once for both kinds of real numbers. Include after
 *     #define HPA_REAL_BITS 32        (or 64)
 * Then `real` is float or double, and NAMED(x) is x_f32 or x_f64. No include guard: a file that is
 * written for both kinds is itself included twice. */
#undef real
#undef NAMED
#if HPA_REAL_BITS == 32
#define real float
#define NAMED(name) name##_f32
#elif HPA_REAL_BITS == 64
#define real double
#define NAMED(name) name##_f64
#else
#error "define HPA_REAL_BITS as 32 or 64"
#endif
