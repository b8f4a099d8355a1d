// The forward kernel of a tree convolution with pooling: activations, or bits.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "vec.h"

namespace convlogic::cuda {

// Depth 4 has twice the values in flight, so half the images.
template <int depth>
constexpr int tree_images_a_lane = depth < 4 ? 4 : 2;

// One leaf of the windows of a pool block, whose four positions are rows 0, 1 and columns 0, 1 of the convolution.
struct Leaf {
    int pixel;  // of the first position, in [channel][row][column]; outside the image it is not read
    bool in_row[2], in_column[2];

    __device__ __forceinline__ Leaf(uint32_t code, const TreeShape& s, int out_row, int out_column) {
        const int row = out_row * s.pool * s.stride_y + int(code >> 8 & 255) - s.padding_y;
        const int column = out_column * s.pool * s.stride_x + int(code & 255) - s.padding_x;
        pixel = (int(code >> 16) * s.height + row) * s.width + column;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            in_row[i] = unsigned(row + i * s.stride_y) < unsigned(s.height);
            in_column[i] = unsigned(column + i * s.stride_x) < unsigned(s.width);
        }
    }
};

// The maximum, NaN above all, and where it was: the first of equals.
__device__ __forceinline__ void join(float value, int position, float& best, int& winner) {
    if (position == 0 || value > best || value != value) {
        best = value;
        winner = position;
    }
}
__device__ __forceinline__ void join(Bits value, int, Bits& best, int&) {
    best.word |= value.word;
}

// Node L + g is gate g and reads nodes 2g and 2g + 1; nodes 0 .. L - 1 are the leaves. One flat loop: nvcc puts the
// nodes of nested level loops on the stack.
template <int depth, int size, class Scalar, class Coefficients>
__device__ __forceinline__ void evaluate_tree(Vec<Scalar, size> (&node)[(2 << depth) - 1], const Coefficients& c) {
#pragma unroll
    for (int g = 0; g < (1 << depth) - 1; ++g)
#pragma unroll
        for (int i = 0; i < size; ++i)
            node[(1 << depth) + g].v[i] = gate(c[g].v, node[2 * g].v[i], node[2 * g + 1].v[i]);
}

// A row of lanes computes one pooled output, cells of a kernel one after the other.
template <class T, int depth, bool whole>
__global__ void __launch_bounds__(block_threads)
    tree_forward(const T* __restrict__ x, const int32_t* __restrict__ selection, Gates<T> gates, T* __restrict__ y,
                 uint8_t* __restrict__ winner, TreeShape s, int64_t pitch, int images) {
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1, size = tree_images_a_lane<depth>;
    const auto [item, n] = place<size>();
    const int cells = s.out_height * s.out_width;
    if (item >= s.kernels * cells || n >= images) return;
    const int left = images - n;
    const int kernel = item / cells, cell = item - kernel * cells;
    const int out_row = cell / s.out_width, out_column = cell - out_row * s.out_width;

    Vec<Value<T>, 4> c[num_gates];
#pragma unroll
    for (int g = 0; g < num_gates; ++g) c[g] = gates[kernel * num_gates + g];
    int pixel[num_leaves];
    uint32_t in_rows[2] = {}, in_columns[2] = {};  // bit l: leaf l lies inside at positions of that row, column
#pragma unroll
    for (int l = 0; l < num_leaves; ++l) {
        const Leaf leaf(uint32_t(selection[kernel * num_leaves + l]), s, out_row, out_column);
        pixel[l] = leaf.pixel;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            in_rows[i] |= uint32_t(leaf.in_row[i]) << l;
            in_columns[i] |= uint32_t(leaf.in_column[i]) << l;
        }
    }

    Vec<Value<T>, size> best{};
    Vec<int, size> won{};
#pragma unroll 1
    for (int position = 0; position < s.pool * s.pool; ++position) {
        const int down = position >> 1, across = position & 1;
        const uint32_t inside = (down ? in_rows[1] : in_rows[0]) & (across ? in_columns[1] : in_columns[0]);
        const int step = down * s.stride_y * s.width + across * s.stride_x;
        Vec<Value<T>, size> node[2 * num_leaves - 1];
#pragma unroll
        for (int l = 0; l < num_leaves; ++l) {
            node[l] = {};
            if (inside >> l & 1) node[l] = load<size, whole>(at(x, pixel[l] + step, pitch, n), left);
        }
        evaluate_tree<depth>(node, c);
#pragma unroll
        for (int i = 0; i < size; ++i) join(node[2 * num_leaves - 2].v[i], position, best.v[i], won.v[i]);
    }
    store<whole>(at(y, item, pitch, n), best, left);
    if (winner) store<whole>(at(winner, item, pitch, n), won, left);
}

// Calls f with the depth as a constant.
template <class Function>
void with_depth(int depth, Function f) {
    switch (depth) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        default: return f(std::integral_constant<int, 4>());
    }
}

template <class T>
void launch_tree_forward(const char* name, const T* x, const int32_t* selection, Gates<T> gates, T* y, uint8_t* winner,
                         const TreeShape& shape, int64_t batch, cudaStream_t stream) {
    const int64_t outputs = int64_t(shape.kernels) * shape.out_height * shape.out_width;
    with_depth(shape.depth, [&](auto constant) {
        constexpr int depth = decltype(constant)::value;
        constexpr int size = tree_images_a_lane<depth>;
        const bool whole = batch % size == 0 && is_aligned(x, size) && is_aligned(y, size) && is_aligned(winner, size);
        for_each_grid(batch, lanes_a_row * size, [&](int64_t first, int images) {
            launch(name, whole ? tree_forward<T, depth, true> : tree_forward<T, depth, false>,
                   grid_of(outputs, images, size), block_threads, stream, x + first, selection, gates, y + first,
                   winner ? winner + first : nullptr, shape, batch, images);
        });
    });
}

}  // namespace convlogic::cuda
