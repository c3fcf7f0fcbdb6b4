/* hpa/dlpack.h: every dtype there and back, strides, offsets and devices, and what is refused. Built
 * with the DLPack header of the system, and with a newer one that has the versioned struct where a
 * Python with torch brings it. */
#ifdef DLPACK_HEADER
#include DLPACK_HEADER
#endif
#include "hpa/dlpack.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 70, HEADS = 2, DIM = 8 };

static char reason[HPA_DLPACK_REASON];
static float memory[TOKENS * 3 * HEADS * DIM];
static int64_t shape[] = {1, HEADS, TOKENS, DIM};

/* The keys of a packed (B, T, 3, H, D) buffer as [B, H, T, D]. */
static int64_t packed_strides[] = {TOKENS * 3 * HEADS * DIM, DIM, 3 * HEADS *DIM, 1};

static DLTensor packed_keys(void)
{
    return (DLTensor){.data = memory,
                      .device = {kDLCPU, 0},
                      .ndim = 4,
                      .dtype = {kDLFloat, 32, 1},
                      .shape = shape,
                      .strides = packed_strides,
                      .byte_offset = HEADS * DIM * sizeof(float)};
}

static void refused(const DLTensor *from, hpa_status status, const char *field)
{
    hpa_tensor tensor, before;
    memset(&tensor, 0x5a, sizeof tensor);
    before = tensor;
    reason[0] = 0;
    ck_assert_int_eq(hpa_tensor_from_dlpack(&tensor, from, HPA_CPU, 0, reason), status);
    ck_assert_msg(!strncmp(reason, field, strlen(field)), "the reason is: %s", reason);
    ck_assert_ptr_nonnull(strstr(reason, "expected"));
    ck_assert_mem_eq(&tensor, &before, sizeof tensor);
    ck_assert_int_eq(hpa_tensor_from_dlpack(&tensor, from, HPA_CPU, 0, NULL), status);
}

START_TEST(strides_and_offset)
{
    const DLTensor from = packed_keys();
    hpa_tensor tensor;
    ck_assert_int_eq(hpa_tensor_from_dlpack(&tensor, &from, HPA_CPU, 0, NULL), HPA_OK);
    ck_assert_ptr_eq(tensor.data, memory + HEADS * DIM);
    ck_assert_int_eq(tensor.dtype, HPA_F32);
    ck_assert_int_eq(tensor.ndim, 4);
    ck_assert_mem_eq(tensor.shape, shape, sizeof shape);
    ck_assert_mem_eq(tensor.stride, packed_strides, sizeof packed_strides);
}
END_TEST

START_TEST(no_strides)
{
    const int64_t compact[] = {HEADS * TOKENS * DIM, TOKENS * DIM, DIM, 1};
    DLTensor from = packed_keys();
    hpa_tensor tensor;
    from.strides = NULL;
    ck_assert_int_eq(hpa_tensor_from_dlpack(&tensor, &from, HPA_CPU, 0, NULL), HPA_OK);
    ck_assert_mem_eq(tensor.stride, compact, sizeof compact);
}
END_TEST

START_TEST(nothing_in_it)
{
    int64_t none[] = {1, HEADS, 0, DIM};
    DLTensor from = packed_keys();
    hpa_tensor tensor;
    from.data = NULL;
    from.shape = none;
    ck_assert_int_eq(hpa_tensor_from_dlpack(&tensor, &from, HPA_CPU, 0, NULL), HPA_OK);
    ck_assert_ptr_null(tensor.data);
}
END_TEST

static const struct {
    hpa_dtype dtype;
    uint8_t code, bits;
} dtypes[] = {{HPA_F64, kDLFloat, 64},   {HPA_F32, kDLFloat, 32}, {HPA_F16, kDLFloat, 16},
              {HPA_BF16, kDLBfloat, 16}, {HPA_I32, kDLInt, 32},   {HPA_I64, kDLInt, 64}};

