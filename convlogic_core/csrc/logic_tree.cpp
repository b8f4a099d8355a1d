// The convolution of gate trees with pooling, forward and backward, over whole tensors.
//
// A thread takes a tile of samples and copies its images into scratch planes with padding.
#include "conv_tile.h"
#include "kernels.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

template <class Scalar>
struct Planes {
    int64_t height, width, size;

    explicit Planes(const TreeConv<Scalar>& conv)
        : height(conv.height + 2 * conv.padding_y),
          width(conv.width + 2 * conv.padding_x),
          size(conv.channels * height * width * tile_lanes<Scalar>) {}

    // f(pixel of x, its place in the planes), each times the batch or the tile.
    template <class PixelFunction>
    CONVLOGIC_INLINE void for_each_pixel(const TreeConv<Scalar>& conv, PixelFunction f) const {
        int64_t pixel = 0;
        for (int64_t channel = 0; channel < conv.channels; ++channel)
            for (int64_t row = 0; row < conv.height; ++row) {
                const int64_t place = (channel * height + row + conv.padding_y) * width + conv.padding_x;
                for (int64_t column = 0; column < conv.width; ++column, ++pixel)
                    f(pixel * conv.batch, (place + column) * tile_lanes<Scalar>);
            }
    }
};

// The samples first .. first + lanes - 1 of each row of a batch, lanes at most a tile.
template <class Item, int tile>
CONVLOGIC_INLINE void copy_lanes(Item* to, const Item* from, int64_t lanes) {
    if (lanes == tile)
        memcpy(to, from, tile * sizeof(Item));
    else
        for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = from[lane];
}

// Padding and missing lanes are zero.
template <class Scalar>
void fill_planes(const TreeConv<Scalar>& conv, int64_t first, int64_t lanes, Scalar* planes) {
    const Planes<Scalar> layout(conv);
    if (conv.padding_y || conv.padding_x || lanes < tile_lanes<Scalar>)
        memset(planes, 0, size_t(layout.size) * sizeof(Scalar));
    const Scalar* x = conv.x + first;
    layout.for_each_pixel(
        conv, [=](int64_t from, int64_t to) { copy_lanes<Scalar, tile_lanes<Scalar>>(planes + to, x + from, lanes); });
}

template <class Scalar>
void write_planes(const TreeConv<Scalar>& conv, int64_t first, int64_t lanes, const Scalar* planes, Scalar* x) {
    const Planes<Scalar> layout(conv);
    layout.for_each_pixel(conv, [=](int64_t to, int64_t from) {
        copy_lanes<Scalar, tile_lanes<Scalar>>(x + first + to, planes + from, lanes);
    });
}

template <class Scalar>
ConvTile<Scalar> tile_of(const TreeConv<Scalar>& conv) {
    return {conv.coefficients, conv.leaves,    conv.kernels,
            conv.out_height,   conv.out_width, conv.stride_y * Planes<Scalar>(conv).width,
            conv.stride_x};
}

template <class Scalar>
OutputStrides strides_of(const TreeConv<Scalar>& conv, int64_t lanes) {
    return {conv.out_height * conv.out_width * lanes, conv.out_width * lanes, lanes};
}

// Outputs of a ragged last tile go through scratch memory: kernels read and write whole tiles.
template <class Scalar>
struct TileOutputs {
    int64_t count;
    size_t bytes;

    explicit TileOutputs(const TreeConv<Scalar>& conv)
        : count(conv.kernels * conv.out_height * conv.out_width),
          bytes(size_t(count) * tile_lanes<Scalar> * (sizeof(Scalar) + 1)) {}
};

}  // namespace

