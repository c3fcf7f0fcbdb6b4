/* The forward pass on Hopper: f16 and bf16, head_dim 64 and 128, block_q 128 and 256.
 *
 * A tile is 128 queries of one head. Blocks of threads stay and take tile after tile. In each, one
 * warp plans: it finds the next tile and writes down what the others need to know of it. Three warps
 * fetch: one queries, one keys, one values. The last two walk the row's list of kept blocks from its
 * end, 128 keys at a time (128 / block_k blocks, one box each), into rings of stages. Warpgroups of 64
 * queries each take them out:
 *
 *     S = Q K^T      P = exp2(S * scale - shift)      O = O + P V
 *
 * with O, S and P in registers.
 *
 * With head_dim 128 there are two (turns_sm90.cuh). A warpgroup begins S of the next keys before it
 * adds P V of these, and weighs that S while P V is under way, and S of the next queries before it
 * writes results. The two begin their products in turns, so that the weighing of one runs under the
 * products of the other.
 *
 * With head_dim 64 there are four (shares_sm90.cuh): two to the same queries, each with half of the
 * keys of every tile, and in the end one adds the other's sums to its own. A warpgroup waits for its
 * products, which it begins in its turn, and the others weigh meanwhile.
 *
 * shift is the highest score that a row had when it was last looked for, 0 to begin with if that will
 * do, and it is looked for only when weights come out large: P may reach 2^14, and O is seldom scaled
 * anew.
 *
 * Causality and the sequence's end are looked at only in the first tiles of keys. The list ascends, so
 * that no others can reach past what the first query sees. */
#include "core/cuda/launch.h"
#include "core/cuda/tma_map.h"
#include "forward/kernels.h"
#include "forward/producers_sm90.cuh"
#include "forward/shares_sm90.cuh"
#include "forward/turns_sm90.cuh"

/* Compiled for an older architecture the kernel is empty, and its functions have no use. */
#pragma nv_diag_suppress 177

namespace
{

template <int n>
__device__ __forceinline__ void init_barriers(uint64_t (&barriers)[n], int arrivals)
{
    for (int i = 0; i < n; i++)
        barrier_init(&barriers[i], (uint32_t)arrivals);
}

template <int head_dim> __device__ void init_all_barriers(shared_memory<head_dim> &shared)
{
    for (int stage = 0; stage < shared.q_stages; stage++) {
        init_barriers(shared.q_full[stage], 1);
        init_barriers(shared.q_empty[stage], consumer_warps<head_dim> / groups);
    }
    init_barriers(shared.k_full, 1);
    init_barriers(shared.k_empty, consumer_warps<head_dim>);
    init_barriers(shared.v_full, 1);
    init_barriers(shared.v_empty, consumer_warps<head_dim>);
    init_barriers(shared.job_full, 1);
    init_barriers(shared.job_empty, consumer_warps<head_dim> + fetching_warps);
    if constexpr (key_shares<head_dim> != 1)
        init_barriers(shared.partial.empty, 128);
    barrier_init_fence();
}

template <typename T, int head_dim>
__global__ void __launch_bounds__(threads<head_dim>, 1)
    forward_sm90_kernel(const __grid_constant__ forward_arguments x,
                        const __grid_constant__ CUtensorMap q_map,
                        const __grid_constant__ CUtensorMap k_map,
                        const __grid_constant__ CUtensorMap v_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) unsigned char raw[];
    auto &shared = *reinterpret_cast<shared_memory<head_dim> *>(raw);
    static_assert(sizeof shared <= 227 * 1024, "a block of threads gets no more on Hopper");
    if (threadIdx.x == 0) {
        require_panel_alignment(raw);
        init_all_barriers<head_dim>(shared);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        /* A block hands out the registers that it began with: 96 a thread, or 168. */
        if constexpr (head_dim == 64)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        else
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x / 32 == 0)
            fetch_list<head_dim, true>(x, shared, &k_map);
        else if (threadIdx.x / 32 == 1)
            fetch_list<head_dim, false>(x, shared, &v_map);
        else if (threadIdx.x / 32 == 2)
            fetch_queries<head_dim>(shared, &q_map);
        else
            plan_tiles<head_dim>(x, shared);
    } else {
        if constexpr (head_dim == 64) {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
            consume_shares<T, head_dim>(x, shared);
        } else {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
            consume_in_turns<T, head_dim>(x, shared);
        }
    }
