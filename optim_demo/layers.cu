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

template <typename T> __device__ float value(T x)
{
    return (float)x;
}

template <typename T> __device__ T rounded(float x)
{
    return (T)x;
}

template <> __device__ __nv_bfloat16 rounded(float x)
{
    return __float2bfloat16_rn(x);
}

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
    const phase before = device_enter(on, PHASE_PRODUCTS);
    const float one = 1;
    cublasHandle_t blas = static_cast<cuda_backend *>(static_cast<void *>(on))->blas;
    device_check_blas(on,
                      cublasGemmEx(blas, op_b, op_a, (int)n, (int)m, (int)k, &one, b, type_of<T>,
                                   (int)ldb, a, type_of<T>, (int)lda, &beta, c, c_type, (int)n,
                                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                      "cublasGemmEx");
    device_enter(on, before);
}

template <typename T>
void linear_forward(backend *on, into where, void *out, const void *in, const void *weight,
                    int64_t N, int64_t K, int64_t O)
{
    product<T>(on, CUBLAS_OP_N, CUBLAS_OP_T, N, O, K, in, K, weight, K,
               where == ONTO_NUMBERS ? 1 : 0, out,
               where == INTO_OPERANDS ? type_of<T> : CUDA_R_32F);
}

template <typename T>
void linear_backward(backend *on, void *d_in, void *d_weight, const void *d_out, const void *in,
                     const void *weight, int64_t N, int64_t K, int64_t O)
{
    /* forward: out = in weight^T   =>   d_in = d_out weight,   d_weight += d_out^T in */
    product<T>(on, CUBLAS_OP_N, CUBLAS_OP_N, N, K, O, d_out, O, weight, K, 0, d_in, type_of<T>);
    product<T>(on, CUBLAS_OP_T, CUBLAS_OP_N, O, K, N, d_out, O, in, K, 1, d_weight, CUDA_R_32F);
}

template <typename T> __global__ void round_kernel(T *to, const float *from, int64_t n)
{
    FOR_EACH(i, n)
        to[i] = rounded<T>(from[i]);
}

template <typename T> void round_numbers(backend *on, void *to, const void *from, int64_t n)
{
    LAUNCH(on, round_kernel<T>, blocks_for(n), threads, (T *)to, (const float *)from, n);
}

/* Sums over the rows of a batch */

constexpr int64_t most_chunks = 128;

/* sums[i] += partial[0][i] + partial[1][i] + ..., partial (chunks, n) */
__global__ void add_chunks_kernel(float *sums, const float *partial, int64_t chunks, int64_t n)
{
    FOR_EACH(i, n) {
        float sum = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            sum += partial[chunk * n + i];
        sums[i] += sum;
    }
}

/* RMSNorm: a warp for each row */

template <typename T>
__global__ void rmsnorm_forward_kernel(T *out, float *scale, const float *in, const float *weight,
                                       int64_t N, int64_t C)
{
    const int64_t n = blockIdx.x * (int64_t)warps + threadIdx.x / warp;
    const int lane = threadIdx.x % warp;
    if (n >= N)
        return;
    const float *x = in + n * C;
    float squares = 0;
    for (int64_t c = lane; c < C; c += warp)
        squares += x[c] * x[c];
    const float s = 1 / sqrtf(warp_sum(squares) / (float)C + (float)NORM_EPSILON);
    for (int64_t c = lane; c < C; c += warp)
        out[n * C + c] = rounded<T>(weight[c] * x[c] * s);
    if (lane == 0)
        scale[n] = s;
}

template <typename T>
void rmsnorm_forward(backend *on, void *out, void *scale, const void *in, const void *weight,
                     int64_t N, int64_t C)
{
    LAUNCH(on, rmsnorm_forward_kernel<T>, ceil_div(N, warps), threads, (T *)out, (float *)scale,
           (const float *)in, (const float *)weight, N, C);
}

