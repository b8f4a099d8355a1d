// Trees over feature rows, forward and backward; a dense layer is a forest of single gates.
//
// A thread takes a range of samples and goes through all trees, so gradients of x never race.
#include "forest_tile.h"
#include "kernels.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

CONVLOGIC_INLINE int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// The row of y that the trees of a group are summed in: written by the first, added to by the others.
template <class Scalar>
CONVLOGIC_INLINE void put(Scalar* row, bool is_first, Vector<Scalar> value, int64_t lanes) {
    store(row, is_first ? value : value + load(row, lanes), lanes);
}

// The samples first .. end - 1.
template <class Scalar, int depth>
void forward_range(const Forest<Scalar>& forest, int64_t first, int64_t end, Scalar* y) {
    constexpr int num_leaves = 1 << depth, width = vector_width<Scalar>, in_flight = 4;
    int64_t group = 0, in_group = 0;
    for (int64_t k = 0; k < forest.trees; ++k) {
        const Scalar* c = forest.coefficients + k * 4 * (num_leaves - 1);
        const Scalar* row[num_leaves];
        for (int l = 0; l < num_leaves; ++l) row[l] = forest.x + forest.leaves[k * num_leaves + l] * forest.batch;
        Scalar* out = y + group * forest.batch;
        const bool is_first = in_group == 0;
        if (++in_group == forest.group) in_group = 0, ++group;
        int64_t lane = first;
        for (; lane + in_flight * width <= end; lane += in_flight * width) {
            Vector<Scalar> value[in_flight];
            const auto leaf = [&](int l, int i) { return load(row[l] + lane + i * width); };
            tree<Scalar, depth, in_flight>(c, leaf, value);
            for (int i = 0; i < in_flight; ++i) put<Scalar>(out + lane + i * width, is_first, value[i], width);
        }
        for (; lane < end; lane += width) {
            Vector<Scalar> value[1];
            const auto leaf = [&](int l, int) { return load(row[l] + lane, end - lane); };
            tree<Scalar, depth, 1>(c, leaf, value);
            put<Scalar>(out + lane, is_first, value[0], end - lane);
        }
    }
}

// Samples of all features and room for their gradients: sample i of feature f at [f * stride + i].
template <class Scalar>
struct Rows {
    const Scalar* x;
    Scalar* grad_x;
    int64_t stride, lanes;
};

// Backward of one tree for some whole vectors of samples from `first` on, or for one with so many lanes. A gradient is
// added to its row or, where the row has no value yet, written.
template <class Scalar, int depth, int in_flight, bool needs_grad_x, int num_gates>
CONVLOGIC_INLINE void backward_vectors(const Scalar* c, const Scalar* const* row, Scalar* const* grad_row,
                                       const bool* is_first, const Scalar* grad_y, int64_t first, int64_t lanes,
                                       GateSums<Scalar> (&sums)[num_gates]) {
    constexpr int width = vector_width<Scalar>;
    Vector<Scalar> root[in_flight];
    for (int i = 0; i < in_flight; ++i) root[i] = load(grad_y + first + i * width, lanes);
    tree_backward<Scalar, depth, in_flight, needs_grad_x>(
        c, [&](int l, int i) { return load(row[l] + first + i * width, lanes); }, root,
        [&](int l, int i, Vector<Scalar> v) {
            Scalar* to = grad_row[l] + first + i * width;
            store(to, is_first[l] ? v : v + load(to, lanes), lanes);
        },
        [&](auto gate, auto is_root, const auto& grad, const auto& a, const auto& b) {
            for (int i = 0; i < in_flight; ++i) sums[gate.number].template add<is_root.number>(grad[i], a[i], b[i]);
        });
}

