/* The safetensors reader takes what the writer wrote, and refuses every damaged or hostile file
 * with a reason. */
#include "safetensors.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A file of this header and data_size zero bytes; length_change lies about the header's length. */
static bool parse(const char *header, size_t data_size, int64_t length_change, failure *why)
{
    size_t length = strlen(header), size = 8 + length + data_size;
    uint8_t *bytes = calloc(1, size);
    ck_assert_ptr_nonnull(bytes);
    uint64_t written = length + (uint64_t)length_change;
    for (int n = 0; n < 8; n++)
        bytes[n] = (uint8_t)(written >> 8 * n);
    memcpy(bytes + 8, header, length);
    safetensors *file = NULL;
    bool taken = safetensors_parse(&file, bytes, size, "test", why);
    ck_assert(taken == (file != NULL));
    safetensors_free(file);
    free(bytes);
    return taken;
}

typedef struct hostile {
    const char *header;
    size_t data_size;
    const char *reason; /* part of the message */
} hostile;

#define TENSOR(shape, offsets) \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const hostile files[] = {
    {"", 0, "not a JSON object"},
    {"[]", 0, "not a JSON object"},
    {"{\"a\":", 0, "not a JSON object"},
    {"{} x", 0, "not a JSON object"},
    {"{\"a\":1}", 0, "not an object"},
    {"{\"a\":{}}", 0, "dtype"},
    {"{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "dtype"},
    {"{\"a\":{\"dtype\":\"F128\",\"shape\":[1],\"data_offsets\":[0,16]}}", 16, "dtype"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape"},
    {TENSOR("[-1]", "[0,4]"), 4, "shape"},
    {TENSOR("[1.0]", "[0,4]"), 4, "shape"},
    {TENSOR("[\"1\"]", "[0,4]"), 4, "shape"},
    {TENSOR("[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "shape"},
    {TENSOR("[4611686018427387904,4]", "[0,0]"), 0, "shape"},
    {TENSOR("[99999999999999999999]", "[0,4]"), 4, "not a JSON object"},
    {TENSOR("[1]", "[0]"), 4, "data_offsets"},
    {TENSOR("[1]", "[0,4,8]"), 4, "data_offsets"},
    {TENSOR("[1]", "[-4,0]"), 4, "data_offsets"},
    {TENSOR("[1]", "[4,0]"), 4, "data_offsets"},
    {TENSOR("[1]", "[0,8]"), 4, "data_offsets"},
    {TENSOR("[1]", "[0,4.0]"), 4, "data_offsets"},
    {TENSOR("[1]", "[9223372036854775804,9223372036854775807]"), 4, "data_offsets"},
    {TENSOR("[2]", "[0,4]"), 4, "shape and dtype need"},
    {TENSOR("[1]", "[0,4]"), 5, "follow the last tensor"},
    {TENSOR("[1]", "[4,8]"), 8, "gap"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
     3, "overlaps"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "duplicate"},
    {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "not a JSON object"},
};

START_TEST(hostile_header_is_refused)
{
    const hostile *file = &files[_i];
    failure why = {""};
    ck_assert_msg(!parse(file->header, file->data_size, 0, &why), "taken: %s", file->header);
    ck_assert_msg(strstr(why.text, file->reason), "%s\nsays: %s\nexpected: %s", file->header,
                  why.text, file->reason);
}
END_TEST

START_TEST(good_header_is_taken)
{
    failure why = {""};
    ck_assert_msg(parse(TENSOR("[1]", "[0,4]"), 4, 0, &why), "%s", why.text);
    ck_assert_msg(parse("{}", 0, 0, &why), "%s", why.text);
    ck_assert_msg(parse(TENSOR("[0,7]", "[0,0]"), 0, 0, &why), "%s", why.text);
}
END_TEST

START_TEST(lying_header_length_is_refused)
{
    static const int64_t changes[] = {1, 4, 5, 1000, -1, INT64_MIN, INT64_MAX, -1000};
    for (size_t n = 0; n < sizeof changes / sizeof *changes; n++) {
        failure why = {""};
        ck_assert_msg(!parse(TENSOR("[1]", "[0,4]"), 4, changes[n], &why), "change %lld was taken",
                      (long long)changes[n]);
    }
}
END_TEST

/* Nested so deep that a careless parser would run out of stack. */
START_TEST(deep_nesting_is_refused)
{
    enum { DEPTH = 1000000 };
    char *header = malloc(DEPTH + 1);
    ck_assert_ptr_nonnull(header);
    memset(header, '[', DEPTH);
    header[DEPTH] = 0;
    failure why = {""};
    ck_assert(!parse(header, 0, 0, &why));
    free(header);
}
END_TEST

static const float floats[6] = {1, -2, 3.5f, 0, 1e-30f, -7};
static const uint8_t byte_values[3] = {9, 8, 7};

static void write_example(const char *path)
{
    const safetensors_note notes[] = {{"step", "12"}, {"quote", "\"\n"}};
    const safetensors_tensor tensors[] = {{"floats", "F32", 2, {2, 3}, sizeof floats, floats},
                                          {"bytes", "U8", 1, {3}, sizeof byte_values, byte_values}};
    failure why;
    ck_assert_msg(safetensors_write(path, notes, 2, tensors, 2, &why), "%s", why.text);
}

START_TEST(what_was_written_is_read)
{
    char path[] = "/tmp/safetensors_reader_XXXXXX";
    int descriptor = mkstemp(path);
    ck_assert_int_ge(descriptor, 0);
    close(descriptor);
    write_example(path);
    failure why;
    safetensors *file;
    ck_assert_msg(safetensors_read(&file, path, &why), "%s", why.text);
    const safetensors_tensor *found = safetensors_find(file, "floats");
    ck_assert_ptr_nonnull(found);
    ck_assert_int_eq(found->ndim, 2);
    ck_assert_int_eq(found->shape[1], 3);
    ck_assert_mem_eq(found->data, floats, sizeof floats);
    ck_assert_mem_eq(safetensors_find(file, "bytes")->data, byte_values, sizeof byte_values);
    ck_assert_ptr_null(safetensors_find(file, "__metadata__"));
    ck_assert_str_eq(safetensors_find_note(file, "step"), "12");
    ck_assert_str_eq(safetensors_find_note(file, "quote"), "\"\n");
    ck_assert_ptr_null(safetensors_find_note(file, "none"));
    safetensors_free(file);
    unlink(path);
}
END_TEST

/* Cut at every length, and with every byte of the header changed: refused, or read without harm. */
START_TEST(damaged_file_does_no_harm)
{
    char path[] = "/tmp/safetensors_reader_XXXXXX";
    int descriptor = mkstemp(path);
    ck_assert_int_ge(descriptor, 0);
    close(descriptor);
    write_example(path);
    uint8_t bytes[1024];
    FILE *stream = fopen(path, "rb");
    ck_assert_ptr_nonnull(stream);
    size_t size = fread(bytes, 1, sizeof bytes, stream);
    fclose(stream);
    unlink(path);

    failure why;
    safetensors *file;
    for (size_t length = 0; length < size; length++) {
        uint8_t *cut = malloc(length + 1); /* its own block, so that a sanitizer sees overruns */
        memcpy(cut, bytes, length);
        ck_assert_msg(!safetensors_parse(&file, cut, length, "cut", &why), "cut at %zu", length);
        free(cut);
    }
    for (size_t n = 0; n < size; n++)
        for (int bit = 0; bit < 8; bit++) {
            bytes[n] ^= (uint8_t)(1 << bit);
            if (safetensors_parse(&file, bytes, size, "changed", &why))
                safetensors_free(file);
            bytes[n] ^= (uint8_t)(1 << bit);
        }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("demo: safetensors reader");
    TCase *tests = tcase_create("safetensors");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, hostile_header_is_refused, 0, sizeof files / sizeof *files);
    tcase_add_test(tests, good_header_is_taken);
    tcase_add_test(tests, lying_header_length_is_refused);
    tcase_add_test(tests, deep_nesting_is_refused);
    tcase_add_test(tests, what_was_written_is_read);
    tcase_add_test(tests, damaged_file_does_no_harm);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