template <class Scalar>
bool tree_conv_forward(const TreeConv<Scalar>& conv, Scalar* y, uint8_t* winner) {
    constexpr int tile = tile_lanes<Scalar>;
    const ConvTile<Scalar> shape = tile_of(conv);
    const TileOutputs<Scalar> outputs(conv);
    const int64_t size = Planes<Scalar>(conv).size;
    const bool ragged = conv.batch % tile;
    const size_t bytes = size_t(size) * sizeof(Scalar) + (ragged ? outputs.bytes : 0);
    bool complete = true;
#pragma omp parallel for num_threads(conv.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t first = 0; first < conv.batch; first += tile) {
        Scalar* planes = static_cast<Scalar*>(scratch(bytes));
        complete = complete && planes;
        if (!planes) continue;
        const int64_t lanes = conv.batch - first < tile ? conv.batch - first : tile;
        fill_planes(conv, first, lanes, planes);
        if (lanes == tile) {
            const OutputStrides strides = strides_of(conv, conv.batch);
            conv_tile_forward(conv.depth, conv.pool, shape, planes, y + first, strides, winner + first, strides);
            continue;
        }
        Scalar* tile_y = planes + size;
        uint8_t* tile_winner = reinterpret_cast<uint8_t*>(tile_y + outputs.count * tile);
        const OutputStrides strides = strides_of(conv, tile);
        conv_tile_forward(conv.depth, conv.pool, shape, planes, tile_y, strides, tile_winner, strides);
        for (int64_t i = 0; i < outputs.count; ++i) {
            copy_lanes<Scalar, tile>(y + i * conv.batch + first, tile_y + i * tile, lanes);
            if (conv.pool > 1)
                copy_lanes<uint8_t, tile>(winner + i * conv.batch + first, tile_winner + i * tile, lanes);
        }
    }
    return complete;
}

template <class Scalar>
bool tree_conv_backward(const TreeConv<Scalar>& conv, const TreeConvGradients<Scalar>& gradients) {
    constexpr int tile = tile_lanes<Scalar>;
    const ConvTile<Scalar> shape = tile_of(conv);
    const TileOutputs<Scalar> outputs(conv);
    const int64_t size = Planes<Scalar>(conv).size;
    const bool ragged = conv.batch % tile;
    const size_t plane_bytes = size_t(size) * sizeof(Scalar);
    const size_t bytes = (gradients.x ? 2 : 1) * plane_bytes + (ragged ? outputs.bytes : 0);
    const int64_t partials_size = conv.kernels * 4 * ((int64_t(1) << conv.depth) - 1);
    const BatchBlocks blocks = tree_blocks(conv.batch);
    bool complete = true;
#pragma omp parallel for num_threads(conv.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t block = 0; block < blocks.count; ++block) {
        Scalar* planes = static_cast<Scalar*>(scratch(bytes));
        complete = complete && planes;
        if (!planes) continue;
        Scalar *grad_x = gradients.x ? planes + size : nullptr, *partials = gradients.partials + block * partials_size;
        const int64_t start = block * blocks.lanes;
        const int64_t end = start + blocks.lanes < conv.batch ? start + blocks.lanes : conv.batch;
        for (int64_t first = start; first < end; first += tile) {
            const int64_t lanes = end - first < tile ? end - first : tile;
            fill_planes(conv, first, lanes, planes);
            const Scalar* grad_y = gradients.y + first;
            const uint8_t* winner = gradients.winner + first;
            OutputStrides strides = strides_of(conv, conv.batch);
            if (lanes < tile) {
                Scalar* tile_grad_y = planes + (gradients.x ? 2 : 1) * size;
                uint8_t* tile_winner = reinterpret_cast<uint8_t*>(tile_grad_y + outputs.count * tile);
                memset(tile_grad_y, 0, outputs.bytes);
                for (int64_t i = 0; i < outputs.count; ++i) {
                    copy_lanes<Scalar, tile>(tile_grad_y + i * tile, grad_y + i * conv.batch, lanes);
                    if (conv.pool > 1)
                        copy_lanes<uint8_t, tile>(tile_winner + i * tile, winner + i * conv.batch, lanes);
                }
                grad_y = tile_grad_y, winner = tile_winner, strides = strides_of(conv, tile);
            }
            if (grad_x) memset(grad_x, 0, plane_bytes);
            conv_tile_backward(conv.depth, conv.pool, shape, planes, grad_y, strides, winner, strides, grad_x, partials,
                               first > start);
            if (grad_x) write_planes(conv, first, lanes, grad_x, gradients.x);
        }
    }
    return complete;
}

template bool tree_conv_forward(const TreeConv<float>&, float*, uint8_t*);
template bool tree_conv_forward(const TreeConv<double>&, double*, uint8_t*);
template bool tree_conv_backward(const TreeConv<float>&, const TreeConvGradients<float>&);
template bool tree_conv_backward(const TreeConv<double>&, const TreeConvGradients<double>&);

}  // namespace convlogic::CONVLOGIC_ISA