template <typename T>
__global__ void rmsnorm_backward_kernel(float *d_in, const T *d_out, const float *in,
                                        const float *scale, const float *weight, int64_t N,
                                        int64_t C)
{
    const int64_t n = blockIdx.x * (int64_t)warps + threadIdx.x / warp;
    const int lane = threadIdx.x % warp;
    if (n >= N)
        return;
    const float *x = in + n * C;
    const T *dy = d_out + n * C;
    const float s = scale[n];
    float dot = 0;
    for (int64_t c = lane; c < C; c += warp)
        dot += value(dy[c]) * weight[c] * x[c];
    /* forward: y = w x s,   s = (mean x^2 + epsilon)^-1/2   =>   ds/dx = -s^3 x / C */
    const float pull = s * s * s * warp_sum(dot) / (float)C;
    for (int64_t c = lane; c < C; c += warp)
        d_in[n * C + c] += value(dy[c]) * weight[c] * s - pull * x[c];
}

/* A block of 32 columns by `warps` rows goes down the rows of chunk blockIdx.y. */
template <typename T>
__global__ void norm_weight_kernel(float *partial, const T *d_out, const float *in,
                                   const float *scale, int64_t N, int64_t C, int64_t rows)
{
    __shared__ float sums[warps][warp];
    const int64_t c = blockIdx.x * (int64_t)warp + threadIdx.x;
    const int64_t first = blockIdx.y * rows, end = first + rows < N ? first + rows : N;
    float sum = 0;
    /* forward: y = w x s   =>   dw += sum over rows of dy x s */
    for (int64_t n = first + threadIdx.y; c < C && n < end; n += warps)
        sum += value(d_out[n * C + c]) * in[n * C + c] * scale[n];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || c >= C)
        return;
    for (int row = 1; row < warps; row++)
        sum += sums[row][threadIdx.x];
    partial[blockIdx.y * C + c] = sum;
}

template <typename T>
void rmsnorm_backward(backend *on, void *d_in, void *d_weight, const void *d_out, const void *in,
                      const void *scale, const void *weight, int64_t N, int64_t C)
{
    LAUNCH(on, rmsnorm_backward_kernel<T>, ceil_div(N, warps), threads, (float *)d_in,
           (const T *)d_out, (const float *)in, (const float *)scale, (const float *)weight, N, C);
    const int64_t rows = ceil_div(N, most_chunks) < 64 ? 64 : ceil_div(N, most_chunks);
    const int64_t chunks = ceil_div(N, rows);
    float *partial = (float *)device_scratch(on, chunks * C * (int64_t)sizeof(float));
    if (!partial)
        return;
    const dim3 grid((unsigned)ceil_div(C, warp), (unsigned)chunks);
    norm_weight_kernel<<<grid, dim3(warp, warps), 0, stream_of(on)>>>(
        partial, (const T *)d_out, (const float *)in, (const float *)scale, N, C, rows);
    device_check(on, cudaGetLastError(), "norm_weight_kernel");
    LAUNCH(on, add_chunks_kernel, blocks_for(C), threads, (float *)d_weight, partial, chunks, C);
}

/* Rotary positions and SwiGLU: a block for each row */

template <typename T>
__global__ void rope_kernel(T *x, const float2 *table, int64_t context, int64_t first,
                            int64_t stride, int heads, int half, float direction)
{
    const int64_t n = blockIdx.x;
    const float2 *turn = table + (first + n % context) * half;
    for (int at = threadIdx.x; at < heads * half; at += blockDim.x) {
        const int i = at % half;
        T *a = x + n * stride + at / half * (2 * half) + i, *b = a + half;
        const float c = turn[i].x, s = direction * turn[i].y;
        const float a_i = value(*a), b_i = value(*b);
        *a = rounded<T>(a_i * c - b_i * s);
        *b = rounded<T>(b_i * c + a_i * s);
    }
}

template <typename T>
void rope(backend *on, void *x, const void *table, int64_t N, int64_t context, int64_t first,
          int64_t stride, int64_t heads, int64_t D, int direction)
{
    LAUNCH(on, rope_kernel<T>, N, threads, (T *)x, (const float2 *)table, context, first, stride,
           (int)heads, (int)(D / 2), (float)direction);
}

