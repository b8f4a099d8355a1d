// What the bindings call: one set of kernels an instruction set.
//
// Memory is batch-innermost throughout: x is [feature][batch], images are [channel][row][column][batch].
// All tensors are dense and belong to the caller. Gradients that are null are not computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace convlogic {

// Coefficient gradients are summed a block of samples at a time, the blocks in order, whatever the thread count.
struct BatchBlocks {
    int64_t count, lanes;
};

constexpr int64_t max_blocks = 16;

constexpr BatchBlocks batch_blocks(int64_t batch, int64_t min_lanes) {
    const int64_t spread = (batch + max_blocks - 1) / max_blocks;
    const int64_t lanes = (spread + min_lanes - 1) / min_lanes * min_lanes;
    return lanes ? BatchBlocks{(batch + lanes - 1) / lanes, lanes} : BatchBlocks{0, min_lanes};
}

constexpr BatchBlocks forest_blocks(int64_t batch) {
    return batch_blocks(batch, 32);
}
constexpr BatchBlocks tree_blocks(int64_t batch) {
    return batch_blocks(batch, 16);
}

// Trees over feature rows: leaf l of tree k is row leaves[k * num_leaves + l] of x. A dense layer is a forest of single
// gates.
template <class Scalar>
struct Forest {
    const Scalar *x, *coefficients;         // [features][batch], [trees][gates][4]
    const int32_t* leaves;                  // [trees][leaves]
    int64_t batch, features, trees, group;  // outputs are sums over so many consecutive trees
    int depth, threads;
};

template <class Scalar>
struct ForestGradients {
    const Scalar* y;
    Scalar *x, *partials;  // partials: [forest_blocks][trees][gates][4]
};

// Trees over the leaves of a sliding window, then pool x pool maxima.
template <class Scalar>
struct TreeConv {
    const Scalar *x, *coefficients;
    const int32_t*
        leaves;  // [kernels][leaves]: a leaf's pixel in the padded planes, seen from the corner of its window
    int64_t batch, channels, height, width, kernels;
    int64_t stride_y, stride_x, padding_y, padding_x, out_height, out_width;
    int depth, pool, threads;
};

template <class Scalar>
struct TreeConvGradients {
    const Scalar* y;
    const uint8_t* winner;
    Scalar *x, *partials;  // partials: [tree_blocks][kernels][gates][4]
};

// Memory of this thread, aligned to 64 bytes, valid until its next call; null where there is none left.
void* scratch(size_t bytes);

// False where scratch memory ran out. sum_partials adds the blocks up and completes each tree's sums (`complete_sums`);
// those of gate g go to row rows[g], or g where rows is null.
#define CONVLOGIC_DECLARE_KERNELS(isa)                                                                              \
    namespace isa {                                                                                                 \
    template <class Scalar>                                                                                         \
    bool forest_forward(const Forest<Scalar>&, Scalar* y);                                                          \
    template <class Scalar>                                                                                         \
    bool forest_backward(const Forest<Scalar>&, const ForestGradients<Scalar>&);                                    \
    template <class Scalar>                                                                                         \
    bool tree_conv_forward(const TreeConv<Scalar>&, Scalar* y, uint8_t* winner);                                    \
    template <class Scalar>                                                                                         \
    bool tree_conv_backward(const TreeConv<Scalar>&, const TreeConvGradients<Scalar>&);                             \
    template <class Scalar>                                                                                         \
    void sum_partials(const Scalar* partials, int64_t blocks, int64_t trees, int gates, const Scalar* coefficients, \
                      const int32_t* rows, int threads, Scalar* total);                                             \
    template <class Scalar>                                                                                         \
    void gate_coefficients_forward(const Scalar* logits, int64_t gates, int num_logits, int threads,                \
                                   Scalar* coefficients);                                                           \
    template <class Scalar>                                                                                         \
    void gate_coefficients_backward(const Scalar* logits, const Scalar* grad_coefficients, int64_t gates,           \
                                    int num_logits, int threads, Scalar* grad_logits);                              \
    }

CONVLOGIC_DECLARE_KERNELS(baseline)
CONVLOGIC_DECLARE_KERNELS(avx2)
CONVLOGIC_DECLARE_KERNELS(avx512)

}  // namespace convlogic
