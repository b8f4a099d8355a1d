// Trees over feature rows, forward and backward; a dense layer is a forest of single gates.
//
// A thread takes a range of samples and goes through all trees, so gradients of x never race.
#include "kernels.h"
#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

CONVLOGIC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Scalar, int num_gates>
CONVLOGIC_INLINE int64_t coefficient_offset(const Forest<Scalar>& forest, int64_t tree, int gate) {
    const int64_t position = tree * num_gates + gate;
    return 4 * (forest.gate_rows ? forest.gate_rows[position] : position);
}

// The coefficients of one tree side by side.
template <class Scalar, int num_gates>
CONVLOGIC_INLINE void gather_coefficients(const Forest<Scalar>& forest, int64_t tree, Scalar* c) {
    for (int g = 0; g < num_gates; ++g)
        memcpy(c + 4 * g, forest.coefficients + coefficient_offset<Scalar, num_gates>(forest, tree, g), 4 * sizeof *c);
}

// Samples of all features: value (feature, lane) at x[feature * stride + lane], its gradient at the same place of grad_x.
template <class Scalar>
struct Rows {
    const Scalar* x;
    Scalar* grad_x;
    int64_t stride, lanes;
};

template <class Scalar, int depth>
void forward_rows(const Forest<Scalar>& forest, const Rows<Scalar>& rows, Scalar* y) {
    constexpr int num_leaves = 1 << depth, width = vector_width<Scalar>, in_flight = 4;
    for (int64_t k = 0; k < forest.trees; ++k, y += forest.batch) {
        Scalar c[4 * (num_leaves - 1)];
        gather_coefficients<Scalar, num_leaves - 1>(forest, k, c);
        const Scalar* row[num_leaves];
        for (int l = 0; l < num_leaves; ++l) row[l] = rows.x + forest.leaves[k * num_leaves + l] * rows.stride;
        int64_t lane = 0;
        for (; lane + in_flight * width <= rows.lanes; lane += in_flight * width) {
            Vector<Scalar> value[in_flight];
            const auto leaf = [&](int l, int i) { return load(row[l] + lane + i * width); };
            tree<Scalar, depth, in_flight>(c, leaf, value);
            for (int i = 0; i < in_flight; ++i) store(y + lane + i * width, value[i]);
        }
        for (; lane < rows.lanes; lane += width) {
            Vector<Scalar> value[1];
            const auto leaf = [&](int l, int) { return load(row[l] + lane, rows.lanes - lane); };
            tree<Scalar, depth, 1>(c, leaf, value);
            store(y + lane, value[0], rows.lanes - lane);
        }
    }
}

// One vector of one tree. A gradient is added to its row or, where the row has no value yet, written.
template <class Scalar, int depth, bool needs_grad_x>
CONVLOGIC_INLINE void backward_vector(const Scalar* c, const Scalar* const* row, Scalar* const* grad_row,
                                      const bool* is_first, const Scalar* grad_y, int64_t lane, int64_t lanes,
                                      Vector<Scalar> (&sums)[(1 << depth) - 1][4]) {
    constexpr int num_leaves = 1 << depth;
    Vector<Scalar> node[2 * num_leaves], grad[2 * num_leaves];
#pragma GCC unroll 16
    for (int l = 0; l < num_leaves; ++l) node[l] = load(row[l] + lane, lanes);
    tree_backward<Scalar, depth, needs_grad_x>(c, node, load(grad_y + lane, lanes), sums, grad);
    if constexpr (needs_grad_x)
#pragma GCC unroll 16
        for (int l = 0; l < num_leaves; ++l) {
            if (!is_first[l]) grad[l] += load(grad_row[l] + lane, lanes);
            store(grad_row[l] + lane, grad[l], lanes);
        }
}

