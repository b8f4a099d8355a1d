// Wiring as the kernels take it, checked so that none of them reads outside its planes; and the size of an output.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace convlogic {

// Of a tree convolution along one axis, pooling included; not positive where the image is smaller than the kernel.
inline int64_t tree_output(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t pool) {
    const int64_t beyond = size + 2 * padding - kernel;
    return beyond < 0 ? 0 : (beyond / stride + 1) / pool;
}

// name[row, column], where rows are so long.
inline std::string entry(const char* name, int64_t position, int64_t columns) {
    return std::string(name) + "[" + std::to_string(position / columns) + ", " + std::to_string(position % columns) +
           "]";
}

// Indices [rows][columns] as int32, each in [0, limit).
inline std::vector<int32_t> checked_indices(const char* name, const int64_t* indices, int64_t rows, int64_t columns,
                                            int64_t limit, const char* of_what) {
    std::vector<int32_t> checked(size_t(rows * columns));
    for (int64_t i = 0; i < rows * columns; ++i) {
        if (indices[i] < 0 || indices[i] >= limit)
            throw std::invalid_argument(entry(name, i, columns) + " = " + std::to_string(indices[i]) +
                                        " is outside the " + std::to_string(limit) + " " + of_what);
        checked[size_t(i)] = int32_t(indices[i]);
    }
    return checked;
}

// The rows of coefficients [trees][gates] of a forest's gates, each named once.
inline std::vector<int32_t> checked_gate_rows(const int64_t* gate_rows, int64_t trees, int64_t gates) {
    std::vector<int32_t> rows =
        checked_indices("gate_rows", gate_rows, trees, gates, trees * gates, "rows of coefficients");
    std::vector<uint8_t> used(rows.size());
    for (size_t i = 0; i < rows.size(); ++i)
        if (used[size_t(rows[i])]++)
            throw std::invalid_argument(entry("gate_rows", int64_t(i), gates) + " names row " +
                                        std::to_string(rows[i]) + " twice; every gate has its own");
    return rows;
}

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
            throw std::invalid_argument(
                entry("selection", leaf, gates + 1) + " names channel " + std::to_string(channel) + ", row " +
                std::to_string(row) + ", column " + std::to_string(column) + ", outside " + std::to_string(channels) +
                " channels and a " + std::to_string(kernel.first) + "x" + std::to_string(kernel.second) + " kernel");
        pixels[size_t(leaf)] = int32_t((channel * height + row) * width + column);
    }
    return pixels;
}

}  // namespace convlogic
