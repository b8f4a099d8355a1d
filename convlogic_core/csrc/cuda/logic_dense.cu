// A dense layer: forward, and a backward that gathers over the fan-out of every input.
#include "dense_forward.h"
#include "kernels.h"

namespace convlogic::cuda {
namespace {

// A row of lanes takes one input and walks the gates that read it. Every gate is met once by its first input, where its
// coefficient gradients are summed over the row's images; the order of all sums is that of the edges.
template <class T, bool whole>
__global__ void __launch_bounds__(block_threads)
    dense_backward(const T* __restrict__ x, const T* __restrict__ grad_y, const float* __restrict__ coefficients,
                   const int32_t* __restrict__ start, const int32_t* __restrict__ edges, T* __restrict__ grad_x,
                   float* __restrict__ partials, int num_features, int num_gates, int64_t pitch, int images) {
    constexpr int size = dense_images_a_lane<T>;
    const auto [row, n] = place<size>();
    const int left = images - n;
    const bool has_images = row < num_features && left > 0;
    int edge = 0, count = 0;
    if (row < num_features) {
        edge = start[row];
        count = start[row + 1] - edge;
    }
    Vec<float, size> own{}, sum{};
    if (has_images) own = load<size, whole>(at(x, row, pitch, n), left);
    // Shuffles need the whole warp: all its rows take as many steps as the longest.
    for (int step = __reduce_max_sync(full_warp, count); step > 0; --step, --count, ++edge) {
        Vec<float, size> upstream{}, other{};
        int gate_index = 0;
        bool is_first = false;
        if (count > 0) {
            const auto [gate_side, other_feature] = reinterpret_cast<const Vec<int32_t, 2>*>(edges)[edge].v;
            gate_index = gate_side >> 1;
            is_first = !(gate_side & 1);
            if (has_images && (is_first || grad_x)) {
                upstream = load<size, whole>(at(grad_y, gate_index, pitch, n), left);
                other = load<size, whole>(at(x, other_feature, pitch, n), left);
                const auto c = Gates<T>{coefficients}[gate_index];
#pragma unroll
                for (int i = 0; i < size; ++i) {
                    const float slope = is_first ? gate_slope_a(c.v, other.v[i]) : gate_slope_b(c.v, other.v[i]);
                    sum.v[i] += upstream.v[i] * slope;
                }
            }
        }
        float gradients[4] = {};
#pragma unroll
        for (int i = 0; i < size; ++i) add_coefficient_gradients(gradients, upstream.v[i], own.v[i], other.v[i]);
        float total = sum_over_lanes<2>(gradients);
        total += __shfl_xor_sync(full_warp, total, 4);
        const int lane = threadIdx.x % lanes_a_row;
        if (is_first && lane < 4) partials[(int64_t(blockIdx.y) * num_gates + gate_index) * 4 + lane] = total;
    }
    if (has_images && grad_x) store<whole>(at(grad_x, row, pitch, n), sum, left);
}

}  // namespace

int64_t num_dense_chunks(int64_t batch, bool bfloat16) {
    return ceil_div(batch, lanes_a_row * (bfloat16 ? dense_images_a_lane<BFloat16> : dense_images_a_lane<float>));
}

template <class T>
void logic_dense_forward(const Dense<T>& dense, const int32_t* wiring, T* y, Stream stream) {
    launch_dense_forward("logic_dense_forward", dense.x, wiring, Gates<T>{dense.coefficients}, y, dense.gates,
                         dense.batch, stream);
}

template <class T>
void logic_dense_backward(const Dense<T>& dense, FanOut fan_out, const DenseGradients<T>& gradients, Stream stream) {
    constexpr int size = dense_images_a_lane<T>, images_a_block = lanes_a_row * size;
    const bool whole = dense.batch % size == 0 && is_aligned(dense.x, size) && is_aligned(gradients.y, size) &&
                       is_aligned(gradients.x, size);
    for_each_grid(dense.batch, images_a_block, [&](int64_t first, int images) {
        launch("logic_dense_backward", whole ? dense_backward<T, true> : dense_backward<T, false>,
               grid_of(dense.features, images, size), block_threads, stream, dense.x + first, gradients.y + first,
               dense.coefficients, fan_out.start, fan_out.edges, gradients.x ? gradients.x + first : nullptr,
               gradients.partials + first / images_a_block * dense.gates * 4, int(dense.features), int(dense.gates),
               dense.batch, images);
    });
    sum_partials(gradients.partials, ceil_div(dense.batch, images_a_block), dense.gates * 4, gradients.coefficients,
                 stream);
}

template void logic_dense_forward(const Dense<float>&, const int32_t*, float*, Stream);
template void logic_dense_forward(const Dense<BFloat16>&, const int32_t*, BFloat16*, Stream);
template void logic_dense_backward(const Dense<float>&, FanOut, const DenseGradients<float>&, Stream);
template void logic_dense_backward(const Dense<BFloat16>&, FanOut, const DenseGradients<BFloat16>&, Stream);

}  // namespace convlogic::cuda
