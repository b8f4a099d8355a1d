// The kernels of one tile of a convolution: several window positions at a time through one tree.
#include "conv_tile.h"

#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

template <class Scalar>
struct IndexType {
    typedef int32_t type __attribute__((vector_size(CONVLOGIC_VECTOR_BYTES)));
};
template <>
struct IndexType<double> {
    typedef int64_t type __attribute__((vector_size(CONVLOGIC_VECTOR_BYTES)));
};

// Winners travel as bytes and are as wide as the scalar while in registers.
template <class Scalar>
struct Winners {
    typedef uint8_t Bytes __attribute__((vector_size(vector_width<Scalar>)));

    static CONVLOGIC_INLINE void store(uint8_t* to, Mask<Scalar> winner) {
        const Bytes bytes = __builtin_convertvector((typename IndexType<Scalar>::type)winner, Bytes);
        memcpy(to, &bytes, sizeof bytes);
    }

    static CONVLOGIC_INLINE Mask<Scalar> load(const uint8_t* from) {
        Bytes bytes;
        memcpy(&bytes, from, sizeof bytes);
        return (Mask<Scalar>)__builtin_convertvector(bytes, typename IndexType<Scalar>::type);
    }
};

template <class Scalar, int depth, int pool>
void forward(const ConvTile<Scalar>& conv, const Scalar* planes, Scalar* y, const OutputStrides& y_strides,
             uint8_t* winner, const OutputStrides& winner_strides) {
    constexpr int positions = pool * pool, width = vector_width<Scalar>, tile = tile_lanes<Scalar>;
    constexpr int vectors = pool > 1 ? 1 : (tile / width < 4 ? tile / width : 4);
    const int64_t down = conv.down * tile, right = conv.right * tile;
    for (int64_t k = 0; k < conv.kernels; ++k) {
        const Scalar* c = conv.coefficients + k * 4 * ((1 << depth) - 1);
        int64_t leaves[1 << depth];
        for (int l = 0; l < 1 << depth; ++l) leaves[l] = int64_t(conv.leaves[(k << depth) + l]) * tile;
        for (int64_t row = 0; row < conv.out_height; ++row) {
            const Scalar* corner = planes + row * pool * down;
            Scalar* out = y + k * y_strides.kernel + row * y_strides.row;
            uint8_t* won = winner + k * winner_strides.kernel + row * winner_strides.row;
            for (int64_t column = 0; column < conv.out_width; ++column) {
                const Scalar* at[positions];
                for (int p = 0; p < positions; ++p) at[p] = corner + p / pool * down + p % pool * right;
                __builtin_prefetch(out + 4 * y_strides.column, 1);
#pragma GCC unroll 1
                for (int lane = 0; lane < tile; lane += vectors * width) {
                    Vector<Scalar> value[positions * vectors];
                    tree<Scalar, depth, positions * vectors>(
                        c, [&](int l, int i) { return load(at[i / vectors] + leaves[l] + lane + i % vectors * width); },
                        value);
                    if constexpr (pool == 1) {
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) store(out + lane + v * width, value[v]);
                    } else {
                        Vector<Scalar> best = value[0];
                        Mask<Scalar> index = {};
#pragma GCC unroll 4
                        for (int p = 1; p < positions; ++p) {
                            const Mask<Scalar> better = (value[p] > best) | (value[p] != value[p]);  // NaN wins
                            best = select<Scalar>(better, value[p], best);
                            index = better ? Mask<Scalar>{} + p : index;
                        }
                        store(out + lane, best);
                        Winners<Scalar>::store(won + lane, index);
                    }
                }
                corner += pool * right, out += y_strides.column, won += winner_strides.column;
            }
        }
    }
}

