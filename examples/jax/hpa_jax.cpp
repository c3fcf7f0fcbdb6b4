/* hpa_jax.cpp - libhpa's calls as handlers of XLA's foreign function interface, for CPU and CUDA.
 *
 * Every handler takes buffers in the order of the library's structs and gives, after its results, one
 * buffer of scratch, which XLA allocates and frees. Buffers are [B, H, T, D], lse [B, H, T], masks and
 * scratch bytes. hpa_jax.py gives them their types and gradients. */
#include "../plans.hpp"

#include <xla/ffi/api/ffi.h>

#include <exception>
#include <string>
#include <vector>

namespace ffi = xla::ffi;

namespace {

/* One call, wherever it came from. */
struct call {
    std::vector<ffi::AnyBuffer> arguments, results;
    std::vector<int64_t> knobs;
    double scale;
    hpa_device device;
    int32_t device_id;
    void *stream;
};

hpa_dtype dtype_of(ffi::DataType type)
{
    switch (type) {
    case ffi::DataType::F64:
        return HPA_F64;
    case ffi::DataType::F32:
        return HPA_F32;
    case ffi::DataType::F16:
        return HPA_F16;
    case ffi::DataType::BF16:
        return HPA_BF16;
    default:
        throw hpa::error(HPA_INVALID_DTYPE, "hpa_jax",
                         "expected float64, float32, float16 or bfloat16");
    }
}

/* XLA's buffers are row-major without gaps. */
hpa_tensor view(const ffi::AnyBuffer &buffer)
{
    const ffi::AnyBuffer::Dimensions sizes = buffer.dimensions();
    const hpa_dtype dtype = dtype_of(buffer.element_type());
    return sizes.size() == 3
               ? hpa::view(buffer.untyped_data(), dtype, {sizes[0], sizes[1], sizes[2]})
               : hpa::view(buffer.untyped_data(), dtype, {sizes[0], sizes[1], sizes[2], sizes[3]});
}

hpa::bytes bytes_of(const ffi::AnyBuffer &buffer)
{
    return {buffer.untyped_data(), buffer.size_bytes()};
}

const hpa::plan &plan_for(const call &c, const ffi::AnyBuffer &q, const ffi::AnyBuffer &k)
{
    return plan_of({sizes_of(q.dimensions()), sizes_of(k.dimensions()), dtype_of(q.element_type()),
                    c.device, c.device_id, knobs_of(c.knobs), c.scale});
}

hpa::run how(const call &c)
{
    return {bytes_of(c.results.back()), c.stream};
}

/* q, k -> mask */
void mask(const call &c)
{
    hpa_inputs in = {};
    in.q = view(c.arguments[0]);
    in.k = view(c.arguments[1]);
    plan_for(c, c.arguments[0], c.arguments[1]).mask_build(in, bytes_of(c.results[0]), how(c));
}

hpa_inputs inputs_of(const call &c)
{
    hpa_inputs in = {};
    in.q = view(c.arguments[1]);
    in.k = view(c.arguments[2]);
    in.v = view(c.arguments[3]);
    return in;
}

/* mask, q, k, v -> out, lse */
void forward(const call &c)
{
    const hpa::plan &plan = plan_for(c, c.arguments[1], c.arguments[2]);
    plan.forward(bytes_of(c.arguments[0]), inputs_of(c), {view(c.results[0]), view(c.results[1])},
                 how(c));
}

/* mask, q, k, v, out, lse, d_out, d_lse -> dq, dk, dv */
void backward(const call &c)
{
    const hpa::plan &plan = plan_for(c, c.arguments[1], c.arguments[2]);
    hpa_gradients grads = {};
    grads.d_out = view(c.arguments[6]);
    grads.d_lse = view(c.arguments[7]);
    grads.dq = view(c.results[0]);
    grads.dk = view(c.results[1]);
    grads.dv = view(c.results[2]);
    plan.backward(bytes_of(c.arguments[0]), inputs_of(c),
                  {view(c.arguments[4]), view(c.arguments[5])}, grads, how(c));
}

using attributes = ffi::Span<const int64_t>;

call call_of(ffi::RemainingArgs arguments, ffi::RemainingRets results, attributes knobs,
             double scale)
{
    call c = {};
    for (std::size_t n = 0; n < arguments.size(); n++)
        c.arguments.push_back(*arguments.get<ffi::AnyBuffer>(n));
    for (std::size_t n = 0; n < results.size(); n++)
        c.results.push_back(**results.get<ffi::AnyBuffer>(n));
    c.knobs.assign(knobs.begin(), knobs.end());
    c.scale = scale;
    c.device = HPA_CPU;
    return c;
}

template <void (*Run)(const call &)> ffi::Error run(const call &c)
{
    try {
        Run(c);
    } catch (const std::exception &error) {
        return ffi::Error::InvalidArgument(error.what());
    }
    return ffi::Error::Success();
}

template <void (*Run)(const call &)>
ffi::Error on_cpu(ffi::RemainingArgs arguments, ffi::RemainingRets results, attributes knobs,
                  double scale)
{
    return run<Run>(call_of(arguments, results, knobs, scale));
}

template <void (*Run)(const call &)>
ffi::Error on_cuda(struct CUstream_st *stream, int32_t device_id, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results, attributes knobs, double scale)
{
    call c = call_of(arguments, results, knobs, scale);
    c.device = HPA_CUDA;
    c.device_id = device_id;
    c.stream = stream;
    return run<Run>(c);
}

} // namespace

#define HANDLERS(name)                                                                             \
    XLA_FFI_DEFINE_HANDLER_SYMBOL(hpa_jax_##name##_cpu, on_cpu<name>,                              \
                                  ffi::Ffi::Bind()                                                 \
                                      .RemainingArgs()                                             \
                                      .RemainingRets()                                             \
                                      .Attr<attributes>("knobs")                                   \
                                      .Attr<double>("scale"));                                     \
    XLA_FFI_DEFINE_HANDLER_SYMBOL(hpa_jax_##name##_cuda, on_cuda<name>,                            \
                                  ffi::Ffi::Bind()                                                 \
                                      .Ctx<ffi::PlatformStream<struct CUstream_st *>>()            \
                                      .Ctx<ffi::DeviceOrdinal>()                                   \
                                      .RemainingArgs()                                             \
                                      .RemainingRets()                                             \
                                      .Attr<attributes>("knobs")                                   \
                                      .Attr<double>("scale"))
HANDLERS(mask);
HANDLERS(forward);
HANDLERS(backward);

/* Bytes of a mask and of scratch, for the shapes of results. knobs: 12. 0, or the reason in *reason. */
extern "C" int hpa_jax_sizes(const int64_t *q, const int64_t *k, int dtype, int device,
                             const int64_t *knobs, double scale, int64_t *mask_bytes,
                             int64_t *scratch_bytes, char *reason, size_t reason_size)
{
    try {
        const auto sizes = [](const int64_t *x) { return sizes_of(std::vector<int64_t>(x, x + 4)); };
        const hpa::plan &plan = plan_of({sizes(q), sizes(k), static_cast<hpa_dtype>(dtype),
                                         static_cast<hpa_device>(device), 0,
                                         knobs_of(std::vector<int64_t>(knobs, knobs + 12)), scale});
        *mask_bytes = static_cast<int64_t>(plan.sizes().mask);
        *scratch_bytes = static_cast<int64_t>(plan.scratch_bytes());
        return 0;
    } catch (const std::exception &error) {
        const std::size_t n = std::string(error.what()).copy(reason, reason_size - 1);
        reason[n] = 0;
        return 1;
    }
}
