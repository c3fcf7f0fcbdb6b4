/* hpa/hpa.hpp: the same bits as the C calls, exceptions that explain, handles that move. */
#include "hpa/hpa.hpp"

#include <cstdint>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int64_t tokens = 300, heads = 4, kv_heads = 2, dim = 16;
int failures = 0;

void expect(bool condition, const std::string &what)
{
    if (condition)
        return;
    std::cerr << "expected " << what << "\n";
    failures++;
}

/* Runs a call that must throw hpa::error with this status and these words in what(). */
template <class Call> void expect_error(hpa_status status, const std::string &words, Call call)
{
    try {
        call();
        expect(false, "an exception about " + words);
    } catch (const hpa::error &error) {
        expect(error.status() == status, std::string("the status of ") + error.what());
        expect(std::strstr(error.what(), words.c_str()) != nullptr,
               words + " in: " + error.what());
    }
}

using numbers = std::vector<float>;

numbers random_numbers(int64_t n, unsigned seed)
{
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    numbers result(static_cast<std::size_t>(n));
    for (float &x : result)
        x = normal(generator);
    return result;
}

hpa_desc description()
{
    hpa_desc desc = hpa_desc_default();
    desc.heads_q = heads;
    desc.heads_kv = kv_heads;
    desc.head_dim = dim;
    desc.seq_q = desc.seq_kv = tokens;
    desc.top_k = 64;
    desc.window = 32;
    desc.sink = 16;
    desc.block_q = 32;
    desc.block_k = 16;
    return desc;
}

/* Tensors of one step, and the two ways to run it. */
struct problem {
    const numbers q = random_numbers(heads * tokens * dim, 1);
    const numbers k = random_numbers(kv_heads * tokens * dim, 2);
    const numbers v = random_numbers(kv_heads * tokens * dim, 3);
    const numbers d_out = random_numbers(heads * tokens * dim, 4);
    numbers out = numbers(q.size()), lse = numbers(heads * tokens), dq = numbers(q.size()),
            dk = numbers(k.size()), dv = numbers(v.size());

    hpa_inputs in() const
    {
        hpa_inputs in = {};
        in.q = hpa::tensor(q.data(), {1, heads, tokens, dim});
        in.k = hpa::tensor(k.data(), {1, kv_heads, tokens, dim});
        in.v = hpa::view(v.data(), HPA_F32, {1, kv_heads, tokens, dim},
                         {kv_heads * tokens * dim, tokens * dim, dim, 1});
        return in;
    }
    hpa_outputs outputs()
    {
        return {hpa::tensor(out.data(), {1, heads, tokens, dim}),
                hpa::tensor(lse.data(), {1, heads, tokens})};
    }
    hpa_gradients gradients()
    {
        hpa_gradients grads = {};
        grads.d_out = hpa::tensor(d_out.data(), {1, heads, tokens, dim});
        grads.dq = hpa::tensor(dq.data(), {1, heads, tokens, dim});
        grads.dk = hpa::tensor(dk.data(), {1, kv_heads, tokens, dim});
        grads.dv = hpa::tensor(dv.data(), {1, kv_heads, tokens, dim});
        return grads;
    }
};

std::vector<std::byte> run_in_cpp(const hpa::plan &plan, problem &p)
{
    std::vector<std::byte> mask(plan.sizes().mask), scratch(plan.scratch_bytes());
    plan.mask_build(p.in(), mask, {scratch});
    plan.forward(mask, p.in(), p.outputs(), {scratch});
    plan.backward(mask, p.in(), p.outputs(), p.gradients(), {scratch});
    return mask;
}

void run_in_c(problem &p, std::vector<std::byte> &mask)
{
    const hpa_desc desc = description();
    hpa_plan *plan;
    hpa_sizes sizes;
    hpa::check(hpa_plan_create(&plan, &desc), "hpa_plan_create");
    hpa::check(hpa_plan_sizes(plan, &sizes), "hpa_plan_sizes");
    std::vector<std::byte> scratch(sizes.mask_scratch + sizes.forward_scratch +
                                   sizes.backward_scratch);
    mask.resize(sizes.mask);
    const hpa_exec exec = {nullptr, scratch.data(), scratch.size()};
    const hpa_inputs in = p.in();
    const hpa_outputs out = p.outputs();
    const hpa_gradients grads = p.gradients();
    hpa::check(hpa_mask_build(plan, &in, mask.data(), &exec), "hpa_mask_build");
    hpa::check(hpa_forward(plan, mask.data(), &in, &out, &exec), "hpa_forward");
    hpa::check(hpa_backward(plan, mask.data(), &in, &out, &grads, &exec), "hpa_backward");
    hpa_plan_destroy(plan);
}