template <class Scalar, int depth, int pool, bool needs_grad_x>
void backward(const ConvTile<Scalar>& conv, const Scalar* planes, const Scalar* grad_y, const OutputStrides& y_strides,
              const uint8_t* winner, const OutputStrides& winner_strides, Scalar* grad_x, Scalar* partials,
              bool accumulate) {
    using Backward = TreeBackward<Scalar, depth>;
    constexpr int width = vector_width<Scalar>, tile = tile_lanes<Scalar>, num_leaves = Backward::num_leaves;
    constexpr int vectors_a_cell = tile / width, max_cells = Backward::max_vectors / vectors_a_cell;
    constexpr int64_t num_coefficients = 4 * Backward::num_gates;
    const int64_t down = conv.down * tile, right = conv.right * tile, num_cells = conv.out_height * conv.out_width;
    const int64_t chunks = (num_cells + max_cells - 1) / max_cells;
    Backward backward;
    alignas(64) Vector<Scalar> leaf[num_leaves][Backward::max_vectors];  // of the winner; later their gradients
    Mask<Scalar> winners[Backward::max_vectors];
    int64_t corner[Backward::max_vectors];
    const auto won = [&](int i, int position) { return winners[i] == position; };
    for (int64_t k = 0; k < conv.kernels; ++k) {
        const Scalar* c = conv.coefficients + k * num_coefficients;
        int64_t leaves[num_leaves];
        for (int l = 0; l < num_leaves; ++l) leaves[l] = int64_t(conv.leaves[(k << depth) + l]) * tile;
        int64_t row = 0, column = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int cells = int((chunk + 1) * num_cells / chunks - chunk * num_cells / chunks);
            const int vectors = cells * vectors_a_cell;
            for (int i = 0; i < vectors; i += vectors_a_cell) {
                const Scalar* from = grad_y + k * y_strides.kernel + row * y_strides.row + column * y_strides.column;
                const uint8_t* place =
                    winner + k * winner_strides.kernel + row * winner_strides.row + column * winner_strides.column;
                for (int v = 0; v < vectors_a_cell; ++v) {
                    corner[i + v] = row * pool * down + column * pool * right + v * width;
                    backward.gradient[Backward::num_gates - 1][i + v] = load(from + v * width);
                    if constexpr (pool > 1) winners[i + v] = Winners<Scalar>::load(place + v * width);
                }
                if (++column == conv.out_width) column = 0, ++row;
            }
            for (int i = 0; i < vectors; ++i) {
                const Scalar* at = planes + corner[i];
                if constexpr (pool == 1) {
#pragma GCC unroll 16
                    for (int l = 0; l < num_leaves; ++l) leaf[l][i] = load(at + leaves[l]);
                } else {
                    const Mask<Scalar> second = won(i, 1), third = won(i, 2), fourth = won(i, 3);
#pragma GCC unroll 16
                    for (int l = 0; l < num_leaves; ++l) {
                        const Scalar* from = at + leaves[l];
                        Vector<Scalar> v = load(from);
                        v = select<Scalar>(second, load(from + right), v);
                        v = select<Scalar>(third, load(from + down), v);
                        leaf[l][i] = select<Scalar>(fourth, load(from + down + right), v);
                    }
                }
            }
            backward.template run<needs_grad_x>(
                c, vectors, [&](int l, int i) { return leaf[l][i]; },
                [&](int l, int i, Vector<Scalar> v) { leaf[l][i] = v; },
                [&](int g) { return partials + k * num_coefficients + 4 * g; }, accumulate || chunk > 0);
            if constexpr (!needs_grad_x) continue;
            for (int i = 0; i < vectors; ++i) {
                Scalar* at = grad_x + corner[i];
                const auto add = [](Scalar* to, Vector<Scalar> v) { store(to, load(to) + v); };
                if constexpr (pool == 1) {
                    for (int l = 0; l < num_leaves; ++l) add(at + leaves[l], leaf[l][i]);
                } else {
                    const Mask<Scalar> first = won(i, 0), second = won(i, 1), third = won(i, 2), fourth = won(i, 3);
#pragma GCC unroll 16
                    for (int l = 0; l < num_leaves; ++l) {
                        Scalar* to = at + leaves[l];
                        add(to, keep<Scalar>(first, leaf[l][i]));
                        add(to + right, keep<Scalar>(second, leaf[l][i]));
                        add(to + down, keep<Scalar>(third, leaf[l][i]));
                        add(to + down + right, keep<Scalar>(fourth, leaf[l][i]));
                    }
                }
            }
        }
    }
}

template <class Function>
void with_depth_and_pool(int depth, int pool, const Function& f) {
    with_depth(depth, [&](auto d) { pool == 1 ? f(d, Constant<1>()) : f(d, Constant<2>()); });
}

}  // namespace

template <class Scalar>
void conv_tile_forward(int depth, int pool, const ConvTile<Scalar>& conv, const Scalar* planes, Scalar* y,
                       const OutputStrides& y_strides, uint8_t* winner, const OutputStrides& winner_strides) {
    with_depth_and_pool(depth, pool, [&](auto d, auto p) {
        forward<Scalar, d.number, p.number>(conv, planes, y, y_strides, winner, winner_strides);
    });
}

template <class Scalar>
void conv_tile_backward(int depth, int pool, const ConvTile<Scalar>& conv, const Scalar* planes, const Scalar* grad_y,
                        const OutputStrides& y_strides, const uint8_t* winner, const OutputStrides& winner_strides,
                        Scalar* grad_x, Scalar* partials, bool accumulate) {
    with_depth_and_pool(depth, pool, [&](auto d, auto p) {
        if (grad_x)
            backward<Scalar, d.number, p.number, true>(conv, planes, grad_y, y_strides, winner, winner_strides, grad_x,
                                                       partials, accumulate);
        else
            backward<Scalar, d.number, p.number, false>(conv, planes, grad_y, y_strides, winner, winner_strides,
                                                        nullptr, partials, accumulate);
    });
}

#define CONVLOGIC_INSTANTIATE(Scalar)                                                                                \
    template void conv_tile_forward(int, int, const ConvTile<Scalar>&, const Scalar*, Scalar*, const OutputStrides&, \
                                    uint8_t*, const OutputStrides&);                                                 \
    template void conv_tile_backward(int, int, const ConvTile<Scalar>&, const Scalar*, const Scalar*,                \
                                     const OutputStrides&, const uint8_t*, const OutputStrides&, Scalar*, Scalar*,   \
                                     bool);
CONVLOGIC_INSTANTIATE(float)
CONVLOGIC_INSTANTIATE(double)

}  // namespace convlogic::CONVLOGIC_ISA
