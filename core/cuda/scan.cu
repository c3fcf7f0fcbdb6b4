#include "core/cuda/scan.h"

#include "core/geometry.h"

#define THREADS 256
#define EACH 8 /* consecutive values of one thread */
#define TILE (THREADS * EACH)

/* The sum over the block's threads up to and with this one; *total: over all of them. */
static __device__ int64_t block_inclusive_sum(int64_t value, int64_t *total)
{
    __shared__ int64_t of_warp[THREADS / 32];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t sum = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    if (lane == 31)
        of_warp[warp] = sum;
    __syncthreads();
    *total = 0;
#pragma unroll
    for (int n = 0; n < THREADS / 32; n++) {
        sum += n < warp ? of_warp[n] : 0;
        *total += of_warp[n];
    }
    __syncthreads();
    return sum;
}

/* sums[tile] = the sum of a tile's values */
static __global__ void __launch_bounds__(THREADS)
    scan_tile_sums_kernel(const int64_t *values, int64_t n, int64_t *sums)
{
    const int64_t tile = blockIdx.x;
    int64_t sum = 0, total;
    for (int64_t i = tile * TILE + threadIdx.x; i < hpa_min(n, (tile + 1) * TILE); i += THREADS)
        sum += values[i];
    block_inclusive_sum(sum, &total);
    if (threadIdx.x == 0)
        sums[tile] = total;
}

/* One block: running sums of the tiles' sums. */
static __global__ void __launch_bounds__(THREADS) scan_sums_kernel(int64_t *sums, int64_t tiles)
{
    int64_t before = 0;
    for (int64_t first = 0; first < tiles; first += THREADS) {
        const int64_t i = first + threadIdx.x;
        int64_t total;
        const int64_t sum = block_inclusive_sum(i < tiles ? sums[i] : 0, &total);
        if (i < tiles)
            sums[i] = before + sum;
        before += total;
    }
}

static __global__ void __launch_bounds__(THREADS)
    scan_tiles_kernel(int64_t *values, int64_t n, const int64_t *sums)
{
    const int64_t tile = blockIdx.x, first = tile * TILE + (int64_t)threadIdx.x * EACH;
    int64_t mine[EACH], sum = 0, total;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        sum += mine[i] = first + i < n ? values[first + i] : 0;
    int64_t running = (tile > 0 ? sums[tile - 1] : 0) + block_inclusive_sum(sum, &total) - sum;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        running += mine[i];
        if (first + i < n)
            values[first + i] = running;
    }
}

int64_t hpa_cuda_scan_scratch(int64_t n)
{
    return hpa_ceil_div(n, TILE);
}

hpa_status hpa_cuda_inclusive_sum(int64_t *values, int64_t n, int64_t *scratch, cudaStream_t stream)
{
    const int64_t tiles = hpa_ceil_div(n, TILE);
    const dim3 blocks((unsigned)tiles);
    HPA_TRY(hpa_cuda_launch("scan_tile_sums_kernel", scan_tile_sums_kernel, blocks, THREADS, 0,
                            stream, (const int64_t *)values, n, scratch));
    HPA_TRY(hpa_cuda_launch("scan_sums_kernel", scan_sums_kernel, n > 0, THREADS, 0, stream,
                            scratch, tiles));
    return hpa_cuda_launch("scan_tiles_kernel", scan_tiles_kernel, blocks, THREADS, 0, stream,
                           values, n, (const int64_t *)scratch);
}