template <typename T> __global__ void swiglu_forward_kernel(T *out, const T *gate_up, int64_t F)
{
    const T *gate = gate_up + blockIdx.x * 2 * F, *up = gate + F;
    for (int64_t f = threadIdx.x; f < F; f += blockDim.x) {
        const float g = value(gate[f]);
        out[blockIdx.x * F + f] = rounded<T>(g / (1 + expf(-g)) * value(up[f]));
    }
}

template <typename T>
void swiglu_forward(backend *on, void *out, const void *gate_up, int64_t N, int64_t F)
{
    LAUNCH(on, swiglu_forward_kernel<T>, N, threads, (T *)out, (const T *)gate_up, F);
}

template <typename T>
__global__ void swiglu_backward_kernel(T *d_gate_up, const T *d_out, const T *gate_up, int64_t F)
{
    const T *gate = gate_up + blockIdx.x * 2 * F, *up = gate + F, *dy = d_out + blockIdx.x * F;
    T *d_gate = d_gate_up + blockIdx.x * 2 * F, *d_up = d_gate + F;
    for (int64_t f = threadIdx.x; f < F; f += blockDim.x) {
        /* forward: y = g sigmoid(g) u   =>   du = dy g sigmoid(g),
         *                                    dg = dy u sigmoid(g) (1 + g (1 - sigmoid(g))) */
        const float g = value(gate[f]), u = value(up[f]), d = value(dy[f]);
        const float sigmoid = 1 / (1 + expf(-g));
        d_up[f] = rounded<T>(d * g * sigmoid);
        d_gate[f] = rounded<T>(d * u * sigmoid * (1 + g * (1 - sigmoid)));
    }
}

template <typename T>
void swiglu_backward(backend *on, void *d_gate_up, const void *d_out, const void *gate_up,
                     int64_t N, int64_t F)
{
    LAUNCH(on, swiglu_backward_kernel<T>, N, threads, (T *)d_gate_up, (const T *)d_out,
           (const T *)gate_up, F);
}

/* Embedding */

constexpr int vocabulary = 256;

__global__ void embedding_forward_kernel(float *out, const uint8_t *tokens, const float *table,
                                         int64_t C)
{
    const int64_t n = blockIdx.x;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
        out[n * C + c] = table[tokens[n] * C + c];
}

void embedding_forward(backend *on, void *out, const uint8_t *tokens, const void *table, int64_t N,
                       int64_t C)
{
    LAUNCH(on, embedding_forward_kernel, N, threads, (float *)out, tokens, (const float *)table, C);
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
    /* forward: out[n] = table[token[n]]   =>   d_table[token[n]] += d_out[n] */
#pragma unroll 4
    for (int64_t n = first; n < end; n++)
        sums[tokens[n]][lane] += d_out[n * C + c];
    for (int64_t v = 0; v < vocabulary; v++)
        partial[(blockIdx.y * vocabulary + v) * C + c] = sums[v][lane];
}

void embedding_backward(backend *on, void *d_table, const void *d_out, const uint8_t *tokens,
                        int64_t N, int64_t C)
{
    const int64_t most = most_chunks / 4; /* each has a whole table */
    const int64_t rows = ceil_div(N, most) < 64 ? 64 : ceil_div(N, most);
    const int64_t chunks = ceil_div(N, rows), n = vocabulary * C;
    float *partial = (float *)device_scratch(on, chunks * n * (int64_t)sizeof(float));
    if (!partial)
        return;
    const dim3 grid((unsigned)ceil_div(C, warp), (unsigned)chunks);
    embedding_backward_kernel<<<grid, warp, 0, stream_of(on)>>>(partial, (const float *)d_out,
                                                                tokens, N, C, rows);
    device_check(on, cudaGetLastError(), "embedding_backward_kernel");
    LAUNCH(on, add_chunks_kernel, blocks_for(n), threads, (float *)d_table, partial, chunks, n);
}

/* Cross entropy: a warp for each row */

