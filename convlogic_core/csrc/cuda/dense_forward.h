// The forward kernel of a dense layer: activations, or bits.
#pragma once

#include "vec.h"

namespace convlogic::cuda {

template <class T>
constexpr int dense_images_a_lane = 16 / sizeof(T);

// A row of lanes computes one gate.
template <class T, bool whole>
__global__ void __launch_bounds__(block_threads)
    dense_forward(const T* __restrict__ x, const int32_t* __restrict__ wiring, Gates<T> gates, T* __restrict__ y,
                  int num_gates, int64_t pitch, int images) {
    constexpr int size = dense_images_a_lane<T>;
    const auto [row, n] = place<size>();
    if (row >= num_gates || n >= images) return;
    const int left = images - n;
    const auto inputs = reinterpret_cast<const Vec<int32_t, 2>*>(wiring)[row];
    const auto c = gates[row];
    const auto a = load<size, whole>(at(x, inputs.v[0], pitch, n), left);
    const auto b = load<size, whole>(at(x, inputs.v[1], pitch, n), left);
    Vec<Value<T>, size> out;
#pragma unroll
    for (int i = 0; i < size; ++i) out.v[i] = gate(c.v, a.v[i], b.v[i]);
    store<whole>(at(y, row, pitch, n), out, left);
}

template <class T>
void launch_dense_forward(const char* name, const T* x, const int32_t* wiring, Gates<T> gates, T* y, int64_t num_gates,
                          int64_t batch, cudaStream_t stream) {
    constexpr int size = dense_images_a_lane<T>;
    const bool whole = batch % size == 0 && is_aligned(x, size) && is_aligned(y, size);
    for_each_grid(batch, lanes_a_row * size, [&](int64_t first, int images) {
        launch(name, whole ? dense_forward<T, true> : dense_forward<T, false>, grid_of(num_gates, images, size),
               block_threads, stream, x + first, wiring, gates, y + first, int(num_gates), batch, images);
    });
}

}  // namespace convlogic::cuda
