/* hpa.hpp - hpa.h for C++17: handles that clean up, spans of bytes, exceptions that explain.
 *
 * Header only. hpa.h stays the manual; a name here does what hpa_<name> does there.
 *
 *     hpa_desc desc = hpa_desc_default();
 *     desc.seq_q = desc.seq_kv = 4096;
 *     const hpa::plan plan(desc);
 *     std::vector<std::byte> mask(plan.sizes().mask), scratch(plan.scratch_bytes());
 *     hpa_inputs in{hpa::tensor(q, {1, 1, 4096, 64}), ...};
 *     plan.mask_build(in, mask, {scratch});
 *     plan.forward(mask, in, out, {scratch});
 *
 * Tensors are views and own nothing, as in C. On CUDA, mask and scratch are device memory: wrap what
 * you allocated as hpa::bytes{pointer, size}. A const plan may be used by many threads at once. */
#ifndef HPA_HPA_HPP
#define HPA_HPA_HPP

#include <algorithm>
#include <cstddef>
#include <hpa/hpa.h>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace hpa {

/* What a call that failed throws: what() names the call, the status, the argument, its value and what
 * was expected. */
class error : public std::runtime_error {
public:
    error(hpa_status status, const std::string &call, const std::string &explanation)
        : std::runtime_error(call + ": " + hpa_status_name(status) + ": " + explanation),
          status_(status) {}
    hpa_status status() const noexcept { return status_; }

private:
    hpa_status status_;
};

inline void check(hpa_status status, const char *call) {
    if (status != HPA_OK)
        throw error(status, call, hpa_last_error());
}

inline void desc_set_preset(hpa_desc &desc, hpa_preset preset) {
    check(hpa_desc_set_preset(&desc, preset), "hpa_desc_set_preset");
}

/* A span of bytes that somebody else owns, on the plan's device. A vector of bytes turns into one. */
template <class Pointer> struct basic_bytes {
    Pointer data = nullptr;
    std::size_t size = 0;

    basic_bytes() = default;
    basic_bytes(Pointer memory, std::size_t n) : data(memory), size(n) {}
    template <class Other, class = std::enable_if_t<std::is_convertible_v<Other, Pointer>>>
    basic_bytes(basic_bytes<Other> other) : data(other.data), size(other.size) {}
    template <class Container, class Data = decltype(std::declval<Container &>().data()),
              class = std::enable_if_t<std::is_convertible_v<Data, Pointer>>>
    basic_bytes(Container &&container)
        : data(container.data()), size(container.size() * sizeof(std::remove_pointer_t<Data>)) {}
};
using bytes = basic_bytes<void *>;
using const_bytes = basic_bytes<const void *>;

/* How to run a call: hpa_exec. */
struct run {
    bytes scratch;
    void *stream = nullptr; /* CUDA: a cudaStream_t */
};

/* The dtype of double, float, int32_t or int64_t; C++17 has no 16-bit types: give view a dtype. */
template <class T> struct dtype;
template <> struct dtype<double> : std::integral_constant<hpa_dtype, HPA_F64> {};
template <> struct dtype<float> : std::integral_constant<hpa_dtype, HPA_F32> {};
template <> struct dtype<int32_t> : std::integral_constant<hpa_dtype, HPA_I32> {};
template <> struct dtype<int64_t> : std::integral_constant<hpa_dtype, HPA_I64> {};

/* A view of any dtype. No strides: row-major without gaps. */
inline hpa_tensor view(const void *data, hpa_dtype type, std::initializer_list<int64_t> shape,
                       std::initializer_list<int64_t> strides = {}) {
    hpa_tensor tensor = {};
    if (shape.size() > 4 || (strides.size() != 0 && strides.size() != shape.size()))
        throw error(HPA_INVALID_SHAPE, "hpa::view",
                    "expected at most 4 sizes, and no strides or as many");
    tensor.data = const_cast<void *>(data);
    tensor.dtype = type;
    tensor.ndim = static_cast<int32_t>(shape.size());
    int64_t compact = 1;
    for (std::size_t n = shape.size(); n-- > 0; compact *= tensor.shape[n]) {
        tensor.shape[n] = shape.begin()[n];
        tensor.stride[n] = strides.size() ? strides.begin()[n] : compact;
    }
    return tensor;
}

