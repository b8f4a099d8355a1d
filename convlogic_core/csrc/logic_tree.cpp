// The convolution of gate trees with pooling, forward and backward.
//
// A thread takes a tile of samples, one cache line wide, and copies its image into scratch planes
// [channel][padded row][padded column][lane], where windows need no bounds checks.
#include "kernels.h"
#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

template <class Scalar>
constexpr int tile_lanes = 64 / sizeof(Scalar);

// Winners while in registers: integers as wide as the scalar.
template <class Scalar>
struct IndexType {
    typedef int32_t type __attribute__((may_alias));
};
template <>
struct IndexType<double> {
    typedef int64_t type __attribute__((may_alias));
};
template <class Scalar>
using Index = typename IndexType<Scalar>::type;

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

// Copies samples first .. first + lanes - 1 of x; padding and missing lanes are zero.
template <class Scalar>
void fill_planes(const TreeConv<Scalar>& conv, int64_t first, int64_t lanes, Scalar* planes) {
    const Planes<Scalar> layout(conv);
    if (conv.padding_y || conv.padding_x || lanes < tile_lanes<Scalar>)
        memset(planes, 0, size_t(layout.size) * sizeof(Scalar));
    const Scalar* x = conv.x + first;
    if (lanes == tile_lanes<Scalar>)
        layout.for_each_pixel(conv, [=](int64_t from, int64_t to) { memcpy(planes + to, x + from, 64); });
    else
        layout.for_each_pixel(conv, [=](int64_t from, int64_t to) {
            for (int64_t lane = 0; lane < lanes; ++lane) planes[to + lane] = x[from + lane];
        });
}

template <class Scalar>
void write_planes(const TreeConv<Scalar>& conv, int64_t first, int64_t lanes, const Scalar* planes, Scalar* x) {
    const Planes<Scalar> layout(conv);
    x += first;
    if (lanes == tile_lanes<Scalar>)
        layout.for_each_pixel(conv, [=](int64_t to, int64_t from) { memcpy(x + to, planes + from, 64); });
    else
        layout.for_each_pixel(conv, [=](int64_t to, int64_t from) {
            for (int64_t lane = 0; lane < lanes; ++lane) x[to + lane] = planes[from + lane];
        });
}

// Where the leaves of one kernel and the windows of one pooled output lie in the planes.
template <class Scalar, int depth, int pool>
struct Window {
    int64_t leaf[1 << depth];
    int64_t position[pool * pool];
    int64_t step_y, step_x;

    explicit Window(const TreeConv<Scalar>& conv) {
        const Planes<Scalar> layout(conv);
        const int64_t y = conv.stride_y * layout.width * tile_lanes<Scalar>, x = conv.stride_x * tile_lanes<Scalar>;
        for (int p = 0; p < pool * pool; ++p) position[p] = p / pool * y + p % pool * x;
        step_y = pool * y, step_x = pool * x;
    }

    CONVLOGIC_INLINE void select(const TreeConv<Scalar>& conv, int64_t kernel) {
        const Planes<Scalar> layout(conv);
        for (int l = 0; l < 1 << depth; ++l) {
            const uint32_t code = uint32_t(conv.selection[(kernel << depth) + l]);
            const int64_t row = (code >> 16) * layout.height + (code >> 8 & 255);
            leaf[l] = (row * layout.width + (code & 255)) * tile_lanes<Scalar>;
        }
    }
};

// Between a tile's values in registers and the samples of one output; a ragged last tile has fewer lanes.
template <class To, class From>
CONVLOGIC_INLINE void copy_lanes(To* to, const From* from, int64_t lanes, int tile) {
    if (lanes == tile)
        for (int lane = 0; lane < tile; ++lane) to[lane] = To(from[lane]);
    else
        for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = To(from[lane]);
}

