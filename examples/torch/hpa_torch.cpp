/* hpa_torch.cpp - libhpa's calls as operators of PyTorch: torch.ops.hpa.mask, forward and backward.
 *
 * Tensors are [B, H, T, D] with any strides whose last is 1 (others are copied), lse is [B, H, T]. The
 * mask is a tensor of bytes, saved and moved like any other. Work goes to the current stream, scratch
 * comes from torch's allocator. Shapes of outputs for tracing, and the gradient, are in hpa_torch.py. */
#include "../plans.hpp"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace {

hpa_dtype dtype_of(at::ScalarType type)
{
    switch (type) {
    case at::kDouble:
        return HPA_F64;
    case at::kFloat:
        return HPA_F32;
    case at::kHalf:
        return HPA_F16;
    case at::kBFloat16:
        return HPA_BF16;
    default:
        TORCH_CHECK(false, "dtype is ", type, ", expected float64, float32, float16 or bfloat16");
    }
}

at::ScalarType lse_type(at::ScalarType type)
{
    return type == at::kDouble ? at::kDouble : at::kFloat;
}

hpa_tensor view(const at::Tensor &tensor)
{
    hpa_tensor result = {};
    TORCH_CHECK(tensor.dim() == 3 || tensor.dim() == 4, "a tensor has ", tensor.dim(),
                " dimensions, expected [B, H, T, D], or [B, H, T] for lse");
    result.data = tensor.data_ptr();
    result.dtype = dtype_of(tensor.scalar_type());
    result.ndim = static_cast<int32_t>(tensor.dim());
    for (int64_t n = 0; n < tensor.dim(); n++) {
        result.shape[n] = tensor.size(n);
        result.stride[n] = tensor.stride(n);
    }
    return result;
}