template <class T> hpa_tensor tensor(T *data, std::initializer_list<int64_t> shape,
                                     std::initializer_list<int64_t> strides = {}) {
    return view(data, dtype<std::remove_cv_t<T>>::value, shape, strides);
}

/* Row r keeps blocks[row_ptr[r]] ... blocks[row_ptr[r + 1] - 1]. */
struct csr {
    std::vector<int64_t> row_ptr;
    std::vector<int32_t> blocks;
};

class plan {
public:
    explicit plan(const hpa_desc &desc) {
        hpa_plan *created;
        check(hpa_plan_create(&created, &desc), "hpa_plan_create");
        plan_.reset(created);
        check(hpa_plan_sizes(created, &sizes_), "hpa_plan_sizes");
    }

    const hpa_plan *get() const noexcept { return plan_.get(); }
    const hpa_sizes &sizes() const noexcept { return sizes_; }
    const char *describe() const noexcept { return hpa_plan_describe(get()); }

    /* Enough for any call, one at a time. */
    std::size_t scratch_bytes() const noexcept {
        const std::size_t two = std::max(sizes_.mask_scratch, sizes_.forward_scratch);
        return std::max(two, sizes_.backward_scratch);
    }

    void mask_build(const hpa_inputs &in, bytes mask, const run &how) const {
        call("hpa_mask_build", hpa_mask_build, how, &in, whole(mask));
    }
    void forward(const_bytes mask, const hpa_inputs &in, const hpa_outputs &out,
                 const run &how) const {
        call("hpa_forward", hpa_forward, how, whole(mask), &in, &out);
    }
    void backward(const_bytes mask, const hpa_inputs &in, const hpa_outputs &out,
                  const hpa_gradients &grads, const run &how) const {
        call("hpa_backward", hpa_backward, how, whole(mask), &in, &out, &grads);
    }
    hpa_mask_stats mask_statistics(const_bytes mask, const run &how) const {
        hpa_mask_stats stats;
        call("hpa_mask_statistics", hpa_mask_statistics, how, whole(mask), &stats);
        return stats;
    }
    void mask_validate(const_bytes mask, const run &how) const {
        call("hpa_mask_validate", hpa_mask_validate, how, whole(mask));
    }
    csr mask_export_csr(const_bytes mask, const run &how) const {
        const hpa_mask_stats stats = mask_statistics(mask, how);
        csr rows = {std::vector<int64_t>(static_cast<std::size_t>(stats.rows) + 1),
                    std::vector<int32_t>(static_cast<std::size_t>(stats.blocks))};
        int64_t n = stats.blocks;
        call("hpa_mask_export_csr", hpa_mask_export_csr, how, whole(mask), rows.row_ptr.data(),
             rows.blocks.data(), &n);
        return rows;
    }
    void mask_import_csr(const hpa_inputs &in, bytes mask, const csr &rows, const run &how) const {
        call("hpa_mask_import_csr", hpa_mask_import_csr, how, &in, whole(mask), rows.row_ptr.data(),
             rows.blocks.data());
    }

private:
    struct destroy {
        void operator()(hpa_plan *plan) const noexcept { hpa_plan_destroy(plan); }
    };

    template <class Function, class... Arguments>
    void call(const char *name, Function *function, const run &how, Arguments... arguments) const {
        const hpa_exec exec = {how.stream, how.scratch.data, how.scratch.size};
        check(function(get(), arguments..., &exec), name);
    }

    template <class Pointer> Pointer whole(const basic_bytes<Pointer> &mask) const {
        if (mask.size < sizes_.mask)
            throw error(HPA_BUFFER_TOO_SMALL, "hpa::plan",
                        "mask has " + std::to_string(mask.size) + " bytes, expected at least " +
                            std::to_string(sizes_.mask));
        return mask.data;
    }

    std::unique_ptr<hpa_plan, destroy> plan_;
    hpa_sizes sizes_ = {};
};

} // namespace hpa
#endif
