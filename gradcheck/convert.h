/* Between double and the dtypes that a tensor is stored in: round to nearest, ties to even. */
#ifndef HPA_GRADCHECK_CONVERT_H
#define HPA_GRADCHECK_CONVERT_H

#include <hpa/hpa.h>

/* Bytes of one element; 0 for a dtype that is not a floating-point one. */
size_t dtype_size(hpa_dtype dtype);

/* "f64"; NULL for a dtype that is not a floating-point one. */
const char *dtype_name(hpa_dtype dtype);

/* Half the distance from 1 to the next number: the largest relative error of one rounding. */
double dtype_rounding_unit(hpa_dtype dtype);

/* stored[n] = values[n] and back. */
void dtype_encode(hpa_dtype dtype, const double *values, void *stored, int64_t n);
void dtype_decode(hpa_dtype dtype, const void *stored, double *values, int64_t n);

/* What is left of a float after a trip through dtype. */
float dtype_round_float(hpa_dtype dtype, float value);

#endif