template <class Scalar, int depth, int pool>
void forward_tile(const TreeConv<Scalar>& conv, int64_t first, int64_t lanes, const Scalar* planes, Scalar* y,
                  uint8_t* winner) {
    constexpr int positions = pool * pool, width = vector_width<Scalar>, tile = tile_lanes<Scalar>;
    constexpr int vectors = tile / width < 4 / pool ? tile / width : 4 / pool;
    constexpr int at_once = positions < 4 / vectors ? positions : 4 / vectors;
    Window<Scalar, depth, pool> window(conv);
    int64_t out = first;
    for (int64_t k = 0; k < conv.kernels; ++k) {
        window.select(conv, k);
        const Scalar* c = conv.coefficients + k * 4 * ((1 << depth) - 1);
        for (int64_t row = 0; row < conv.out_height; ++row) {
            const Scalar* at = planes + row * window.step_y;
            for (int64_t column = 0; column < conv.out_width; ++column, at += window.step_x, out += conv.batch) {
                __builtin_prefetch(y + out + 8 * conv.batch, 1);
                if constexpr (pool > 1) __builtin_prefetch(winner + out + 8 * conv.batch, 1);
                const Scalar* corner[positions];
                for (int p = 0; p < positions; ++p) corner[p] = at + window.position[p];
                alignas(64) Scalar values[tile];
                alignas(64) Mask<Scalar> indices[tile / width];
#pragma GCC unroll 1
                for (int lane = 0; lane < tile; lane += vectors * width) {
                    Vector<Scalar> best[vectors];
                    Mask<Scalar> index[vectors];
#pragma GCC unroll 4
                    for (int round = 0; round < positions; round += at_once) {
                        Vector<Scalar> value[at_once * vectors];
                        const auto leaf = [&](int l, int i) {
                            return load(corner[round + i / vectors] + window.leaf[l] + lane + i % vectors * width);
                        };
                        tree<Scalar, depth, at_once * vectors>(c, leaf, value);
#pragma GCC unroll 4
                        for (int i = 0; i < at_once * vectors; ++i) {
                            const int v = i % vectors, p = round + i / vectors;
                            if (p == 0) {
                                best[v] = value[i], index[v] = Mask<Scalar>{};
                            } else {
                                const Mask<Scalar> better = (value[i] > best[v]) | (value[i] != value[i]);  // NaN wins
                                best[v] = select<Scalar>(better, value[i], best[v]);
                                index[v] = better ? Mask<Scalar>{} + p : index[v];
                            }
                        }
                    }
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) {
                        indices[lane / width + v] = index[v];
                        store((lanes == tile ? y + out : values) + lane + v * width, best[v]);
                    }
                }
                if (lanes < tile) copy_lanes(y + out, values, lanes, tile);
                if constexpr (pool > 1)
                    copy_lanes(winner + out, reinterpret_cast<const Index<Scalar>*>(indices), lanes, tile);
            }
        }
    }
}

// One tile's gradients: those of x into the planes grad_x (where not null), those of the coefficients into partials.
template <class Scalar, int depth, int pool, bool needs_grad_x>
void backward_tile(const TreeConv<Scalar>& conv, const TreeConvGradients<Scalar>& gradients, int64_t first,
                   int64_t lanes, const Scalar* planes, Scalar* grad_x, Scalar* partials, bool accumulate) {
    using Backward = TreeBackward<Scalar, depth>;
    constexpr int positions = pool * pool, width = vector_width<Scalar>, tile = tile_lanes<Scalar>;
    constexpr int vectors_a_cell = tile / width, max_cells = Backward::max_bytes / 64;
    Window<Scalar, depth, pool> window(conv);
    Backward backward;
    alignas(64) Mask<Scalar> won[positions][Backward::max_vectors];
    int64_t corner[max_cells];  // where the windows of the chunk's cells begin in the planes
    const int64_t num_cells = conv.out_height * conv.out_width;
    for (int64_t k = 0; k < conv.kernels; ++k) {
        window.select(conv, k);
        const int64_t coefficients = k * 4 * Backward::num_gates;
        for (int64_t cell = 0; cell < num_cells; cell += max_cells) {
            const int cells = int(num_cells - cell < max_cells ? num_cells - cell : max_cells);
            for (int j = 0; j < cells; ++j) {
                const int64_t row = (cell + j) / conv.out_width, column = (cell + j) % conv.out_width;
                corner[j] = row * window.step_y + column * window.step_x;
                const int64_t out = (k * num_cells + cell + j) * conv.batch + first;
                __builtin_prefetch(gradients.y + out + max_cells * conv.batch);
                if constexpr (pool > 1) __builtin_prefetch(gradients.winner + out + max_cells * conv.batch);
                alignas(64) Scalar grad_y[tile] = {};
                alignas(64) Mask<Scalar> index[vectors_a_cell] = {};
                copy_lanes(grad_y, gradients.y + out, lanes, tile);
                if constexpr (pool > 1)
                    copy_lanes(reinterpret_cast<Index<Scalar>*>(index), gradients.winner + out, lanes, tile);
                for (int v = 0; v < vectors_a_cell; ++v) {
                    const int i = j * vectors_a_cell + v;
                    backward.grad[2 * Backward::num_gates][i] = load(grad_y + v * width);
                    for (int p = 0; p < positions; ++p) won[p][i] = index[v] == p;
                }
            }
            for (int l = 0; l < Backward::num_leaves; ++l)
                for (int j = 0; j < cells; ++j)
                    for (int v = 0; v < vectors_a_cell; ++v) {
                        const int i = j * vectors_a_cell + v;
                        const Scalar* from = planes + corner[j] + window.leaf[l] + v * width;
                        Vector<Scalar> value = load(from);
                        for (int p = 1; p < positions; ++p)
                            value = select<Scalar>(won[p][i], load(from + window.position[p]), value);
                        backward.node[l][i] = value;
                    }
            const auto leaf_gradient = [&](int l, int i, Vector<Scalar> v) {
                Scalar* to = grad_x + corner[i / vectors_a_cell] + window.leaf[l] + i % vectors_a_cell * width;
#pragma GCC unroll 4
                for (int p = 0; p < positions; ++p) {
                    const Vector<Scalar> part = pool > 1 ? keep<Scalar>(won[p][i], v) : v;
                    store(to + window.position[p], load(to + window.position[p]) + part);
                }
            };
            backward.template run<needs_grad_x>(
                conv.coefficients + coefficients, cells * vectors_a_cell, leaf_gradient,
                [&](int g) { return partials + coefficients + 4 * g; }, accumulate || cell > 0);
        }
    }
}