template <typename T>
__global__ void cross_entropy_kernel(float *losses, T *d_logits, const float *logits,
                                     const uint8_t *targets, float factor, int64_t N, int64_t V)
{
    const int64_t n = blockIdx.x * (int64_t)warps + threadIdx.x / warp;
    const int lane = threadIdx.x % warp;
    if (n >= N)
        return;
    const float *x = logits + n * V;
    const int target = targets[n];
    float largest = -INFINITY, sum = 0;
    for (int64_t v = lane; v < V; v += warp)
        largest = fmaxf(largest, x[v]);
    largest = warp_largest(largest);
    for (int64_t v = lane; v < V; v += warp)
        sum += expf(x[v] - largest);
    sum = warp_sum(sum);
    if (lane == 0)
        losses[n] = logf(sum) + largest - x[target];
    if (!d_logits)
        return;
    /* forward: loss = log(sum exp x) - x[target]   =>   dx = probability - [v == target] */
    for (int64_t v = lane; v < V; v += warp)
        d_logits[n * V + v] =
            rounded<T>((expf(x[v] - largest) / sum - (v == target ? 1 : 0)) * factor);
}

template <typename T>
void cross_entropy(backend *on, void *losses, void *d_logits, void *logits, const uint8_t *targets,
                   double factor, int64_t N, int64_t V)
{
    LAUNCH(on, cross_entropy_kernel<T>, ceil_div(N, warps), threads, (float *)losses,
           (T *)d_logits, (const float *)logits, targets, (float)factor, N, V);
}

/* The optimizer */

/* The step's numbers, and what undoes that the running means start at zero. */
struct adamw_numbers {
    float beta1, beta2, unbias1, unbias2, rate, keep;
};

__global__ void adamw_kernel(float *weights, float *first, float *second, const float *gradients,
                             int64_t n, adamw_numbers x)
{
    FOR_EACH(i, n) {
        const float g = gradients[i];
        const float m = x.beta1 * first[i] + (1 - x.beta1) * g;
        const float v = x.beta2 * second[i] + (1 - x.beta2) * g * g;
        first[i] = m;
        second[i] = v;
        weights[i] = x.keep * weights[i] -
                     x.rate * m * x.unbias1 / (sqrtf(v * x.unbias2) + (float)ADAMW_EPSILON);
    }
}

void adamw(backend *on, void *weights, void *first, void *second, const void *gradients, int64_t n,
           const adamw_step *step)
{
    const adamw_numbers x = {
        .beta1 = (float)step->beta1,
        .beta2 = (float)step->beta2,
        .unbias1 = (float)(1 / (1 - pow(step->beta1, (double)step->number))),
        .unbias2 = (float)(1 / (1 - pow(step->beta2, (double)step->number))),
        .rate = (float)step->learning_rate,
        .keep = (float)(1 - step->learning_rate * step->weight_decay),
    };
    LAUNCH(on, adamw_kernel, blocks_for(n), threads, (float *)weights, (float *)first,
           (float *)second, (const float *)gradients, n, x);
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

constexpr int square_blocks = 512;

__global__ void sum_of_squares_kernel(double *partial, const float *x, int64_t n)
{
    __shared__ double sums[threads];
    double sum = 0;
    FOR_EACH(i, n)
        sum += (double)x[i] * (double)x[i];
    sums[threadIdx.x] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sums[0];
}

bool sum_of_squares(backend *on, const void *x, int64_t n, double *sum, failure *why)
{
    double host[square_blocks] = {};
    double *partial = (double *)device_scratch(on, (int64_t)sizeof host);
    if (partial)
        LAUNCH(on, sum_of_squares_kernel, square_blocks, threads, partial, (const float *)x, n);
    if (!device_read(on, host, partial, (int64_t)sizeof host, why))
        return false;
    *sum = 0;
    for (int n_block = 0; n_block < square_blocks; n_block++)
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

/* V is that of bytes, as in the embedding. */
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
            .adamw = adamw,
            .scale = scale,
            .sum_of_squares = sum_of_squares,
            .draw = draw};
}

} // namespace

const operations cuda_operations_f32 = table<float>();
const operations cuda_operations_bf16 = table<__nv_bfloat16>();
