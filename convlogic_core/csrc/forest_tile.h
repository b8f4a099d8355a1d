// Trees over the rows of one tile of samples: [row][tile], two cache lines a row.
#pragma once

#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {

constexpr int64_t forest_tile_bytes = 128;
constexpr int forest_tile_vectors = forest_tile_bytes / CONVLOGIC_VECTOR_BYTES;

// Calls output(tree, vector, value) for all trees in order.
template <class Scalar, int depth, class Output>
CONVLOGIC_INLINE void forest_tile_forward(const Scalar* c, const int32_t* leaves, int64_t trees, const Scalar* x,
                                          const Output& output) {
    constexpr int num_leaves = 1 << depth, width = vector_width<Scalar>, vectors = forest_tile_vectors;
    constexpr int in_flight = vectors < 4 ? vectors : 4;
    for (int64_t k = 0; k < trees; ++k, c += 4 * (num_leaves - 1), leaves += num_leaves) {
        const Scalar* row[num_leaves];
        for (int l = 0; l < num_leaves; ++l) row[l] = x + leaves[l] * int64_t(vectors * width);
#pragma GCC unroll 1
        for (int first = 0; first < vectors; first += in_flight) {
            Vector<Scalar> value[in_flight];
            tree<Scalar, depth, in_flight>(c, [&](int l, int i) { return load(row[l] + (first + i) * width); }, value);
            for (int i = 0; i < in_flight; ++i) output(k, first + i, value[i]);
        }
    }
}

// grad_y(tree) points to the tile's gradients of its output. Adds to the rows grad_x and writes the coefficients'
// gradients to partials, or adds them.
template <class Scalar, int depth, class OutputGradient>
CONVLOGIC_INLINE void forest_tile_backward(const Scalar* c, const int32_t* leaves, int64_t trees, const Scalar* x,
                                           const OutputGradient& grad_y, Scalar* grad_x, Scalar* partials,
                                           bool accumulate) {
    using Backward = TreeBackward<Scalar, depth>;
    constexpr int num_leaves = Backward::num_leaves, num_gates = Backward::num_gates;
    constexpr int width = vector_width<Scalar>, vectors = forest_tile_vectors;
    static_assert(vectors <= Backward::max_vectors);
    Backward backward;
    for (int64_t k = 0; k < trees; ++k, c += 4 * num_gates, partials += 4 * num_gates, leaves += num_leaves) {
        const Scalar* row[num_leaves];
        Scalar* grad_row[num_leaves];
        for (int l = 0; l < num_leaves; ++l) {
            row[l] = x + leaves[l] * int64_t(vectors * width);
            grad_row[l] = grad_x + leaves[l] * int64_t(vectors * width);
        }
        for (int l = 0; l < num_leaves && k + 1 < trees; ++l) {
            const Scalar* next = x + leaves[num_leaves + l] * int64_t(vectors * width);
            __builtin_prefetch(next);
            __builtin_prefetch(next + vectors * width / 2);
        }
        const Scalar* upstream = grad_y(k);
        for (int i = 0; i < vectors; ++i) backward.gradient[num_gates - 1][i] = load(upstream + i * width);
        backward.template run<true>(
            c, vectors, [&](int l, int i) { return load(row[l] + i * width); },
            [&](int l, int i, Vector<Scalar> v) {
                Scalar* to = grad_row[l] + i * width;
                store(to, load(to) + v);
            },
            [&](int g) { return partials + 4 * g; }, accumulate);
    }
}

}  // namespace convlogic::CONVLOGIC_ISA