#endif
}

size_t forward_sm90_scratch(const hpa_plan *plan)
{
    (void)plan;
    return 0;
}

int log2_of(int64_t power_of_two)
{
    int log2 = 0;
    while ((int64_t)1 << log2 < power_of_two)
        log2++;
    return log2;
}

/* Tensors that the copy engine cannot walk go to the kernel of the older architectures. */
template <typename T, int head_dim>
hpa_status launch_forward_sm90(const hpa_plan *plan, const void *mask, const hpa_inputs *in,
                               const hpa_outputs *out, const hpa_exec *exec, const char *name,
                               const hpa_forward_kernel *otherwise)
{
    if (!hpa_tma_can_copy(&in->q) || !hpa_tma_can_copy(&in->k) || !hpa_tma_can_copy(&in->v) ||
        !rows_are_aligned(&out->out))
        return otherwise->run(plan, mask, in, out, exec);
    const hpa_geometry *g = &plan->geometry;
    const int tiles_per_block = (int)(g->block_q / tile_queries);
    const forward_arguments x = {*g,
                                 hpa_mask_view_const(g, mask),
                                 rows_of(&in->q, g->packed),
                                 rows_of(&in->k, g->packed),
                                 rows_of(&in->v, g->packed),
                                 rows_of(&out->out, g->packed),
                                 rows_of(&out->lse, g->packed),
                                 g->heads_q * g->row_slots * tiles_per_block,
                                 tiles_per_block,
                                 tile_keys / (int)g->block_k,
                                 (int)g->block_k,
                                 log2_of(g->block_k),
                                 scale_log2_of(g)};
    if (x.tiles == 0 || g->total_q == 0)
        return HPA_OK;
    if (g->total_kv == 0) /* no key to describe a tensor map of */
        return otherwise->run(plan, mask, in, out, exec);
    CUtensorMap q_map, k_map, v_map;
    HPA_TRY(hpa_tma_map_of(&q_map, "in.q", &in->q, g->packed, group_queries));
    HPA_TRY(hpa_tma_map_of(&k_map, "in.k", &in->k, g->packed, (uint32_t)g->block_k));
    HPA_TRY(hpa_tma_map_of(&v_map, "in.v", &in->v, g->packed, (uint32_t)g->block_k));
    int32_t before;
    HPA_TRY(hpa_cuda_enter(plan->cuda.id, &before));
    return hpa_cuda_leave(
        before, hpa_cuda_launch(name, forward_sm90_kernel<T, head_dim>,
                                dim3((unsigned)hpa_min(x.tiles, plan->cuda.multiprocessors)),
                                dim3(threads<head_dim>), sizeof(shared_memory<head_dim>),
                                hpa_cuda_stream(exec), x, q_map, k_map, v_map));
}

} // namespace

#define DEFINE_KERNEL(dtype, name, type, head_dim)                                          \
    static hpa_status run_##name##_##head_dim(const hpa_plan *plan, const void *mask,       \
                                              const hpa_inputs *in, const hpa_outputs *out, \
                                              const hpa_exec *exec)                         \
    {                                                                                       \
        return launch_forward_sm90<type, head_dim>(plan, mask, in, out, exec,               \
                                                   "forward_sm90_" #name "_" #head_dim,     \
                                                   &hpa_forward_mma_##name##_##head_dim);   \
    }                                                                                       \
    extern "C" const hpa_forward_kernel hpa_forward_sm90_##name##_##head_dim = {            \
        "forward_sm90_" #name "_" #head_dim, forward_sm90_scratch, run_##name##_##head_dim};
HPA_SM90_INSTANCES(DEFINE_KERNEL)