/* As it is where its rows are dense, else a copy. */
at::Tensor readable(const at::Tensor &tensor)
{
    return tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

shape shape_of(at::IntArrayRef q, at::IntArrayRef k, at::ScalarType type, at::Device device,
               at::IntArrayRef knobs, double scale)
{
    TORCH_CHECK(device.is_cpu() || device.is_cuda(), "expected a CPU or CUDA device");
    return {sizes_of(q), sizes_of(k), dtype_of(type), device.is_cuda() ? HPA_CUDA : HPA_CPU,
            device.is_cuda() ? device.index() : 0, knobs_of(knobs), scale};
}

const hpa::plan &plan_for(const at::Tensor &q, const at::Tensor &k, at::IntArrayRef knobs,
                          double scale)
{
    return plan_of(shape_of(q.sizes(), k.sizes(), q.scalar_type(), q.device(), knobs, scale));
}

/* The current stream of the tensor's device, and scratch that torch frees in stream order. */
struct surroundings {
    c10::OptionalDeviceGuard guard;
    at::Tensor scratch;
    hpa::run how;

    surroundings(const at::Tensor &like, const hpa::plan &plan)
        : guard(like.device()),
          scratch(at::empty({static_cast<int64_t>(plan.scratch_bytes())},
                            like.options().dtype(at::kByte)))
    {
        how.scratch = {scratch.data_ptr(), plan.scratch_bytes()};
        if (like.is_cuda()) {
            const c10::impl::VirtualGuardImpl device(like.device().type());
            how.stream = device.getStreamNativeHandle(device.getStream(like.device()));
        }
    }
};

hpa::bytes bytes_of(const at::Tensor &mask)
{
    TORCH_CHECK(mask.scalar_type() == at::kByte && mask.is_contiguous(),
                "expected the mask that torch.ops.hpa.mask made");
    return {mask.data_ptr(), static_cast<std::size_t>(mask.numel())};
}

int64_t mask_bytes(at::IntArrayRef q, at::IntArrayRef k, at::ScalarType type, at::Device device,
                   at::IntArrayRef knobs, double scale)
{
    return static_cast<int64_t>(plan_of(shape_of(q, k, type, device, knobs, scale)).sizes().mask);
}

at::Tensor mask(const at::Tensor &q_given, const at::Tensor &k_given, at::IntArrayRef knobs,
                double scale)
{
    const at::Tensor q = readable(q_given), k = readable(k_given);
    const hpa::plan &plan = plan_for(q, k, knobs, scale);
    const surroundings around(q, plan);
    /* Zeros, because rows need not fill their room, and equal masks should be equal tensors. */
    const at::Tensor result = at::zeros({static_cast<int64_t>(plan.sizes().mask)},
                                        q.options().dtype(at::kByte));
    hpa_inputs in = {};
    in.q = view(q);
    in.k = view(k);
    plan.mask_build(in, bytes_of(result), around.how);
    return result;
}

hpa_inputs inputs_of(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v)
{
    TORCH_CHECK(q.device() == k.device() && q.device() == v.device(),
                "expected q, k and v on one device");
    hpa_inputs in = {};
    in.q = view(q);
    in.k = view(k);
    in.v = view(v);
    return in;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor &mask, const at::Tensor &q_given,
                                           const at::Tensor &k_given, const at::Tensor &v_given,
                                           at::IntArrayRef knobs, double scale)
{
    const at::Tensor q = readable(q_given), k = readable(k_given), v = readable(v_given);
    const hpa::plan &plan = plan_for(q, k, knobs, scale);
    const surroundings around(q, plan);
    at::Tensor out = at::empty(q.sizes(), q.options());
    at::Tensor lse = at::empty(q.sizes().slice(0, 3), q.options().dtype(lse_type(q.scalar_type())));
    plan.forward(bytes_of(mask), inputs_of(q, k, v), {view(out), view(lse)}, around.how);
    return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor>
backward(const at::Tensor &mask, const at::Tensor &q_given, const at::Tensor &k_given,
         const at::Tensor &v_given, const at::Tensor &out, const at::Tensor &lse,
         const at::Tensor &d_out_given, const std::optional<at::Tensor> &d_lse,
         at::IntArrayRef knobs, double scale)
{
    const at::Tensor q = readable(q_given), k = readable(k_given), v = readable(v_given);
    const at::Tensor d_out = readable(d_out_given);
    const hpa::plan &plan = plan_for(q, k, knobs, scale);
    const surroundings around(q, plan);
    at::Tensor dq = at::empty(q.sizes(), q.options());
    at::Tensor dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
    hpa_gradients grads = {};
    grads.d_out = view(d_out);
    if (d_lse)
        grads.d_lse = view(*d_lse);
    grads.dq = view(dq);
    grads.dk = view(dk);
    grads.dv = view(dv);
    plan.backward(bytes_of(mask), inputs_of(q, k, v), {view(out), view(lse)}, grads, around.how);
    return {dq, dk, dv};
}

} // namespace

TORCH_LIBRARY(hpa, library)
{
    library.def("mask_bytes(int[] q, int[] k, ScalarType dtype, Device device, int[] knobs, "
                "float scale) -> int",
                mask_bytes);
    library.def("mask(Tensor q, Tensor k, int[] knobs, float scale) -> Tensor");
    library.def("forward(Tensor mask, Tensor q, Tensor k, Tensor v, int[] knobs, float scale) -> "
                "(Tensor out, Tensor lse)");
    library.def("backward(Tensor mask, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
                "Tensor d_out, Tensor? d_lse, int[] knobs, float scale) -> "
                "(Tensor dq, Tensor dk, Tensor dv)");
}

TORCH_LIBRARY_IMPL(hpa, CPU, library)
{
    library.impl("mask", mask);
    library.impl("forward", forward);
    library.impl("backward", backward);
}

TORCH_LIBRARY_IMPL(hpa, CUDA, library)
{
    library.impl("mask", mask);
    library.impl("forward", forward);
    library.impl("backward", backward);
}
