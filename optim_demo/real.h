/* The number that weights and activations are made of. The program uses float; a test builds the
 * same sources for double, where finite differences are sharp enough to catch a wrong gradient. */
#ifndef DEMO_REAL_H
#define DEMO_REAL_H

#ifdef DEMO_DOUBLE
typedef double real;
#define REAL_DTYPE HPA_F64
#define REAL_NAME "F64"
#define cblas_gemm cblas_dgemm
#else
typedef float real;
#define REAL_DTYPE HPA_F32
#define REAL_NAME "F32"
#define cblas_gemm cblas_sgemm
#endif

#endif