// grad_y and partials begin with the first sample of rows; `written` holds a byte a feature.
template <class Scalar, int depth, bool needs_grad_x>
void backward_rows(const Forest<Scalar>& forest, const Rows<Scalar>& rows, const Scalar* grad_y, int64_t block_lanes,
                   Scalar* partials, uint8_t* written) {
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1, width = vector_width<Scalar>;
    constexpr int in_flight = depth < 3 ? 4 : 2;
    if (needs_grad_x) memset(written, 0, size_t(forest.features));
    int64_t group = 0, in_group = 0;
    for (int64_t k = 0; k < forest.trees; ++k) {
        const Scalar* upstream = grad_y + group * forest.batch;
        if (++in_group == forest.group) in_group = 0, ++group;
        for (int64_t lane = 0; lane < rows.lanes; lane += 64 / int64_t(sizeof(Scalar)))
            __builtin_prefetch(upstream + 16 * forest.batch + lane);
        const Scalar* c = forest.coefficients + k * 4 * num_gates;
        const Scalar* row[num_leaves];
        Scalar* grad_row[num_leaves];
        bool is_first[num_leaves];
        for (int l = 0; l < num_leaves; ++l) {
            const int32_t feature = forest.leaves[k * num_leaves + l];
            row[l] = rows.x + feature * rows.stride;
            if constexpr (needs_grad_x) {
                grad_row[l] = rows.grad_x + feature * rows.stride;
                is_first[l] = !written[feature];
                written[feature] = 1;
            }
        }
        for (int64_t start = 0; start < rows.lanes; start += block_lanes) {
            const int64_t end = smaller(start + block_lanes, rows.lanes);
            GateSums<Scalar> sums[num_gates];
            int64_t lane = start;
            for (; lane + in_flight * width <= end; lane += in_flight * width)
                backward_vectors<Scalar, depth, in_flight, needs_grad_x>(c, row, grad_row, is_first, upstream, lane,
                                                                         width, sums);
            for (; lane < end; lane += width)
                backward_vectors<Scalar, depth, 1, needs_grad_x>(c, row, grad_row, is_first, upstream, lane, end - lane,
                                                                 sums);
            Four<Scalar> totals[num_gates];
            for (int g = 0; g < num_gates; ++g) totals[g] = sums[g].total();
            write_totals<Scalar>(totals, partials + (start / block_lanes * forest.trees + k) * num_gates * 4, false);
        }
    }
    if (!needs_grad_x) return;
    for (int64_t feature = 0; feature < forest.features; ++feature)
        if (!written[feature]) memset(rows.grad_x + feature * rows.stride, 0, size_t(rows.lanes) * sizeof(Scalar));
}

// Where a tile of all features and their gradients fits the cache, samples are copied into one, a block at a time: rows
// that lie a power of two apart would share few cache sets.
constexpr int64_t tile_budget_bytes = 400 << 10;

template <class Scalar>
void copy_rows(int64_t features, int64_t lanes, const Scalar* from, int64_t from_stride, Scalar* to,
               int64_t to_stride) {
    for (int64_t feature = 0; feature < features; ++feature, from += from_stride, to += to_stride)
        if (lanes * int64_t(sizeof(Scalar)) == forest_tile_bytes)
            memcpy(to, from, forest_tile_bytes);
        else
            for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = from[lane];
}

template <class Scalar, int depth>
bool backward_tiles(const Forest<Scalar>& forest, const ForestGradients<Scalar>& gradients) {
    constexpr int64_t tile = forest_tile_bytes / sizeof(Scalar), num_gates = (1 << depth) - 1;
    const BatchBlocks blocks = forest_blocks(forest.batch);
    const size_t plane_bytes = size_t(forest.features * forest_tile_bytes);
    bool complete = true;
#pragma omp parallel for num_threads(forest.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t block = 0; block < blocks.count; ++block) {
        Scalar* x = static_cast<Scalar*>(scratch(2 * plane_bytes + forest_tile_bytes));
        complete = complete && x;
        if (!x) continue;
        Scalar *grad_x = x + forest.features * tile, *ragged = grad_x + forest.features * tile;
        Scalar* partials = gradients.partials + block * forest.trees * num_gates * 4;
        const int64_t start = block * blocks.lanes, end = smaller(start + blocks.lanes, forest.batch);
        for (int64_t first = start; first < end; first += tile) {
            const int64_t lanes = smaller(tile, end - first);
            const Scalar* grad_y = gradients.y + first;
            if (lanes < tile) memset(x, 0, plane_bytes);
            memset(grad_x, 0, plane_bytes + forest_tile_bytes);
            copy_rows(forest.features, lanes, forest.x + first, forest.batch, x, tile);
            for (int64_t group = 0; group < forest.trees / forest.group; ++group, grad_y += forest.batch) {
                __builtin_prefetch(grad_y + 16 * forest.batch);
                __builtin_prefetch(grad_y + 16 * forest.batch + tile / 2);
                for (int64_t lane = 0; lane < lanes && lanes < tile; ++lane) ragged[lane] = grad_y[lane];
                const Scalar* upstream = lanes < tile ? ragged : grad_y;
                const int64_t tree = group * forest.group, gate = tree * num_gates;
                forest_tile_backward<Scalar, depth>(
                    forest.coefficients + 4 * gate, forest.leaves + (tree << depth), forest.group, x,
                    [=](int64_t) { return upstream; }, grad_x, partials + 4 * gate, first > start);
            }
            copy_rows(forest.features, lanes, grad_x, tile, gradients.x + first, forest.batch);
        }
    }
    return complete;
}

