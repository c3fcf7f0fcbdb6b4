/* Memory of the CUDA device for tests: plain bytes, in the order of one stream of their own, which
 * does not wait for the default stream. Every function fails the test where CUDA fails. */
#ifndef HPA_TESTS_DEVICE_H
#define HPA_TESTS_DEVICE_H

#include <stddef.h>

void *test_device_allocate(size_t bytes);
void test_device_free(void *memory);
void test_device_read(void *to, const void *from, size_t bytes);
void test_device_write(void *to, const void *from, size_t bytes);
void test_device_fill(void *memory, int byte, size_t bytes);
/* The stream, as hpa_exec takes it. */
void *test_device_stream(void);

#endif
