/* The layers of the transformer on a CUDA device, each forward followed by its backward, in the
 * order of layers.c. backend.h says what they do. T is the type of operands, float or bf16; numbers
 * are floats, and all sums are.
 *
 * No sum depends on which block comes first: what the rows of a batch add to a weight is summed
 * over chunks of rows, and the chunks in their order. */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <curand_kernel.h>

extern "C" { /* after the headers that are C++ themselves */
#include "device.h"
}

namespace
{

/* Launching */

constexpr int warp = 32, threads = 256, warps = threads / warp;

cudaStream_t stream_of(backend *on)
{
    return static_cast<cuda_backend *>(static_cast<void *>(on))->stream;
}

#define LAUNCH(on, kernel, blocks, block, ...)                                            \
    do {                                                                                  \
        if ((blocks) > 0)                                                                 \
            kernel<<<(unsigned)(blocks), (block), 0, stream_of(on)>>>(__VA_ARGS__);       \
        device_check((on), cudaGetLastError(), #kernel);                                  \
    } while (0)

int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Blocks for n elements, each thread of which takes one and then every so many. */
int64_t blocks_for(int64_t n)
{
    const int64_t blocks = ceil_div(n, threads), most = 16384;
    return blocks < most ? blocks : most;
}

#define FOR_EACH(i, n)                                                                           \
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (n);                    \
         i += (int64_t)gridDim.x * blockDim.x)

/* Elements */

/* W elements side by side, which a thread reads or writes at once: 16 bytes are best. Where the
 * length of rows is no multiple of a useful W, one by one: BY_WIDTH says which. */
template <typename T, int W> struct alignas(W * sizeof(T)) pack {
    T at[W];
};

template <int W, typename T> __device__ void load(float (&to)[W], const T *from)
{
    const pack<T, W> x = *reinterpret_cast<const pack<T, W> *>(from);
#pragma unroll
    for (int w = 0; w < W; w++)
        to[w] = (float)x.at[w];
}

template <int W, typename T> __device__ void store(T *to, const float (&from)[W])
{
    pack<T, W> x;
#pragma unroll
    for (int w = 0; w < W; w++)
        x.at[w] = (T)from[w]; /* to the nearest */
    *reinterpret_cast<pack<T, W> *>(to) = x;
}

#define BY_WIDTH(wide, length, ...)   \
    do {                              \
        if ((length) % (wide) == 0) { \
            constexpr int W = (wide); \
            __VA_ARGS__;              \
        } else {                      \
            constexpr int W = 1;      \
            __VA_ARGS__;              \
        }                             \
    } while (0)

/* A block for rows of so many packs: the threads that share a row, and rows. */
dim3 row_block(int64_t packs)
{
    const unsigned across = (unsigned)(packs < threads ? packs : threads);
    return dim3(across, (unsigned)threads / across);
}

/* Over the packs of row n in such a block; `return` where there is no row n. */
#define FOR_EACH_PACK(n, N, at, packs)                                       \
    const int64_t n = blockIdx.x * (int64_t)blockDim.y + threadIdx.y;        \
    if (n >= (N))                                                            \
        return;                                                              \
    for (int64_t at = threadIdx.x; at < (packs); at += blockDim.x)

__device__ float warp_sum(float x)
{
    for (int lanes = warp / 2; lanes > 0; lanes /= 2)
        x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

__device__ float warp_largest(float x)
{
    for (int lanes = warp / 2; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
    return x;
}

/* Products: cuBLAS stores matrices by columns, so that it sees every one of ours transposed, and
 * takes the factors in the other order. */

template <typename T> constexpr cudaDataType type_of = CUDA_R_32F;
template <> constexpr cudaDataType type_of<__nv_bfloat16> = CUDA_R_16BF;

/* c (m, n) = beta * c + op(a) op(b), with k between them; a and b of T, rows one after another. */
template <typename T>
void product(backend *on, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n,
             int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb, float beta, void *c,
             cudaDataType c_type)
{
    const float one = 1;
    cublasHandle_t blas = static_cast<cuda_backend *>(static_cast<void *>(on))->blas;
    device_check_blas(on,
                      cublasGemmEx(blas, op_b, op_a, (int)n, (int)m, (int)k, &one, b, type_of<T>,
                                   (int)ldb, a, type_of<T>, (int)lda, &beta, c, c_type, (int)n,
                                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                      "cublasGemmEx");
}

template <typename T>
void linear_forward(backend *on, into where, void *out, const void *in, const void *weight,
                    int64_t N, int64_t K, int64_t O)
{
    const phase before = device_enter(on, PHASE_PRODUCTS);
    product<T>(on, CUBLAS_OP_N, CUBLAS_OP_T, N, O, K, in, K, weight, K,
               where == ONTO_NUMBERS ? 1 : 0, out,
               where == INTO_OPERANDS ? type_of<T> : CUDA_R_32F);
    device_enter(on, before);
}

template <typename T>
void linear_backward(backend *on, void *d_in, void *d_weight, const void *d_out, const void *in,
                     const void *weight, int64_t N, int64_t K, int64_t O)
{
    const phase before = device_enter(on, PHASE_PRODUCTS);
    /* forward: out = in weight^T   =>   d_in = d_out weight,   d_weight += d_out^T in */
    product<T>(on, CUBLAS_OP_N, CUBLAS_OP_N, N, K, O, d_out, O, weight, K, 0, d_in, type_of<T>);
    product<T>(on, CUBLAS_OP_T, CUBLAS_OP_N, O, K, N, d_out, O, in, K, 1, d_weight, CUDA_R_32F);
    device_enter(on, before);
}

template <typename T, int W> __global__ void round_kernel(T *to, const float *from, int64_t packs)
{
    FOR_EACH(i, packs) {
        float x[W];
        load(x, from + i * W);
        store(to + i * W, x);
    }
}

template <typename T> void round_numbers(backend *on, void *to, const void *from, int64_t n)
{
    BY_WIDTH(8, n, LAUNCH(on, (round_kernel<T, W>), blocks_for(n / W), threads, (T *)to,
                          (const float *)from, n / W));
}

/* Sums over the rows of a batch: over some rows by each of many blocks, into `partial`, and then
 * over the blocks. */

/* sums[i] += partial[0][i] + partial[1][i] + ..., partial (chunks, n). A block of warp x warp
 * threads for each 32 sums. */
__global__ void add_chunks_kernel(float *sums, const float *partial, int64_t chunks, int64_t n)
{
    __shared__ float parts[warp][warp + 1];
    const int64_t i = blockIdx.x * (int64_t)warp + threadIdx.x;
    float part = 0;
#pragma unroll 8
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += warp)
        part += i < n ? partial[chunk * n + i] : 0;
    parts[threadIdx.x][threadIdx.y] = part;
    __syncthreads();
    const float sum = warp_sum(parts[threadIdx.y][threadIdx.x]);
    const int64_t summed = blockIdx.x * (int64_t)warp + threadIdx.y;
    if (threadIdx.x == 0 && summed < n)
        sums[summed] += sum;
}

void add_chunks(backend *on, void *sums, const float *partial, int64_t chunks, int64_t n)
{
    LAUNCH(on, add_chunks_kernel, ceil_div(n, warp), dim3(warp, warp), (float *)sums, partial,
           chunks, n);
}

/* RMSNorm: a warp for each row */

template <typename T, int W>
__global__ void rmsnorm_forward_kernel(T *out, float *scale, float *sum, const float *in,
                                       const T *branch, const float *weight, int64_t N, int64_t C)
{
    const int64_t n = blockIdx.x * (int64_t)warps + threadIdx.x / warp;
    const int lane = threadIdx.x % warp;
    if (n >= N)
        return;
    /* The second reading of a row finds it in the nearest cache. */
    const auto read = [=](float(&x)[W], int64_t c) {
        load(x, in + n * C + c);
        if (branch) {
            float more[W];
            load(more, branch + n * C + c);
            for (int w = 0; w < W; w++)
                x[w] += more[w];
        }
    };
    float squares = 0, x[W], weights[W];
    for (int64_t c = lane * W; c < C; c += warp * W) {
        read(x, c);
        for (int w = 0; w < W; w++)
            squares += x[w] * x[w];
    }
    const float s = 1 / sqrtf(warp_sum(squares) / (float)C + (float)NORM_EPSILON);
    for (int64_t c = lane * W; c < C; c += warp * W) {
        read(x, c);
        load(weights, weight + c);
        if (branch)
            store(sum + n * C + c, x);
        for (int w = 0; w < W; w++)
            x[w] = weights[w] * x[w] * s;
        store(out + n * C + c, x);
    }
    if (lane == 0)
        scale[n] = s;
}

template <typename T>
void rmsnorm_forward(backend *on, void *out, void *scale, void *sum, const void *in,
                     const void *branch, const void *weight, int64_t N, int64_t C)
{
    BY_WIDTH(4, C, LAUNCH(on, (rmsnorm_forward_kernel<T, W>), ceil_div(N, warps), threads, (T *)out,
                          (float *)scale, (float *)sum, (const float *)in, (const T *)branch,
                          (const float *)weight, N, C));
}

/* What a warp keeps of the gradient of the weight: of so many packs. Longer rows are shared out
 * among blockIdx.y. */
constexpr int norm_packs = 4;
template <int W> constexpr int norm_columns = norm_packs * warp * W;

/* The sums of a block's warps, added up: columns from `first` on of row blockIdx.x of partial. */
template <int W>
__device__ void store_block_sums(float *partial, const float (&sums)[norm_packs][W], int64_t first,
                                 int64_t C)
{
    alignas(16) __shared__ float of_warps[warps][norm_columns<W>];
    const int lane = threadIdx.x % warp;
#pragma unroll
    for (int p = 0; p < norm_packs; p++)
        store(of_warps[threadIdx.x / warp] + (p * warp + lane) * W, sums[p]);
    __syncthreads();
    for (int c = threadIdx.x; c < norm_columns<W> && first + c < C; c += threads) {
        float sum = 0;
        for (int n = 0; n < warps; n++)
            sum += of_warps[n][c];
        partial[blockIdx.x * C + first + c] = sum;
    }
}

/* Each warp of block blockIdx.x goes down every `warps`-th of so many rows. partial (blocks, C) */
template <typename T, int W>
__global__ void rmsnorm_backward_kernel(float *d_in, T *rounded, float *partial, bool onto,
                                        const T *d_out, const float *in, const float *scale,
                                        const float *weight, int64_t N, int64_t C, int64_t rows)
{
    const int lane = threadIdx.x % warp;
    const int64_t first = blockIdx.x * rows, end = first + rows < N ? first + rows : N;
    const int64_t first_column = blockIdx.y * (int64_t)norm_columns<W>;
    float d_weight[norm_packs][W] = {}, dy[W], x[W], w[W];
    for (int64_t n = first + threadIdx.x / warp; n < end; n += warps) {
        const auto read = [&](int64_t c) {
            load(dy, d_out + n * C + c);
            load(x, in + n * C + c);
            load(w, weight + c);
        };
        const float s = scale[n];
        float dot = 0;
        for (int64_t c = lane * W; c < C; c += warp * W) {
            read(c);
            for (int i = 0; i < W; i++)
                dot += dy[i] * w[i] * x[i];
        }
        /* forward: y = w x s,   s = (mean x^2 + epsilon)^-1/2   =>   ds/dx = -s^3 x / C,
         *                                                            dw += dy x s */
        const float pull = s * s * s * warp_sum(dot) / (float)C;
#pragma unroll
        for (int p = 0; p < norm_packs; p++) {
            const int64_t c = first_column + (p * warp + lane) * W;
            float dx[W] = {};
            if (c >= C)
                continue;
            read(c);
            if (onto)
                load(dx, d_in + n * C + c);
            for (int i = 0; i < W; i++) {
                dx[i] += dy[i] * w[i] * s - pull * x[i];
                d_weight[p][i] += dy[i] * x[i] * s;
            }
            store(d_in + n * C + c, dx);
            if (rounded)
                store(rounded + n * C + c, dx);
        }
    }
    store_block_sums(partial, d_weight, first_column, C);
}

template <typename T>
void rmsnorm_backward(backend *on, into where, void *d_in, void *rounded, void *d_weight,
                      const void *d_out, const void *in, const void *scale, const void *weight,
                      int64_t N, int64_t C)
{
    constexpr int64_t most_chunks = 512, least_rows = 8 * warps;
    const int64_t rows = N < most_chunks * least_rows ? least_rows : ceil_div(N, most_chunks);
    const int64_t chunks = ceil_div(N, rows);
    float *partial = (float *)device_scratch(on, chunks * C * (int64_t)sizeof(float));
    if (!partial)
        return;
    BY_WIDTH(4, C, {
        const dim3 grid((unsigned)chunks, (unsigned)ceil_div(C, norm_columns<W>));
        rmsnorm_backward_kernel<T, W><<<grid, threads, 0, stream_of(on)>>>(
            (float *)d_in, rounded == d_in ? nullptr : (T *)rounded, partial, where == ONTO_NUMBERS,
            (const T *)d_out, (const float *)in, (const float *)scale, (const float *)weight, N, C,
            rows);
    });
    device_check(on, cudaGetLastError(), "rmsnorm_backward_kernel");
    add_chunks(on, d_weight, partial, chunks, C);
}

/* Rotary positions and SwiGLU */

/* half: of a head, whose number i turns with number half + i. */
template <typename T, int W>
__global__ void rope_kernel(T *x, const float2 *table, int64_t N, int64_t context, int64_t first,
                            int64_t stride, int heads, int half, float direction)
{
    const int in_head = half / W;
    FOR_EACH_PACK(n, N, at, heads * in_head) {
        const int head = (int)at / in_head, i = (int)at % in_head * W;
        T *a = x + n * stride + head * (2 * half) + i, *b = a + half;
        float a_i[W], b_i[W], turned_a[W], turned_b[W], turn[2 * W];
        load(a_i, a);
        load(b_i, b);
        load(turn, (const float *)(table + (first + n % context) * half + i));
        for (int w = 0; w < W; w++) {
            const float c = turn[2 * w], s = direction * turn[2 * w + 1];
            turned_a[w] = a_i[w] * c - b_i[w] * s;
            turned_b[w] = b_i[w] * c + a_i[w] * s;
        }
        store(a, turned_a);
        store(b, turned_b);
    }
}

template <typename T>
void rope(backend *on, void *x, const void *table, int64_t N, int64_t context, int64_t first,
          int64_t stride, int64_t heads, int64_t D, int direction)
{
    BY_WIDTH(4, D / 2, {
        const dim3 block = row_block(heads * D / 2 / W);
        LAUNCH(on, (rope_kernel<T, W>), ceil_div(N, block.y), block, (T *)x, (const float2 *)table,
               N, context, first, stride, (int)heads, (int)(D / 2), (float)direction);
    });
}

/* exp and division by their fast instructions, which are good to 1e-6. */
__device__ float sigmoid(float x)
{
    return __fdividef(1, 1 + __expf(-x));
}

template <typename T, int W>
__global__ void swiglu_forward_kernel(T *out, const T *gate_up, int64_t N, int64_t F)
{
    FOR_EACH_PACK(n, N, at, F / W) {
        float g[W], u[W];
        load(g, gate_up + n * 2 * F + at * W);
        load(u, gate_up + n * 2 * F + F + at * W);
        for (int w = 0; w < W; w++)
            g[w] *= sigmoid(g[w]) * u[w];
        store(out + n * F + at * W, g);
    }
}

template <typename T>
void swiglu_forward(backend *on, void *out, const void *gate_up, int64_t N, int64_t F)
{
    BY_WIDTH(8, F, {
        const dim3 block = row_block(F / W);
        LAUNCH(on, (swiglu_forward_kernel<T, W>), ceil_div(N, block.y), block, (T *)out,
               (const T *)gate_up, N, F);
    });
}

template <typename T, int W>
__global__ void swiglu_backward_kernel(T *d_gate_up, const T *d_out, const T *gate_up, int64_t N,
                                       int64_t F)
{
    FOR_EACH_PACK(n, N, at, F / W) {
        const int64_t gate = n * 2 * F + at * W, up = gate + F;
        float g[W], u[W], dy[W], dg[W], du[W];
        load(g, gate_up + gate);
        load(u, gate_up + up);
        load(dy, d_out + n * F + at * W);
        for (int w = 0; w < W; w++) {
            /* forward: y = g sigmoid(g) u   =>   du = dy g sigmoid(g),
             *                                    dg = dy u sigmoid(g) (1 + g (1 - sigmoid(g))) */
            const float s = sigmoid(g[w]);
            du[w] = dy[w] * g[w] * s;
            dg[w] = dy[w] * u[w] * s * (1 + g[w] * (1 - s));
        }
        store(d_gate_up + gate, dg);
        store(d_gate_up + up, du);
    }
}

template <typename T>
void swiglu_backward(backend *on, void *d_gate_up, const void *d_out, const void *gate_up,
                     int64_t N, int64_t F)
{
    BY_WIDTH(8, F, {
        const dim3 block = row_block(F / W);
        LAUNCH(on, (swiglu_backward_kernel<T, W>), ceil_div(N, block.y), block, (T *)d_gate_up,
               (const T *)d_out, (const T *)gate_up, N, F);
    });
}

/* Embedding */

constexpr int vocabulary = 256;

template <int W>
__global__ void embedding_forward_kernel(float *out, const uint8_t *tokens, const float *table,
                                         int64_t N, int64_t C)
{
    FOR_EACH_PACK(n, N, at, C / W) {
        float x[W];
        load(x, table + tokens[n] * C + at * W);
        store(out + n * C + at * W, x);
    }
}

void embedding_forward(backend *on, void *out, const uint8_t *tokens, const void *table, int64_t N,
                       int64_t C)
{
    BY_WIDTH(4, C, {
        const dim3 block = row_block(C / W);
        LAUNCH(on, embedding_forward_kernel<W>, ceil_div(N, block.y), block, (float *)out, tokens,
               (const float *)table, N, C);
    });
}

/* One warp adds the rows of chunk blockIdx.y to a table of 32 columns, row after row. */
__global__ void embedding_backward_kernel(float *partial, const float *d_out,
                                          const uint8_t *tokens, int64_t N, int64_t C, int64_t rows)
{
    __shared__ float sums[vocabulary][warp];
    const int lane = threadIdx.x;
    const int64_t c = blockIdx.x * (int64_t)warp + lane;
    const int64_t first = blockIdx.y * rows, end = first + rows < N ? first + rows : N;
    for (int v = 0; v < vocabulary; v++)
        sums[v][lane] = 0;
    if (c >= C)
        return;
    /* forward: out[n] = table[token[n]]   =>   d_table[token[n]] += d_out[n], some rows of which
     * are under way at a time. */
    constexpr int batch = 16;
    for (int64_t n = first; n < end; n += batch) {
        float x[batch];
        int token[batch];
#pragma unroll
        for (int row = 0; row < batch; row++) {
            const bool there = n + row < end;
            x[row] = there ? d_out[(n + row) * C + c] : 0;
            token[row] = there ? tokens[n + row] : 0;
        }
#pragma unroll
        for (int row = 0; row < batch; row++)
            sums[token[row]][lane] += x[row];
    }
    for (int64_t v = 0; v < vocabulary; v++)
        partial[(blockIdx.y * vocabulary + v) * C + c] = sums[v][lane];
}

void embedding_backward(backend *on, void *d_table, const void *d_out, const uint8_t *tokens,
                        int64_t N, int64_t C)
{
    const int64_t n = vocabulary * C, table_bytes = n * (int64_t)sizeof(float);
    constexpr int64_t most_bytes = 32 << 20; /* of partial tables, which are whole ones */
    const int64_t most_chunks = most_bytes < table_bytes ? 1 : most_bytes / table_bytes;
    const int64_t rows = ceil_div(N, most_chunks) < 64 ? 64 : ceil_div(N, most_chunks);
    const int64_t chunks = ceil_div(N, rows);
    float *partial = (float *)device_scratch(on, chunks * table_bytes);
    if (!partial)
        return;
    const dim3 grid((unsigned)ceil_div(C, warp), (unsigned)chunks);
    embedding_backward_kernel<<<grid, warp, 0, stream_of(on)>>>(partial, (const float *)d_out,
                                                                tokens, N, C, rows);
    device_check(on, cudaGetLastError(), "embedding_backward_kernel");
    add_chunks(on, d_table, partial, chunks, n);
}

/* Cross entropy: a warp for each row, which it holds in registers. V is that of bytes, here and in
 * the sampling. */

template <typename T>
__global__ void cross_entropy_kernel(float *losses, T *d_logits, const float *logits,
                                     const uint8_t *targets, float factor, int64_t N)
{
    constexpr int W = 4, packs = vocabulary / (warp * W);
    const int64_t n = blockIdx.x * (int64_t)warps + threadIdx.x / warp;
    const int lane = threadIdx.x % warp;
    if (n >= N)
        return;
    const float *row = logits + n * vocabulary;
    const int target = targets[n];
    float x[packs][W], largest = -INFINITY, sum = 0;
    for (int p = 0; p < packs; p++) {
        load(x[p], row + (p * warp + lane) * W);
        for (int w = 0; w < W; w++)
            largest = fmaxf(largest, x[p][w]);
    }
    largest = warp_largest(largest);
    for (int p = 0; p < packs; p++)
        for (int w = 0; w < W; w++)
            sum += x[p][w] = expf(x[p][w] - largest);
    sum = warp_sum(sum);
    if (lane == 0)
        losses[n] = logf(sum) + largest - row[target];
    if (!d_logits)
        return;
    /* forward: loss = log(sum exp x) - x[target]   =>   dx = probability - [v == target] */
    for (int p = 0; p < packs; p++) {
        const int v = (p * warp + lane) * W;
        for (int w = 0; w < W; w++)
            x[p][w] = (x[p][w] / sum - (v + w == target ? 1 : 0)) * factor;
        store(d_logits + n * vocabulary + v, x[p]);
    }
}

template <typename T>
void cross_entropy(backend *on, void *losses, void *d_logits, void *logits, const uint8_t *targets,
                   double factor, int64_t N, int64_t)
{
    LAUNCH(on, cross_entropy_kernel<T>, ceil_div(N, warps), threads, (float *)losses,
           (T *)d_logits, (const float *)logits, targets, (float)factor, N);
}

/* The optimizer */

/* The step's numbers, and what undoes that the running means start at zero. */
struct adamw_numbers {
    float beta1, beta2, unbias1, unbias2, rate, keep;
    int64_t decayed;
};

template <typename T, int W>
__global__ void adamw_kernel(float *weights, T *rounded, float *first, float *second,
                             const float *gradients, int64_t n, adamw_numbers x)
{
    FOR_EACH(pack, n / W) {
        const int64_t i = pack * W;
        float weight[W], g[W], m[W], v[W];
        load(weight, weights + i);
        load(g, gradients + i);
        load(m, first + i);
        load(v, second + i);
        for (int w = 0; w < W; w++) {
            m[w] = x.beta1 * m[w] + (1 - x.beta1) * g[w];
            v[w] = x.beta2 * v[w] + (1 - x.beta2) * g[w] * g[w];
            weight[w] = (i + w < x.decayed ? x.keep : 1) * weight[w] -
                        x.rate * m[w] * x.unbias1 /
                            (sqrtf(v[w] * x.unbias2) + (float)ADAMW_EPSILON);
        }
        store(weights + i, weight);
        store(first + i, m);
        store(second + i, v);
        if (rounded)
            store(rounded + i, weight);
    }
}

template <typename T>
void adamw(backend *on, void *weights, void *rounded, void *first, void *second,
           const void *gradients, int64_t n, const adamw_step *step)
{
    const adamw_numbers x = {
        .beta1 = (float)step->beta1,
        .beta2 = (float)step->beta2,
        .unbias1 = (float)(1 / (1 - pow(step->beta1, (double)step->number))),
        .unbias2 = (float)(1 / (1 - pow(step->beta2, (double)step->number))),
        .rate = (float)step->learning_rate,
        .keep = (float)(1 - step->learning_rate * step->weight_decay),
        .decayed = step->decayed,
    };
    BY_WIDTH(4, n, LAUNCH(on, (adamw_kernel<T, W>), blocks_for(n / W), threads, (float *)weights,
                          rounded == weights ? nullptr : (T *)rounded, (float *)first,
                          (float *)second, (const float *)gradients, n, x));
}

__global__ void scale_kernel(float *x, float factor, int64_t n)
{
    FOR_EACH(i, n)
        x[i] *= factor;
}

void scale(backend *on, void *x, double factor, int64_t n)
{
    LAUNCH(on, scale_kernel, blocks_for(n), threads, (float *)x, (float)factor, n);
}

/* Sums to one number */

constexpr int sum_blocks = 512;

template <bool squared>
__global__ void sum_kernel(double *partial, const float *x, int64_t n)
{
    __shared__ double sums[threads];
    double sum = 0;
    FOR_EACH(i, n)
        sum += (double)x[i] * (squared ? (double)x[i] : 1);
    sums[threadIdx.x] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sums[0];
}

template <bool squared>
bool sum(backend *on, const void *x, int64_t n, double *sum, failure *why)
{
    double host[sum_blocks] = {};
    double *partial = (double *)device_scratch(on, (int64_t)sizeof host);
    if (partial)
        LAUNCH(on, sum_kernel<squared>, sum_blocks, threads, partial, (const float *)x, n);
    if (!device_read(on, host, partial, (int64_t)sizeof host, why))
        return false;
    *sum = 0;
    for (int n_block = 0; n_block < sum_blocks; n_block++)
        *sum += host[n_block];
    return true;
}

/* Sampling: one block, a thread for each byte */

/* The draw falls on the first byte whose running sum of probabilities exceeds a random share of the
 * whole. */
__global__ void draw_kernel(uint8_t *drawn, const float *logits, double temperature, uint64_t seed)
{
    __shared__ float x[vocabulary];
    __shared__ double weights[vocabulary];
    const int v = threadIdx.x;
    x[v] = logits[v];
    __syncthreads();
    int best = 0;
    for (int other = 1; other < vocabulary; other++)
        best = x[other] > x[best] ? other : best;
    weights[v] = temperature > 0 ? exp((double)(x[v] - x[best]) / temperature) : v == best;
    __syncthreads();
    if (v > 0)
        return;
    curandStatePhilox4_32_10_t state;
    curand_init(seed, 0, 0, &state);
    double sum = 0;
    for (int other = 0; other < vocabulary; other++)
        sum += weights[other];
    double point = (1 - curand_uniform_double(&state)) * sum; /* [0, sum) */
    int chosen = best;
    for (int other = vocabulary - 1; other >= 0; other--) {
        sum -= weights[other];
        if (weights[other] > 0 && sum <= point) {
            chosen = other;
            break;
        }
    }
    *drawn = (uint8_t)chosen;
}

bool draw(backend *on, const void *logits, int64_t, double temperature, random_source *source,
          uint8_t *drawn, failure *why)
{
    uint8_t *device_drawn = (uint8_t *)device_scratch(on, 1);
    if (device_drawn)
        LAUNCH(on, draw_kernel, 1, vocabulary, device_drawn, (const float *)logits, temperature,
               random_bits(source));
    return device_read(on, drawn, device_drawn, 1, why);
}

template <typename T> constexpr operations table()
{
    return {.close = device_close,
            .allocate = device_allocate,
            .release = device_release,
            .available = device_available,
            .clear = device_clear,
            .copy = device_copy,
            .write = device_write,
            .read = device_read,
            .enter = device_enter,
            .read_clock = device_read_clock,
            .linear_forward = linear_forward<T>,
            .linear_backward = linear_backward<T>,
            .round = round_numbers<T>,
            .rmsnorm_forward = rmsnorm_forward<T>,
            .rmsnorm_backward = rmsnorm_backward<T>,
            .rope = rope<T>,
            .swiglu_forward = swiglu_forward<T>,
            .swiglu_backward = swiglu_backward<T>,
            .embedding_forward = embedding_forward,
            .embedding_backward = embedding_backward,
            .cross_entropy = cross_entropy<T>,
            .adamw = adamw<T>,
            .scale = scale,
            .sum = sum<false>,
            .sum_of_squares = sum<true>,
            .draw = draw};
}

} // namespace

const operations cuda_operations_f32 = table<float>();
const operations cuda_operations_bf16 = table<__nv_bfloat16>();