void same_bits_as_in_c()
{
    problem cpp, c;
    std::vector<std::byte> c_mask;
    const hpa::plan plan(description());
    const std::vector<std::byte> mask = run_in_cpp(plan, cpp);
    run_in_c(c, c_mask);
    expect(cpp.out == c.out && cpp.lse == c.lse, "equal outputs");
    expect(cpp.dq == c.dq && cpp.dk == c.dk && cpp.dv == c.dv, "equal gradients");
    std::vector<std::byte> scratch(plan.scratch_bytes());
    expect(plan.mask_statistics(mask, {scratch}).fingerprint ==
               plan.mask_statistics(c_mask, {scratch}).fingerprint,
           "equal masks");
}

void masks_out_and_in()
{
    problem p;
    const hpa::plan plan(description());
    const std::vector<std::byte> mask = run_in_cpp(plan, p);
    std::vector<std::byte> scratch(plan.scratch_bytes()), copy(plan.sizes().mask);
    const hpa::csr rows = plan.mask_export_csr(mask, {scratch});
    expect(rows.row_ptr.back() == static_cast<int64_t>(rows.blocks.size()), "whole rows");
    plan.mask_import_csr(p.in(), copy, rows, {scratch});
    plan.mask_validate(copy, {scratch});
    expect(plan.mask_statistics(copy, {scratch}).fingerprint ==
               plan.mask_statistics(mask, {scratch}).fingerprint,
           "the imported mask to equal the exported one");
}

void errors()
{
    hpa_desc bad = description();
    bad.head_dim = 7;
    expect_error(HPA_INVALID_ARGUMENT, "hpa_plan_create: HPA_INVALID_ARGUMENT: desc.head_dim",
                 [&] { hpa::plan plan(bad); });

    problem p;
    const hpa::plan plan(description());
    std::vector<std::byte> mask(plan.sizes().mask), scratch(plan.scratch_bytes()), small(16);
    expect_error(HPA_BUFFER_TOO_SMALL, "mask has 16 bytes, expected at least",
                 [&] { plan.mask_build(p.in(), small, {scratch}); });
    hpa_inputs in = p.in();
    in.q.shape[2]++;
    expect_error(HPA_INVALID_SHAPE, "hpa_mask_build: HPA_INVALID_SHAPE: in.q",
                 [&] { plan.mask_build(in, mask, {scratch}); });
    expect_error(HPA_INVALID_MASK, "HPA_INVALID_MASK",
                 [&] { plan.mask_validate(mask, {scratch}); });
    expect_error(HPA_INVALID_SHAPE, "hpa::view",
                 [&] { hpa::tensor(p.out.data(), {1, 2, 3}, {1, 2}); });
}

void presets()
{
    hpa_desc desc = description();
    hpa::desc_set_preset(desc, HPA_PRESET_FAITHFUL);
    hpa_desc want = description();
    expect(hpa_desc_set_preset(&want, HPA_PRESET_FAITHFUL) == HPA_OK, "a preset");
    expect(desc.block_k == want.block_k && desc.leaf_tokens == want.leaf_tokens &&
               desc.rep_tokens == want.rep_tokens && desc.top_k == description().top_k,
           "the preset of the C call");
    expect_error(HPA_INVALID_ARGUMENT, "hpa_desc_set_preset",
                 [&] { hpa::desc_set_preset(desc, static_cast<hpa_preset>(0)); });
}

void handles_move()
{
    static_assert(!std::is_copy_constructible_v<hpa::plan> && !std::is_copy_assignable_v<hpa::plan>,
                  "a plan has one owner");
    static_assert(!std::is_convertible_v<const std::vector<std::byte> &, hpa::bytes>,
                  "what is const cannot be written");
    static_assert(std::is_convertible_v<const std::vector<std::byte> &, hpa::const_bytes> &&
                      std::is_convertible_v<hpa::bytes, hpa::const_bytes> &&
                      !std::is_convertible_v<hpa::const_bytes, hpa::bytes>,
                  "what can be written can be read");
    hpa::plan first(description());
    const hpa_plan *handle = first.get();
    hpa::plan second(std::move(first));
    expect(second.get() == handle && first.get() == nullptr, "the handle to move");
    first = std::move(second);
    expect(first.get() == handle && second.get() == nullptr, "the handle to move back");
    problem p;
    run_in_cpp(first, p);
    expect(std::strlen(first.describe()) > 0, "a description");
    std::vector<int64_t> words(10);
    expect(hpa::bytes(words).size == 80, "a span to count bytes");
}

} // namespace

int main()
{
    try {
        same_bits_as_in_c();
        masks_out_and_in();
        errors();
        presets();
        handles_move();
    } catch (const std::exception &error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return failures ? 1 : 0;
}
