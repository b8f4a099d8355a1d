// From logits to the four coefficients of a gate, and back.
//
// Both parametrizations give the probability of a one in each row of the truth table: of the 16 gates, summed over
// those with a one there, or directly a sigmoid each. The coefficients are differences of these.
#include "kernels.h"
#include "vec.h"

namespace convlogic::cuda {
namespace {

using Four = Vec<float, 4>;

// Truth-table rows (f00, f01, f10, f11) -> (c0, c1, c2, c3).
__device__ __forceinline__ Four coefficients_of(const Four& f) {
    return {{f.v[0], f.v[2] - f.v[0], f.v[1] - f.v[0], f.v[3] - f.v[2] - f.v[1] + f.v[0]}};
}

// The transpose: gradients of coefficients -> of rows.
__device__ __forceinline__ Four row_gradients(const Four& grad) {
    const float* g = grad.v;
    return {{g[0] - g[1] - g[2] + g[3], g[2] - g[3], g[1] - g[3], g[3]}};
}

__device__ __forceinline__ float sum_of_four_lanes(float x) {
    x += __shfl_xor_sync(full_warp, x, 1);
    return x + __shfl_xor_sync(full_warp, x, 2);
}

// Four lanes share a gate; lane q holds the probabilities of gates 4q .. 4q + 3.
__device__ __forceinline__ Four softmax(const Four& logits) {
    float largest = fmaxf(fmaxf(logits.v[0], logits.v[1]), fmaxf(logits.v[2], logits.v[3]));
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 2));
    Four p;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        p.v[i] = expf(logits.v[i] - largest);
        sum += p.v[i];
    }
    const float scale = 1 / sum_of_four_lanes(sum);
#pragma unroll
    for (int i = 0; i < 4; ++i) p.v[i] *= scale;
    return p;
}

// A gate's number is its truth table, f00 the highest bit: the lane is f00 f01, the place within it f10 f11.
__device__ __forceinline__ Four rows_of(const Four& p, int lane) {
    const float all = (p.v[0] + p.v[1]) + (p.v[2] + p.v[3]);
    return {{sum_of_four_lanes(lane & 2 ? all : 0), sum_of_four_lanes(lane & 1 ? all : 0),
             sum_of_four_lanes(p.v[2] + p.v[3]), sum_of_four_lanes(p.v[1] + p.v[3])}};
}

__device__ __forceinline__ float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

__device__ __forceinline__ int64_t thread_index() {
    return int64_t(blockIdx.x) * block_threads + threadIdx.x;
}

__global__ void __launch_bounds__(block_threads)
    softmax_forward(const float* __restrict__ logits, float* __restrict__ coefficients, int64_t gates) {
    const int64_t i = thread_index();
    const int lane = threadIdx.x % 4;
    const bool exists = i < 4 * gates;
    const Four c = coefficients_of(rows_of(softmax(exists ? load<4, true>(logits + 4 * i, 4) : Four{}), lane));
    if (exists) coefficients[i] = lane < 2 ? (lane ? c.v[1] : c.v[0]) : (lane == 2 ? c.v[2] : c.v[3]);
}

__global__ void __launch_bounds__(block_threads)
    softmax_backward(const float* __restrict__ grad_coefficients, const float* __restrict__ logits,
                     float* __restrict__ grad_logits, int64_t gates) {
    const int64_t i = thread_index();
    const int lane = threadIdx.x % 4;
    const bool exists = i < 4 * gates;
    const Four p = softmax(exists ? load<4, true>(logits + 4 * i, 4) : Four{});
    const Four rows = rows_of(p, lane);
    const Four grad = row_gradients(exists ? load<4, true>(grad_coefficients + i / 4 * 4, 4) : Four{});
    float mean = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) mean += grad.v[j] * rows.v[j];
    const float of_lane = (lane & 2 ? grad.v[0] : 0) + (lane & 1 ? grad.v[1] : 0) - mean;
    Four out;
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] = p.v[j] * (of_lane + (j & 2 ? grad.v[2] : 0) + (j & 1 ? grad.v[3] : 0));
    if (exists) store<true>(grad_logits + 4 * i, out, 4);
}

__global__ void __launch_bounds__(block_threads)
    sigmoid_forward(const float* __restrict__ logits, float* __restrict__ coefficients, int64_t gates) {
    const int64_t i = thread_index();
    if (i >= gates) return;
    Four rows = load<4, true>(logits + 4 * i, 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) rows.v[j] = sigmoid(rows.v[j]);
    store<true>(coefficients + 4 * i, coefficients_of(rows), 4);
}

__global__ void __launch_bounds__(block_threads)
    sigmoid_backward(const float* __restrict__ grad_coefficients, const float* __restrict__ logits,
                     float* __restrict__ grad_logits, int64_t gates) {
    const int64_t i = thread_index();
    if (i >= gates) return;
    Four out = row_gradients(load<4, true>(grad_coefficients + 4 * i, 4));
    const Four x = load<4, true>(logits + 4 * i, 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] *= sigmoid(x.v[j]) * sigmoid(-x.v[j]);
    store<true>(grad_logits + 4 * i, out, 4);
}

dim3 grid_for(int64_t gates, int num_logits) {
    return dim3(unsigned(ceil_div(gates * (num_logits / 4), block_threads)));
}

}  // namespace

void coefficients_forward(const float* logits, int64_t gates, int num_logits, float* coefficients, Stream stream) {
    launch("coefficients_forward", num_logits == 16 ? softmax_forward : sigmoid_forward, grid_for(gates, num_logits),
           block_threads, stream, logits, coefficients, gates);
}

void coefficients_backward(const float* grad_coefficients, const float* logits, int64_t gates, int num_logits,
                           float* grad_logits, Stream stream) {
    launch("coefficients_backward", num_logits == 16 ? softmax_backward : sigmoid_backward, grid_for(gates, num_logits),
           block_threads, stream, grad_coefficients, logits, grad_logits, gates);
}

}  // namespace convlogic::cuda
