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
// gradients, which `complete_sums` completes, to partials, or adds them.
template <class Scalar, int depth, class OutputGradient>
CONVLOGIC_INLINE void forest_tile_backward(const Scalar* c, const int32_t* leaves, int64_t trees, const Scalar* x,
                                           const OutputGradient& grad_y, Scalar* grad_x, Scalar* partials,
                                           bool accumulate) {
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1;
    constexpr int width = vector_width<Scalar>, vectors = forest_tile_vectors;
    constexpr int in_flight = vectors < 4 ? vectors : 4;
    for (int64_t k = 0; k < trees; ++k, c += 4 * num_gates, partials += 4 * num_gates, leaves += num_leaves) {
        const Scalar* row[num_leaves];
        for (int l = 0; l < num_leaves; ++l) row[l] = x + leaves[l] * int64_t(vectors * width);
        const Scalar* upstream = grad_y(k);
        GateSums<Scalar> sums[num_gates];
        Four<Scalar> totals[num_gates];
#pragma GCC unroll 1
        for (int first = 0; first < vectors; first += in_flight) {
            Vector<Scalar> grad[in_flight];
            for (int i = 0; i < in_flight; ++i) grad[i] = load(upstream + (first + i) * width);
            tree_backward<Scalar, depth, in_flight, true>(
                c, [&](int l, int i) { return load(row[l] + (first + i) * width); }, grad,
                [&](int l, int i, Vector<Scalar> v) {
                    Scalar* to = grad_x + (row[l] - x) + (first + i) * width;
                    store(to, load(to) + v);
                },
                [&](auto gate, auto is_root, const auto& grad, const auto& a, const auto& b) {
                    constexpr int g = gate.number;
                    for (int i = 0; i < in_flight; ++i) sums[g].template add<is_root.number>(grad[i], a[i], b[i]);
                    if (in_flight == vectors) totals[g] = sums[g].total();  // before the next gate needs the registers
                });
        }
        for (int g = 0; g < num_gates && in_flight < vectors; ++g) totals[g] = sums[g].total();
        write_totals<Scalar>(totals, partials, accumulate);
    }
}

}  // namespace convlogic::CONVLOGIC_ISA
