/* plans.hpp - for the adapters to frameworks, whose operators get shapes and a list of knobs with every
 * call: the plan for them, made once. */
#ifndef EXAMPLES_PLANS_HPP
#define EXAMPLES_PLANS_HPP

#include <hpa/hpa.hpp>

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

struct shape {
    std::array<int64_t, 4> q, k; /* [B, H, T, D] */
    hpa_dtype dtype;
    hpa_device device;
    int32_t device_id;
    std::array<int64_t, 12> knobs; /* in the order of Knobs in the Python modules */
    double scale;
};

/* knobs may come from anywhere: any number of them. */
template <class Numbers> std::array<int64_t, 12> knobs_of(const Numbers &numbers)
{
    std::array<int64_t, 12> knobs;
    if (numbers.size() != knobs.size())
        throw hpa::error(HPA_INVALID_ARGUMENT, "knobs",
                         "there are " + std::to_string(numbers.size()) + ", expected 12");
    std::copy(numbers.begin(), numbers.end(), knobs.begin());
    return knobs;
}

template <class Numbers> std::array<int64_t, 4> sizes_of(const Numbers &numbers)
{
    std::array<int64_t, 4> sizes;
    if (numbers.size() != sizes.size())
        throw hpa::error(HPA_INVALID_SHAPE, "q and k", "expected them to be [B, H, T, D]");
    std::copy(numbers.begin(), numbers.end(), sizes.begin());
    return sizes;
}

inline hpa_desc description(const shape &s)
{
    hpa_desc desc = hpa_desc_default();
    desc.device = s.device;
    desc.device_id = s.device_id;
    desc.dtype = s.dtype;
    desc.batch = s.q[0];
    desc.heads_q = s.q[1];
    desc.heads_kv = s.k[1];
    desc.seq_q = s.q[2];
    desc.seq_kv = s.k[2];
    desc.head_dim = s.q[3];
    desc.scale = s.scale;
    int32_t *const fields[] = {
        &desc.top_k, &desc.window,     &desc.sink,        &desc.block_q,      &desc.block_k,
        &desc.beam,  &desc.rep_tokens, &desc.leaf_tokens, &desc.query_stride, &desc.search_span};
    for (std::size_t n = 0; n < 10; n++)
        *fields[n] = static_cast<int32_t>(s.knobs[n]);
    desc.causal = s.knobs[10] != 0;
    desc.share_heads = s.knobs[11] != 0;
    return desc;
}

/* Plans are kept for the life of the process. */
inline const hpa::plan &plan_of(const shape &s)
{
    using key = std::tuple<std::array<int64_t, 4>, std::array<int64_t, 4>, int, int, int32_t,
                           std::array<int64_t, 12>, double>;
    static std::mutex mutex;
    static std::map<key, hpa::plan> plans;
    const key wanted = {s.q, s.k, s.dtype, s.device, s.device_id, s.knobs, s.scale};
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = plans.find(wanted);
    return found != plans.end() ? found->second
                                : plans.emplace(wanted, description(s)).first->second;
}

#endif
