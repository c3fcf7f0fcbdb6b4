/* How much of dense attention does pruned attention keep? A stranger's program, in C++17.
 *
 * One step of training attention over random numbers with a few queries that look for one key each:
 * mask, forward and backward, once pruned and once with every key kept. */
#include <hpa/hpa.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <random>
#include <vector>

namespace {

constexpr int64_t tokens = 4096, heads = 4, kv_heads = 2, dim = 64;

using numbers = std::vector<float>;

numbers normal_numbers(int64_t n, unsigned seed)
{
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    numbers result(static_cast<std::size_t>(n));
    for (float &x : result)
        x = normal(generator);
    return result;
}

/* Keys change slowly from token to token, as those of a trained model do; the search lives on it. */
void smooth(numbers &k)
{
    const float keep = 0.97F, fresh = std::sqrt(1 - keep * keep);
    for (std::size_t n = dim; n < k.size(); n++)
        k[n] = keep * k[n - dim] + fresh * k[n];
}

/* Every 256th query is three times the key that it looks for, far behind it. */
void plant_needles(numbers &q, const numbers &k)
{
    for (int64_t head = 0; head < heads; head++)
        for (int64_t query = 2048; query < tokens; query += 256)
            for (int64_t d = 0; d < dim; d++) {
                const int64_t key = query * 7 % 1500, kv_head = head / (heads / kv_heads);
                q[static_cast<std::size_t>((head * tokens + query) * dim + d)] =
                    3 * k[static_cast<std::size_t>((kv_head * tokens + key) * dim + d)];
            }
}

struct step {
    numbers out = numbers(heads * tokens * dim), lse = numbers(heads * tokens), dq = out,
            dk = numbers(kv_heads * tokens * dim), dv = dk;
    double density = 0;

    step(int32_t top_k, const numbers &q, const numbers &k, const numbers &v, const numbers &d_out)
    {
        hpa_desc desc = hpa_desc_default();
        desc.heads_q = heads;
        desc.heads_kv = kv_heads;
        desc.head_dim = dim;
        desc.seq_q = desc.seq_kv = tokens;
        desc.top_k = top_k;
        const hpa::plan plan(desc);
        std::vector<std::byte> mask(plan.sizes().mask), scratch(plan.scratch_bytes());
        const hpa::run how = {scratch};

        hpa_inputs in = {};
        in.q = hpa::tensor(q.data(), {1, heads, tokens, dim});
        in.k = hpa::tensor(k.data(), {1, kv_heads, tokens, dim});
        in.v = hpa::tensor(v.data(), {1, kv_heads, tokens, dim});
        const hpa_outputs outputs = {hpa::tensor(out.data(), {1, heads, tokens, dim}),
                                     hpa::tensor(lse.data(), {1, heads, tokens})};
        hpa_gradients grads = {};
        grads.d_out = hpa::tensor(d_out.data(), {1, heads, tokens, dim});
        grads.dq = hpa::tensor(dq.data(), {1, heads, tokens, dim});
        grads.dk = hpa::tensor(dk.data(), {1, kv_heads, tokens, dim});
        grads.dv = hpa::tensor(dv.data(), {1, kv_heads, tokens, dim});

        plan.mask_build(in, mask, how);
        plan.forward(mask, in, outputs, how);
        plan.backward(mask, in, outputs, grads, how);
        density = plan.mask_statistics(mask, how).density;
    }
};

/* ||a - b|| / ||b|| over the queries that look for something. */
double needle_error(const numbers &a, const numbers &b)
{
    double difference = 0, norm = 0;
    for (int64_t head = 0; head < heads; head++)
        for (int64_t query = 2048; query < tokens; query += 256)
            for (int64_t d = 0; d < dim; d++) {
                const auto n = static_cast<std::size_t>((head * tokens + query) * dim + d);
                difference += (a[n] - b[n]) * (a[n] - b[n]);
                norm += b[n] * b[n];
            }
    return std::sqrt(difference / norm);
}

} // namespace

int main()
{
    try {
        numbers q = normal_numbers(heads * tokens * dim, 1);
        numbers k = normal_numbers(kv_heads * tokens * dim, 2);
        const numbers v = normal_numbers(kv_heads * tokens * dim, 3);
        const numbers d_out = normal_numbers(heads * tokens * dim, 4);
        smooth(k);
        plant_needles(q, k);
        const step pruned(256, q, k, v, d_out), dense(tokens, q, k, v, d_out);
        const double error = needle_error(pruned.out, dense.out);
        std::printf("%.0f%% of the pairs kept; the needles' outputs differ by %.1e from dense ones\n",
                    100 * pruned.density, error);
        return error <= 0.01 && pruned.density < 0.5 && dense.density == 1 ? 0 : 1;
    } catch (const std::exception &error) { /* an hpa::error says which argument of which call */
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
