// Bit-packed discrete evaluation: a word holds a bit of 64 images, image n is bit n % 64 of word n / 64.
//
// Planes are [row][words]; a row is a feature, or a pixel of a channel.
#pragma once

#include <cstdint>

namespace convlogic {

using Word = uint64_t;

// Trees of gates at every position of a sliding window over padded planes, then the OR of each pool x pool block.
// A dense layer is trees over planes of one pixel.
struct PackedLayer {
    const int32_t* leaves;  // [trees][leaves]: rows of the padded planes, for the window at the top left
    const uint8_t* codes;   // [trees][gates]: see bindings_packed.cpp: normalize
    int64_t trees, channels, height, width, padding_y, padding_x, stride_y, stride_x, out_height, out_width;
    int depth, pool;

    int64_t padded_height() const { return height + 2 * padding_y; }
    int64_t padded_width() const { return width + 2 * padding_x; }
    int64_t padded_rows() const { return channels * padded_height() * padded_width(); }
    int64_t out_rows() const { return trees * out_height * out_width; }
};

// What to evaluate: the layers in order, then class sums. Without `sums` the last planes are written to `y`.
struct PackedNetwork {
    const PackedLayer* layers;
    int64_t num_layers;
    const Word* x;  // [rows][words]
    int64_t rows, words;
    Word* y;        // [rows of the last layer][words], or null
    int32_t* sums;  // [classes][images], or null
    int64_t classes, images;
    int threads;

    int64_t out_rows() const { return num_layers ? layers[num_layers - 1].out_rows() : rows; }
};

#define CONVLOGIC_DECLARE_PACKED_KERNELS(isa)                                                                \
    namespace isa {                                                                                          \
    /* Words from bytes, [images][features]; false where a byte is neither 0 nor 1. Unused bits are zero. */ \
    bool pack_bits(const uint8_t* x, int64_t images, int64_t features, int threads, Word* y);                \
    /* False where scratch memory ran out. */                                                                \
    bool packed_network(const PackedNetwork&);                                                               \
    }

CONVLOGIC_DECLARE_PACKED_KERNELS(baseline)
CONVLOGIC_DECLARE_PACKED_KERNELS(avx2)
CONVLOGIC_DECLARE_PACKED_KERNELS(avx512)

}  // namespace convlogic