template <class Scalar, int depth, int pool>
bool forward(const TreeConv<Scalar>& conv, Scalar* y, uint8_t* winner) {
    constexpr int64_t tile = tile_lanes<Scalar>;
    const size_t bytes = size_t(Planes<Scalar>(conv).size) * sizeof(Scalar);
    bool complete = true;
#pragma omp parallel for num_threads(conv.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t first = 0; first < conv.batch; first += tile) {
        Scalar* planes = static_cast<Scalar*>(scratch(bytes));
        complete = complete && planes;
        if (!planes) continue;
        const int64_t lanes = conv.batch - first < tile ? conv.batch - first : tile;
        fill_planes(conv, first, lanes, planes);
        forward_tile<Scalar, depth, pool>(conv, first, lanes, planes, y, winner);
    }
    return complete;
}

template <class Scalar, int depth, int pool>
bool backward(const TreeConv<Scalar>& conv, const TreeConvGradients<Scalar>& gradients) {
    constexpr int64_t tile = tile_lanes<Scalar>;
    const int64_t size = Planes<Scalar>(conv).size;
    const size_t plane_bytes = size_t(size) * sizeof(Scalar), bytes = gradients.x ? 2 * plane_bytes : plane_bytes;
    const int64_t partials_size = conv.kernels * 4 * ((1 << depth) - 1);
    const BatchBlocks blocks = tree_blocks(conv.batch);
    bool complete = true;
#pragma omp parallel for num_threads(conv.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t block = 0; block < blocks.count; ++block) {
        Scalar* planes = static_cast<Scalar*>(scratch(bytes));
        complete = complete && planes;
        if (!planes) continue;
        Scalar *grad_x = planes + size, *partials = gradients.partials + block * partials_size;
        const int64_t start = block * blocks.lanes;
        const int64_t end = start + blocks.lanes < conv.batch ? start + blocks.lanes : conv.batch;
        for (int64_t first = start; first < end; first += tile) {
            const int64_t lanes = end - first < tile ? end - first : tile;
            fill_planes(conv, first, lanes, planes);
            if (gradients.x) {
                memset(grad_x, 0, plane_bytes);
                backward_tile<Scalar, depth, pool, true>(conv, gradients, first, lanes, planes, grad_x, partials,
                                                         first > start);
                write_planes(conv, first, lanes, grad_x, gradients.x);
            } else {
                backward_tile<Scalar, depth, pool, false>(conv, gradients, first, lanes, planes, nullptr, partials,
                                                          first > start);
            }
        }
    }
    return complete;
}

template <class Scalar, int depth>
bool forward(const TreeConv<Scalar>& conv, Scalar* y, uint8_t* winner) {
    return conv.pool == 1 ? forward<Scalar, depth, 1>(conv, y, winner) : forward<Scalar, depth, 2>(conv, y, winner);
}

template <class Scalar, int depth>
bool backward(const TreeConv<Scalar>& conv, const TreeConvGradients<Scalar>& gradients) {
    return conv.pool == 1 ? backward<Scalar, depth, 1>(conv, gradients) : backward<Scalar, depth, 2>(conv, gradients);
}

}  // namespace

template <class Scalar>
bool tree_conv_forward(const TreeConv<Scalar>& conv, Scalar* y, uint8_t* winner) {
    switch (conv.depth) {
        case 1: return forward<Scalar, 1>(conv, y, winner);
        case 2: return forward<Scalar, 2>(conv, y, winner);
        case 3: return forward<Scalar, 3>(conv, y, winner);
        default: return forward<Scalar, 4>(conv, y, winner);
    }
}

template <class Scalar>
bool tree_conv_backward(const TreeConv<Scalar>& conv, const TreeConvGradients<Scalar>& gradients) {
    switch (conv.depth) {
        case 1: return backward<Scalar, 1>(conv, gradients);
        case 2: return backward<Scalar, 2>(conv, gradients);
        case 3: return backward<Scalar, 3>(conv, gradients);
        default: return backward<Scalar, 4>(conv, gradients);
    }
}

template bool tree_conv_forward(const TreeConv<float>&, float*, uint8_t*);
template bool tree_conv_forward(const TreeConv<double>&, double*, uint8_t*);
template bool tree_conv_backward(const TreeConv<float>&, const TreeConvGradients<float>&);
template bool tree_conv_backward(const TreeConv<double>&, const TreeConvGradients<double>&);

}  // namespace convlogic::CONVLOGIC_ISA
