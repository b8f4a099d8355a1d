// The kernels of one tile of a convolution: several window positions at a time through one tree.
#include "conv_tile.h"

#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

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
                        store_bytes<Scalar>(won + lane, index);
                    }
                }
                corner += pool * right, out += y_strides.column, won += winner_strides.column;
            }
        }
    }
}

// A value that the compiler is to load once rather than with every use: loads bound these loops.
template <class V>
CONVLOGIC_INLINE V in_register(V v) {
#ifdef CONVLOGIC_X86_VECTORS
    asm("" : "+v"(v));
#endif
    return v;
}

// Some cells of one kernel at a time, in three passes: the gates next to the leaves at the winning positions, the tree
// above them, then those gates' gradients. What goes from pass to pass lies in arrays that fit the innermost cache; a
// gate's coefficients and the sums of their gradients stay in registers for the length of a pass.
template <class Scalar, int depth, int pool, bool needs_grad_x>
void backward(const ConvTile<Scalar>& conv, const Scalar* planes, const Scalar* grad_y, const OutputStrides& y_strides,
              const uint8_t* winner, const OutputStrides& winner_strides, Scalar* grad_x, Scalar* partials,
              bool accumulate) {
    constexpr int width = vector_width<Scalar>, tile = tile_lanes<Scalar>, vectors_a_cell = tile / width;
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1, leaf_gates = num_leaves / 2;
    constexpr int max_cells = depth < 4 ? 12 : 6, max_vectors = max_cells * vectors_a_cell;
    const int64_t down = conv.down * tile, right = conv.right * tile, num_cells = conv.out_height * conv.out_width;
    const int64_t chunks = (num_cells + max_cells - 1) / max_cells;
    alignas(64) Vector<Scalar> leaf[num_leaves][max_vectors];      // at the winners
    alignas(64) Vector<Scalar> value[leaf_gates][max_vectors];     // of the gates next to them
    alignas(64) Vector<Scalar> gradient[leaf_gates][max_vectors];  // of these values
    Mask<Scalar> winners[max_vectors];
    int64_t corner[max_vectors];
    const auto won = [&](int i, int position) { return winners[i] == position; };
    for (int64_t k = 0; k < conv.kernels; ++k) {
        const Scalar* c = conv.coefficients + k * 4 * num_gates;
        int64_t leaves[num_leaves];
        for (int l = 0; l < num_leaves; ++l) leaves[l] = int64_t(conv.leaves[(k << depth) + l]) * tile;
        GateSums<Scalar> sums[num_gates];
        int64_t row = 0, column = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int cells = int((chunk + 1) * num_cells / chunks - chunk * num_cells / chunks);
            const int vectors = cells * vectors_a_cell;
            const Scalar* upstream[max_vectors];
            for (int i = 0; i < vectors; i += vectors_a_cell) {
                const Scalar* from = grad_y + k * y_strides.kernel + row * y_strides.row + column * y_strides.column;
                const uint8_t* place =
                    winner + k * winner_strides.kernel + row * winner_strides.row + column * winner_strides.column;
                for (int v = 0; v < vectors_a_cell; ++v) {
                    corner[i + v] = row * pool * down + column * pool * right + v * width;
                    upstream[i + v] = from + v * width;
                    if constexpr (pool > 1) winners[i + v] = load_bytes<Scalar>(place + v * width);
                }
                if (++column == conv.out_width) column = 0, ++row;
            }
#pragma GCC unroll 1
            for (int i = 0; i < vectors; ++i) {
                const Mask<Scalar> second = won(i, 1), third = won(i, 2), fourth = won(i, 3);
#pragma GCC unroll 16
                for (int l = 0; l < num_leaves; ++l) {
                    const Scalar* from = planes + corner[i] + leaves[l];
                    Vector<Scalar> v = load(from);
                    if constexpr (pool > 1) {
                        v = select<Scalar>(second, load(from + right), v);
                        v = select<Scalar>(third, load(from + down), v);
                        v = select<Scalar>(fourth, load(from + down + right), v);
                    }
                    leaf[l][i] = v;
                    if (depth > 1 && l % 2) value[l / 2][i] = gate(c + 4 * (l / 2), leaf[l - 1][i], v);
                }
            }
#pragma GCC unroll 1
            for (int i = 0; i < vectors && depth > 1; ++i) {
                const Vector<Scalar> root[1] = {load(upstream[i])};
                tree_backward<Scalar, depth - (depth > 1), 1, true>(
                    c + 4 * leaf_gates, [&](int g, int) { return value[g][i]; }, root,
                    [&](int g, int, Vector<Scalar> v) { gradient[g][i] = v; },
                    [&](auto gate, auto is_root, const auto& grad, const auto& a, const auto& b) {
                        sums[(leaf_gates + gate.number) % num_gates].template add<is_root.number>(grad[0], a[0], b[0]);
                    });
            }
#pragma GCC unroll 1
            for (int i = 0; i < vectors; ++i) {
                const Mask<Scalar> first = won(i, 0), second = won(i, 1), third = won(i, 2), fourth = won(i, 3);
#pragma GCC unroll 8
                for (int g = 0; g < leaf_gates; ++g) {
                    const Vector<Scalar> a = in_register(leaf[2 * g][i]), b = in_register(leaf[2 * g + 1][i]);
                    const Vector<Scalar> grad = in_register(depth > 1 ? gradient[g][i] : load(upstream[i]));
                    sums[g].template add<depth == 1>(grad, a, b);
                    if constexpr (!needs_grad_x) continue;
                    const auto add = [](Scalar* to, Vector<Scalar> v) { store(to, load(to) + v); };
#pragma GCC unroll 2
                    for (int side = 0; side < 2; ++side) {
                        const Vector<Scalar> v =
                            grad * (side ? gate_slope_b(c + 4 * g, a) : gate_slope_a(c + 4 * g, b));
                        Scalar* to = grad_x + corner[i] + leaves[2 * g + side];
                        if constexpr (pool == 1) {
                            add(to, v);
                        } else {
                            add(to, keep<Scalar>(first, v));
                            add(to + right, keep<Scalar>(second, v));
                            add(to + down, keep<Scalar>(third, v));
                            add(to + down + right, keep<Scalar>(fourth, v));
                        }
                    }
                }
            }
        }
        Four<Scalar> totals[num_gates];
        for (int g = 0; g < num_gates; ++g) totals[g] = sums[g].total();
        write_totals<Scalar>(totals, partials + 4 * k * num_gates, accumulate);
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