template <class Scalar, int depth>
bool forward_tiles(const Forest<Scalar>& forest, Scalar* y) {
    constexpr int64_t tile = forest_tile_bytes / sizeof(Scalar), width = vector_width<Scalar>;
    bool complete = true;
#pragma omp parallel for num_threads(forest.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t first = 0; first < forest.batch; first += tile) {
        Scalar* x = static_cast<Scalar*>(scratch(size_t(forest.features * forest_tile_bytes)));
        complete = complete && x;
        if (!x) continue;
        const int64_t lanes = smaller(tile, forest.batch - first);
        if (lanes < tile) memset(x, 0, size_t(forest.features * forest_tile_bytes));
        copy_rows(forest.features, lanes, forest.x + first, forest.batch, x, tile);
        for (int64_t group = 0; group < forest.trees / forest.group; ++group) {
            const int64_t tree = group * forest.group;
            Scalar* out = y + group * forest.batch + first;
            forest_tile_forward<Scalar, depth>(forest.coefficients + tree * 4 * ((1 << depth) - 1),
                                               forest.leaves + (tree << depth), forest.group, x,
                                               [=](int64_t k, int i, Vector<Scalar> value) {
                                                   const int64_t left = lanes - i * width;
                                                   if (left > 0) put<Scalar>(out + i * width, k == 0, value, left);
                                               });
        }
    }
    return complete;
}

template <class Scalar, int depth>
bool forward(const Forest<Scalar>& forest, Scalar* y) {
    if (depth > 1 && forest_tile_bytes * forest.features <= tile_budget_bytes)
        return forward_tiles<Scalar, depth>(forest, y);
    const BatchBlocks blocks = forest_blocks(forest.batch);
    const int64_t ranges = smaller(forest.threads, blocks.count);
#pragma omp parallel for num_threads(forest.threads) schedule(static)
    for (int64_t range = 0; range < ranges; ++range) {
        const int64_t first = range * blocks.count / ranges * blocks.lanes;
        const int64_t end = smaller((range + 1) * blocks.count / ranges * blocks.lanes, forest.batch);
        forward_range<Scalar, depth>(forest, first, end, y);
    }
    return true;
}

template <class Scalar, int depth>
bool backward(const Forest<Scalar>& forest, const ForestGradients<Scalar>& gradients) {
    if (gradients.x && 2 * forest_tile_bytes * forest.features <= tile_budget_bytes)
        return backward_tiles<Scalar, depth>(forest, gradients);
    const BatchBlocks blocks = forest_blocks(forest.batch);
    const int64_t ranges = smaller(forest.threads, blocks.count);
    bool complete = true;
#pragma omp parallel for num_threads(forest.threads) schedule(static) reduction(&& : complete)
    for (int64_t range = 0; range < ranges; ++range) {
        uint8_t* written = static_cast<uint8_t*>(scratch(size_t(forest.features)));
        complete = complete && written;
        if (!written) continue;
        const int64_t first_block = range * blocks.count / ranges, first = first_block * blocks.lanes;
        const int64_t end = smaller((range + 1) * blocks.count / ranges * blocks.lanes, forest.batch);
        const Rows<Scalar> rows{forest.x + first, gradients.x + first, forest.batch, end - first};
        Scalar* partials = gradients.partials + first_block * forest.trees * 4 * ((1 << depth) - 1);
        if (gradients.x)
            backward_rows<Scalar, depth, true>(forest, rows, gradients.y + first, blocks.lanes, partials, written);
        else
            backward_rows<Scalar, depth, false>(forest, rows, gradients.y + first, blocks.lanes, partials, written);
    }
    return complete;
}

}  // namespace

template <class Scalar>
bool forest_forward(const Forest<Scalar>& forest, Scalar* y) {
    return with_depth(forest.depth, [&](auto depth) { return forward<Scalar, depth.number>(forest, y); });
}

template <class Scalar>
bool forest_backward(const Forest<Scalar>& forest, const ForestGradients<Scalar>& gradients) {
    return with_depth(forest.depth, [&](auto depth) { return backward<Scalar, depth.number>(forest, gradients); });
}

template <class Scalar>
void sum_partials(const Scalar* partials, int64_t blocks, int64_t trees, int gates, const Scalar* coefficients,
                  const int32_t* rows, int threads, Scalar* total) {
    constexpr int max_gates = 15;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tree = 0; tree < trees; ++tree) {
        const int64_t first = tree * gates;
        Scalar sums[4 * max_gates] = {};
        for (int64_t block = 0; block < blocks; ++block)
            for (int i = 0; i < 4 * gates; ++i) sums[i] += partials[(block * trees * gates + first) * 4 + i];
        complete_sums<Scalar>(gates, coefficients + 4 * first, sums);
        for (int g = 0; g < gates; ++g)
            memcpy(total + 4 * int64_t(rows ? rows[first + g] : first + g), sums + 4 * g, 4 * sizeof(Scalar));
    }
}

template bool forest_forward(const Forest<float>&, float*);
template bool forest_forward(const Forest<double>&, double*);
template bool forest_backward(const Forest<float>&, const ForestGradients<float>&);
template bool forest_backward(const Forest<double>&, const ForestGradients<double>&);
template void sum_partials(const float*, int64_t, int64_t, int, const float*, const int32_t*, int, float*);
template void sum_partials(const double*, int64_t, int64_t, int, const double*, const int32_t*, int, double*);

}  // namespace convlogic::CONVLOGIC_ISA
