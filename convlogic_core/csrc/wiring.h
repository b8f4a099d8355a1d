// Where the leaves of a convolution's trees lie, checked so that no kernel reads outside its planes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace convlogic {

// From codes channel << 16 | row << 8 | column to pixels of the padded planes, seen from the corner of a window.
inline std::vector<int32_t> leaf_pixels(const int32_t* codes, int64_t kernels, int64_t gates, int64_t channels,
                                        std::pair<int64_t, int64_t> image, std::pair<int64_t, int64_t> kernel,
                                        std::pair<int64_t, int64_t> padding) {
    const int64_t height = image.first + 2 * padding.first, width = image.second + 2 * padding.second;
    if (channels * height * width > INT32_MAX)
        throw std::invalid_argument("an image of " + std::to_string(channels * height * width) +
                                    " values, padding included, exceeds " + std::to_string(INT32_MAX));
    std::vector<int32_t> pixels(size_t(kernels * (gates + 1)));
    for (int64_t leaf = 0; leaf < kernels * (gates + 1); ++leaf) {
        const uint32_t code = uint32_t(codes[leaf]);
        const int64_t channel = code >> 16, row = code >> 8 & 255, column = code & 255;
        if (channel >= channels || row >= kernel.first || column >= kernel.second)
            throw std::out_of_range("leaf " + std::to_string(leaf % (gates + 1)) + " of kernel " +
                                    std::to_string(leaf / (gates + 1)) + " selects channel " + std::to_string(channel) +
                                    ", row " + std::to_string(row) + ", column " + std::to_string(column) +
                                    ", outside " + std::to_string(channels) + " channels and a " +
                                    std::to_string(kernel.first) + "x" + std::to_string(kernel.second) + " kernel");
        pixels[size_t(leaf)] = int32_t((channel * height + row) * width + column);
    }
    return pixels;
}

}  // namespace convlogic