// grad_y and partials belong to the first lane of rows; a row of partials is one block of lanes. `written` holds a byte
// a feature.
template <class Scalar, int depth, bool needs_grad_x>
void backward_rows(const Forest<Scalar>& forest, const Rows<Scalar>& rows, const Scalar* grad_y, int64_t block_lanes,
                   Scalar* partials, bool accumulate, uint8_t* written) {
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1, width = vector_width<Scalar>;
    if (needs_grad_x) memset(written, 0, size_t(forest.features));
    for (int64_t k = 0; k < forest.trees; ++k, grad_y += forest.batch) {
        Scalar c[4 * num_gates];
        gather_coefficients<Scalar, num_gates>(forest, k, c);
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
        Scalar* block_partials = partials;
        for (int64_t start = 0; start < rows.lanes; start += block_lanes) {
            Vector<Scalar> sums[num_gates][4] = {};
            const int64_t end = start + block_lanes < rows.lanes ? start + block_lanes : rows.lanes;
            int64_t lane = start;
            for (; lane + width <= end; lane += width)
                backward_vector<Scalar, depth, needs_grad_x>(c, row, grad_row, is_first, grad_y, lane, width, sums);
            if (lane < end)
                backward_vector<Scalar, depth, needs_grad_x>(c, row, grad_row, is_first, grad_y, lane, end - lane,
                                                             sums);
            for (int g = 0; g < num_gates; ++g)
                reduce<Scalar>(sums[g], block_partials + coefficient_offset<Scalar, num_gates>(forest, k, g),
                               accumulate);
            block_partials += forest.trees * num_gates * 4;
        }
    }
    if (needs_grad_x)
        for (int64_t feature = 0; feature < forest.features; ++feature)
            if (!written[feature])
                memset(rows.grad_x + feature * rows.stride, 0, size_t(rows.lanes) * sizeof(Scalar));
}

// Many trees on few features: the features' samples are copied, a tile at a time, to where they lie close together.
// Rows a power of two apart share few cache sets.
template <class Scalar>
constexpr int64_t tile_lanes = 128 / sizeof(Scalar);

template <class Scalar>
bool fits_tiles(const Forest<Scalar>& forest) {
    constexpr int64_t budget_bytes = 512 << 10;
    return 2 * 128 * forest.features <= budget_bytes && forest.trees > forest.features / 2;
}

template <class Scalar>
void copy_rows(int64_t features, int64_t lanes, const Scalar* from, int64_t from_stride, Scalar* to, int64_t to_stride) {
    for (int64_t feature = 0; feature < features; ++feature, from += from_stride, to += to_stride)
        if (lanes == tile_lanes<Scalar>)
            memcpy(to, from, 128);
        else
            for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = from[lane];
}

template <class Scalar, int depth>
bool forward_tiles(const Forest<Scalar>& forest, Scalar* y) {
    constexpr int64_t tile = tile_lanes<Scalar>;
    bool complete = true;
#pragma omp parallel for num_threads(forest.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t first = 0; first < forest.batch; first += tile) {
        const int64_t lanes = smaller(tile, forest.batch - first);
        Scalar* x = static_cast<Scalar*>(scratch(size_t(forest.features * 128)));
        complete = complete && x;
        if (!x) continue;
        copy_rows(forest.features, lanes, forest.x + first, forest.batch, x, tile);
        forward_rows<Scalar, depth>(forest, {x, nullptr, tile, lanes}, y + first);
    }
    return complete;
}

template <class Scalar, int depth>
bool backward_tiles(const Forest<Scalar>& forest, const ForestGradients<Scalar>& gradients) {
    constexpr int64_t tile = tile_lanes<Scalar>, num_gates = (1 << depth) - 1;
    const BatchBlocks blocks = forest_blocks(forest.batch);
    const int64_t size = forest.features * tile;
    bool complete = true;
#pragma omp parallel for num_threads(forest.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t block = 0; block < blocks.count; ++block) {
        Scalar* x = static_cast<Scalar*>(scratch(size_t(forest.features * (2 * 128 + 1))));
        complete = complete && x;
        if (!x) continue;
        uint8_t* written = reinterpret_cast<uint8_t*>(x + 2 * size);
        Scalar* partials = gradients.partials + block * forest.trees * num_gates * 4;
        const int64_t start = block * blocks.lanes, end = smaller(start + blocks.lanes, forest.batch);
        for (int64_t first = start; first < end; first += tile) {
            const int64_t lanes = smaller(tile, end - first);
            const Rows<Scalar> rows{x, x + size, tile, lanes};
            copy_rows(forest.features, lanes, forest.x + first, forest.batch, x, tile);
            if (gradients.x) {
                backward_rows<Scalar, depth, true>(forest, rows, gradients.y + first, tile, partials, first > start,
                                                   written);
                copy_rows(forest.features, lanes, rows.grad_x, tile, gradients.x + first, forest.batch);
            } else {
                backward_rows<Scalar, depth, false>(forest, rows, gradients.y + first, tile, partials, first > start,
                                                    nullptr);
            }
        }
    }
    return complete;
}

