// The convolution of gate trees with pooling for one tile of samples, a cache line wide.
//
// Its images are planes [channel][padded row][padded column][lane], where windows need no bounds checks.
#pragma once

#include "simd.h"

namespace convlogic::CONVLOGIC_ISA {

template <class Scalar>
constexpr int tile_lanes = 64 / sizeof(Scalar);

// Sizes of one block; distances between pixels of the planes are in pixels.
template <class Scalar>
struct ConvTile {
    const Scalar* coefficients;  // [kernels][gates][4]
    const int32_t* leaves;       // [kernels][leaves]: a leaf's pixel, seen from the corner of its window
    int64_t kernels, out_height, out_width;
    int64_t down, right;  // from one window of the convolution to the next
};

// Where outputs lie, in scalars (or bytes of winners); each output has its tile of lanes together.
struct OutputStrides {
    int64_t kernel, row, column;
};

// Writes y and, with pooling, which position of its pool block each value came from.
template <class Scalar>
void conv_tile_forward(int depth, int pool, const ConvTile<Scalar>& conv, const Scalar* planes, Scalar* y,
                       const OutputStrides& y_strides, uint8_t* winner, const OutputStrides& winner_strides);

// Adds to the planes grad_x (null: not needed) and writes the coefficients' gradients, which `complete_sums` completes,
// to partials, or adds them.
template <class Scalar>
void conv_tile_backward(int depth, int pool, const ConvTile<Scalar>& conv, const Scalar* planes, const Scalar* grad_y,
                        const OutputStrides& y_strides, const uint8_t* winner, const OutputStrides& winner_strides,
                        Scalar* grad_x, Scalar* partials, bool accumulate);

}  // namespace convlogic::CONVLOGIC_ISA