START_TEST(there_and_back)
{
    for (int device = HPA_CPU; device <= HPA_CUDA; device++) {
        const int32_t id = device == HPA_CUDA ? 3 : 0;
        DLTensor from = packed_keys(), back;
        hpa_tensor tensor;
        from.dtype.code = dtypes[_i].code;
        from.dtype.bits = dtypes[_i].bits;
        from.device.device_type = device == HPA_CUDA ? kDLCUDA : kDLCPU;
        from.device.device_id = id;
        ck_assert_int_eq(hpa_tensor_from_dlpack(&tensor, &from, (hpa_device)device, id, NULL),
                         HPA_OK);
        ck_assert_int_eq(tensor.dtype, dtypes[_i].dtype);
        ck_assert_int_eq(hpa_tensor_to_dlpack(&back, &tensor, (hpa_device)device, id, NULL),
                         HPA_OK);
        ck_assert_ptr_eq((char *)back.data + back.byte_offset, (char *)memory + from.byte_offset);
        ck_assert_int_eq(back.dtype.code, dtypes[_i].code);
        ck_assert_int_eq(back.dtype.bits, dtypes[_i].bits);
        ck_assert_int_eq(back.dtype.lanes, 1);
        ck_assert_int_eq(back.device.device_type, from.device.device_type);
        ck_assert_int_eq(back.device.device_id, id);
        ck_assert_int_eq(back.ndim, 4);
        ck_assert_mem_eq(back.shape, shape, sizeof shape);
        ck_assert_mem_eq(back.strides, packed_strides, sizeof packed_strides);
    }
}
END_TEST

START_TEST(dtypes_refused)
{
    const struct {
        DLDataType dtype;
        const char *field;
    } cases[] = {{{kDLUInt, 8, 1}, "dtype.code is 1"},     {{kDLInt, 16, 1}, "dtype.bits is 16"},
                 {{kDLFloat, 8, 1}, "dtype.bits is 8"},    {{kDLBfloat, 32, 1}, "dtype.bits is 32"},
                 {{kDLComplex, 64, 1}, "dtype.code is 5"}, {{kDLFloat, 32, 2}, "dtype.lanes is 2"}};
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        DLTensor from = packed_keys();
        from.dtype = cases[n].dtype;
        refused(&from, HPA_INVALID_DTYPE, cases[n].field);
    }
}
END_TEST

START_TEST(shapes_refused)
{
    int64_t negative_shape[] = {1, HEADS, -1, DIM}, negative_strides[] = {0, 0, -DIM, 1};
    int64_t huge[] = {INT64_C(1) << 40, INT64_C(1) << 40, 1, 1};
    DLTensor from = packed_keys();
    from.ndim = 0;
    refused(&from, HPA_INVALID_SHAPE, "ndim is 0");
    from.ndim = 5;
    refused(&from, HPA_INVALID_SHAPE, "ndim is 5");
    from = packed_keys();
    from.shape = negative_shape;
    refused(&from, HPA_INVALID_SHAPE, "shape is -1");
    from.shape = huge;
    refused(&from, HPA_INVALID_SHAPE, "shape is 1099511627776");
    from = packed_keys();
    from.strides = negative_strides;
    refused(&from, HPA_INVALID_STRIDE, "strides is -8");
    from = packed_keys();
    from.byte_offset = 6;
    refused(&from, HPA_INVALID_ALIGNMENT, "byte_offset is 6");
}
END_TEST

START_TEST(devices)
{
    const struct {
        DLDeviceType from;
        hpa_device device;
        int32_t device_id; /* of the description; the tensor's is 1 */
        hpa_status status;
    } cases[] = {{kDLCPU, HPA_CPU, 0, HPA_OK},
                 {kDLCUDAHost, HPA_CPU, 0, HPA_OK},
                 {kDLCUDA, HPA_CUDA, 1, HPA_OK},
                 {kDLCUDAManaged, HPA_CUDA, 0, HPA_OK},
                 {kDLCUDA, HPA_CUDA, 0, HPA_INVALID_DEVICE},
                 {kDLCUDA, HPA_CPU, 0, HPA_INVALID_DEVICE},
                 {kDLCPU, HPA_CUDA, 1, HPA_INVALID_DEVICE},
                 {kDLROCM, HPA_CUDA, 1, HPA_INVALID_DEVICE}};
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        DLTensor from = packed_keys();
        hpa_tensor tensor;
        from.device.device_type = cases[n].from;
        from.device.device_id = 1;
        ck_assert_int_eq(
            hpa_tensor_from_dlpack(&tensor, &from, cases[n].device, cases[n].device_id, reason),
            cases[n].status);
    }
}
END_TEST

START_TEST(back_refused)
{
    DLTensor to;
    hpa_tensor good = {memory, HPA_F32, 4, {1, HEADS, TOKENS, DIM}, {0, 0, DIM, 1}}, bad = good;
    bad.dtype = (hpa_dtype)9;
    ck_assert_int_eq(hpa_tensor_to_dlpack(&to, &bad, HPA_CPU, 0, reason), HPA_INVALID_DTYPE);
    ck_assert_ptr_nonnull(strstr(reason, "dtype is 9"));
    bad = good;
    bad.ndim = 5;
    ck_assert_int_eq(hpa_tensor_to_dlpack(&to, &bad, HPA_CPU, 0, NULL), HPA_INVALID_SHAPE);
    ck_assert_int_eq(hpa_tensor_to_dlpack(&to, &good, (hpa_device)7, 0, NULL), HPA_INVALID_DEVICE);
}
END_TEST

