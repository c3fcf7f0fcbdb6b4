/* The number that the CPU computes with: layers.c is compiled once for float, which the program
 * uses, and once for double, in which finite differences are sharp enough to catch a wrong
 * gradient. */
#ifndef DEMO_REAL_H
#define DEMO_REAL_H

#if DEMO_REAL_BITS == 64
typedef double real;
#define cblas_gemm cblas_dgemm
#define CPU_OPERATIONS cpu_operations_f64
#else
typedef float real;
#define cblas_gemm cblas_sgemm
#define CPU_OPERATIONS cpu_operations_f32
#endif

#endif