// Otherwise a thread works on the tensors themselves, on as wide a range of samples as there is for it.
template <class Scalar, int depth>
bool forward(const Forest<Scalar>& forest, Scalar* y) {
    if (fits_tiles(forest)) return forward_tiles<Scalar, depth>(forest, y);
    const BatchBlocks blocks = forest_blocks(forest.batch);
    const int64_t ranges = smaller(forest.threads, blocks.count);
#pragma omp parallel for num_threads(forest.threads) schedule(static)
    for (int64_t range = 0; range < ranges; ++range) {
        const int64_t first = range * blocks.count / ranges * blocks.lanes;
        const int64_t end = smaller((range + 1) * blocks.count / ranges * blocks.lanes, forest.batch);
        forward_rows<Scalar, depth>(forest, {forest.x + first, nullptr, forest.batch, end - first}, y + first);
    }
    return true;
}

template <class Scalar, int depth>
bool backward(const Forest<Scalar>& forest, const ForestGradients<Scalar>& gradients) {
    if (fits_tiles(forest)) return backward_tiles<Scalar, depth>(forest, gradients);
    constexpr int64_t num_gates = (1 << depth) - 1;
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
        Scalar* partials = gradients.partials + first_block * forest.trees * num_gates * 4;
        if (gradients.x)
            backward_rows<Scalar, depth, true>(forest, rows, gradients.y + first, blocks.lanes, partials, false,
                                               written);
        else
            backward_rows<Scalar, depth, false>(forest, rows, gradients.y + first, blocks.lanes, partials, false,
                                                nullptr);
    }
    return complete;
}

}  // namespace

template <class Scalar>
bool forest_forward(const Forest<Scalar>& forest, Scalar* y) {
    switch (forest.depth) {
        case 1: return forward<Scalar, 1>(forest, y);
        case 2: return forward<Scalar, 2>(forest, y);
        case 3: return forward<Scalar, 3>(forest, y);
        default: return forward<Scalar, 4>(forest, y);
    }
}

template <class Scalar>
bool forest_backward(const Forest<Scalar>& forest, const ForestGradients<Scalar>& gradients) {
    switch (forest.depth) {
        case 1: return backward<Scalar, 1>(forest, gradients);
        case 2: return backward<Scalar, 2>(forest, gradients);
        case 3: return backward<Scalar, 3>(forest, gradients);
        default: return backward<Scalar, 4>(forest, gradients);
    }
}

template <class Scalar>
void sum_partials(const Scalar* partials, int64_t blocks, int64_t size, int threads, Scalar* total) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < size; ++i) {
        Scalar sum = 0;
        for (int64_t block = 0; block < blocks; ++block) sum += partials[block * size + i];
        total[i] = sum;
    }
}

template bool forest_forward(const Forest<float>&, float*);
template bool forest_forward(const Forest<double>&, double*);
template bool forest_backward(const Forest<float>&, const ForestGradients<float>&);
template bool forest_backward(const Forest<double>&, const ForestGradients<double>&);
template void sum_partials(const float*, int64_t, int64_t, int, float*);
template void sum_partials(const double*, int64_t, int64_t, int, double*);

}  // namespace convlogic::CONVLOGIC_ISA