#ifdef DLPACK_FLAG_BITMASK_READ_ONLY
START_TEST(versioned)
{
    DLManagedTensorVersioned managed = {.version = {DLPACK_MAJOR_VERSION, 0},
                                        .dl_tensor = packed_keys()};
    hpa_tensor tensor;
    ck_assert_int_eq(hpa_tensor_from_dlpack_versioned(&tensor, &managed, true, HPA_CPU, 0, NULL),
                     HPA_OK);
    managed.flags = DLPACK_FLAG_BITMASK_READ_ONLY;
    ck_assert_int_eq(hpa_tensor_from_dlpack_versioned(&tensor, &managed, false, HPA_CPU, 0, NULL),
                     HPA_OK);
    ck_assert_int_eq(hpa_tensor_from_dlpack_versioned(&tensor, &managed, true, HPA_CPU, 0, reason),
                     HPA_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(reason, "flags is 1"));
    managed.version.major++;
    ck_assert_int_eq(hpa_tensor_from_dlpack_versioned(&tensor, &managed, false, HPA_CPU, 0, NULL),
                     HPA_UNSUPPORTED);
}
END_TEST
#endif

/* The library reads the same numbers through a DLPack view as through a view made by hand. */
START_TEST(attention_over_views)
{
    static float out[HEADS * TOKENS * DIM], lse[HEADS * TOKENS];
    int64_t lse_shape[] = {1, HEADS, TOKENS};
    hpa_desc desc = hpa_desc_default();
    desc.heads_q = desc.heads_kv = HEADS;
    desc.head_dim = DIM;
    desc.seq_q = desc.seq_kv = TOKENS;
    for (int n = 0; n < TOKENS * 3 * HEADS * DIM; n++)
        memory[n] = (n / (HEADS * DIM)) % 3 == 2 ? 1.0F : (float)(n % 13) - 6;

    DLTensor parts[3] = {packed_keys(), packed_keys(), packed_keys()};
    parts[0].byte_offset = 0;
    parts[2].byte_offset *= 2;
    DLTensor out_tensor = packed_keys(), lse_tensor = packed_keys();
    out_tensor.data = out, out_tensor.strides = NULL, out_tensor.byte_offset = 0;
    lse_tensor.data = lse, lse_tensor.strides = NULL, lse_tensor.byte_offset = 0;
    lse_tensor.ndim = 3, lse_tensor.shape = lse_shape;
    hpa_inputs in = {0};
    hpa_outputs outputs;
    hpa_tensor *const views[] = {&in.q, &in.k, &in.v, &outputs.out, &outputs.lse};
    const DLTensor *const from[] = {&parts[0], &parts[1], &parts[2], &out_tensor, &lse_tensor};
    for (int n = 0; n < 5; n++)
        ck_assert_int_eq(hpa_tensor_from_dlpack(views[n], from[n], HPA_CPU, 0, NULL), HPA_OK);

    hpa_plan *plan;
    hpa_sizes sizes;
    ck_assert_int_eq(hpa_plan_create(&plan, &desc), HPA_OK);
    ck_assert_int_eq(hpa_plan_sizes(plan, &sizes), HPA_OK);
    const size_t bytes = sizes.mask_scratch + sizes.forward_scratch + 1;
    void *mask = malloc(sizes.mask);
    const hpa_exec exec = {.scratch = malloc(bytes), .scratch_bytes = bytes};
    ck_assert_int_eq(hpa_mask_build(plan, &in, mask, &exec), HPA_OK);
    ck_assert_int_eq(hpa_forward(plan, mask, &in, &outputs, &exec), HPA_OK);
    for (int n = 0; n < HEADS * TOKENS * DIM; n++) /* every value is 1 */
        ck_assert_float_eq_tol(out[n], 1, 1e-5F);
    hpa_plan_destroy(plan);
    free(mask);
    free(exec.scratch);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dlpack");
    TCase *tests = tcase_create("dlpack");
    tcase_add_test(tests, strides_and_offset);
    tcase_add_test(tests, no_strides);
    tcase_add_test(tests, nothing_in_it);
    tcase_add_loop_test(tests, there_and_back, 0, (int)(sizeof dtypes / sizeof *dtypes));
    tcase_add_test(tests, dtypes_refused);
    tcase_add_test(tests, shapes_refused);
    tcase_add_test(tests, devices);
    tcase_add_test(tests, back_refused);
#ifdef DLPACK_FLAG_BITMASK_READ_ONLY
    tcase_add_test(tests, versioned);
#endif
    tcase_add_test(tests, attention_over_views);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
