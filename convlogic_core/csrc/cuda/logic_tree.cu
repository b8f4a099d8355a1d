// A convolution of gate trees with pooling: forward, and a backward in two passes through the gradients of the leaves.
#include "tree_forward.h"

namespace convlogic::cuda {
namespace {

// Depth 4 needs more registers a thread than 256 threads can have.
template <int depth>
constexpr int tree_backward_warps = depth < 4 ? 8 : 4;

constexpr int warp_images = 32;

// Steps through cells and 32-image chunks, cells first, without a division a step.
struct Cursor {
    int chunk, row, column;
    int step_chunks, step_rows, step_columns;

    __device__ __forceinline__ Cursor(int first, int step, const TreeShape& s) {
        split(first, s, chunk, row, column);
        split(step, s, step_chunks, step_rows, step_columns);
    }

    static __device__ __forceinline__ void split(int i, const TreeShape& s, int& chunks, int& rows, int& columns) {
        const int all_rows = i / s.out_width;
        columns = i - all_rows * s.out_width;
        chunks = all_rows / s.out_height;
        rows = all_rows - chunks * s.out_height;
    }

    __device__ __forceinline__ void advance(const TreeShape& s) {
        column += step_columns;
        const bool next_row = column >= s.out_width;
        column -= next_row ? s.out_width : 0;
        row += step_rows + next_row;
        const bool next_chunk = row >= s.out_height;
        row -= next_chunk ? s.out_height : 0;
        chunk += step_chunks + next_chunk;
    }
};

// First pass. A warp takes 32 images of one output at a time, all of kernel blockIdx.x: it computes the winning tree
// again, writes the gradients of its leaves, and sums those of its coefficients over all that it and its block take.
template <class T, int depth>
__global__ void __launch_bounds__(tree_backward_warps<depth> * 32)
    tree_backward(const T* __restrict__ x, const int32_t* __restrict__ selection,
                  const float* __restrict__ coefficients, const T* __restrict__ grad_y,
                  const uint8_t* __restrict__ winner, T* __restrict__ grad_leaves, float* __restrict__ partials,
                  TreeShape s, int64_t pitch, int64_t leaf_pitch, int images) {
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1;
    constexpr int warps = tree_backward_warps<depth>, num_sums = (4 * num_gates + 31) / 32;
    SHARED_ARRAY(float, sums, warps * num_sums * 32);
    const int kernel = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int cells = s.out_height * s.out_width;

    Vec<float, 4> c[num_gates];
    float gradients[num_sums * 32] = {};
    uint32_t codes[num_leaves];
#pragma unroll
    for (int g = 0; g < num_gates; ++g) c[g] = Gates<T>{coefficients}[kernel * num_gates + g];
#pragma unroll
    for (int l = 0; l < num_leaves; ++l) codes[l] = uint32_t(selection[kernel * num_leaves + l]);

    const int chunks = (images + warp_images - 1) / warp_images;
    Cursor at_cell(blockIdx.y * warps + warp, gridDim.y * warps, s);
    for (; at_cell.chunk < chunks; at_cell.advance(s)) {
        const int n = at_cell.chunk * warp_images + lane;
        if (n >= images) continue;
        const int cell = at_cell.row * s.out_width + at_cell.column;
        const int64_t out = int64_t(kernel) * cells + cell;
        const int position = winner ? *at(winner, out, pitch, n) : 0;
        const int row = (at_cell.row * s.pool + (position >> 1)) * s.stride_y - s.padding_y;
        const int column = (at_cell.column * s.pool + (position & 1)) * s.stride_x - s.padding_x;
        Vec<float, 1> node[2 * num_leaves - 1];
#pragma unroll
        for (int l = 0; l < num_leaves; ++l) {
            const int leaf_row = row + int(codes[l] >> 8 & 255), leaf_column = column + int(codes[l] & 255);
            node[l].v[0] = 0;
            if (unsigned(leaf_row) < unsigned(s.height) && unsigned(leaf_column) < unsigned(s.width)) {
                const int pixel = (int(codes[l] >> 16) * s.height + leaf_row) * s.width + leaf_column;
                node[l].v[0] = to_value(*at(x, pixel, pitch, n));
            }
        }
        evaluate_tree<depth>(node, c);
        float grad[2 * num_leaves - 1];
        grad[2 * num_leaves - 2] = to_value(*at(grad_y, out, pitch, n));
#pragma unroll
        for (int g = num_gates - 1; g >= 0; --g) {
            const float upstream = grad[num_leaves + g], a = node[2 * g].v[0], b = node[2 * g + 1].v[0];
            grad[2 * g] = upstream * gate_slope_a(c[g].v, b);
            grad[2 * g + 1] = upstream * gate_slope_b(c[g].v, a);
            add_coefficient_gradients(reinterpret_cast<float (&)[4]>(gradients[4 * g]), upstream, a, b);
        }
        if (grad_leaves) {
#pragma unroll
            for (int l = 0; l < num_leaves; ++l)
                assign(*at(grad_leaves, (int64_t(kernel) * num_leaves + l) * cells + cell, leaf_pitch, n), grad[l]);
        }
    }

#pragma unroll
    for (int i = 0; i < num_sums; ++i) sums[(warp * num_sums + i) * 32 + lane] = sum_over_lanes<5>(gradients + 32 * i);
    __syncthreads();
    if (threadIdx.x >= 4 * num_gates) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) total += sums[w * num_sums * 32 + threadIdx.x];
    partials[(int64_t(blockIdx.y) * s.kernels + kernel) * 4 * num_gates + threadIdx.x] = total;
}

constexpr int input_images_a_lane = 4;

// Second pass. A row of lanes takes one pixel and walks the leaves that read its channel. Four rows, a warp, are a 2x2
// patch: with a 2x2 pool they read mostly the same outputs.
template <class T, bool whole, bool unit_stride>
__global__ void __launch_bounds__(block_threads)
    tree_backward_input(const T* __restrict__ grad_leaves, const uint8_t* __restrict__ winner,
                        const int32_t* __restrict__ start, const int32_t* __restrict__ edges, T* __restrict__ grad_x,
                        TreeShape s, int64_t pitch, int64_t leaf_pitch, int images) {
    constexpr int size = input_images_a_lane;
    const auto [item, n] = place<size>();
    const int patches_across = (s.width + 1) / 2, patches = (s.height + 1) / 2 * patches_across;
    const int channel = item / (4 * patches), patch = item / 4 - channel * patches;
    const int patch_row = patch / patches_across;
    const int row = 2 * patch_row + (item >> 1 & 1), column = 2 * (patch - patch_row * patches_across) + (item & 1);
    if (channel >= s.channels || row >= s.height || column >= s.width || n >= images) return;
    const int left = images - n, cells = s.out_height * s.out_width, pool_shift = s.pool - 1;
    Vec<float, size> sum{};
    const int end = start[channel + 1];
#pragma unroll 4
    for (int edge = start[channel]; edge < end; ++edge) {
        const auto [leaf, place_in_window] = reinterpret_cast<const Vec<int32_t, 2>*>(edges)[edge].v;
        // the window that has this pixel there, before the pool
        int y = row + s.padding_y - (place_in_window >> 8), x = column + s.padding_x - (place_in_window & 255);
        bool reads = y >= 0 && x >= 0;
        if constexpr (!unit_stride) {
            reads = reads && y % s.stride_y == 0 && x % s.stride_x == 0;
            y /= s.stride_y;
            x /= s.stride_x;
        }
        const int out_row = y >> pool_shift, out_column = x >> pool_shift;
        if (!reads || out_row >= s.out_height || out_column >= s.out_width) continue;
        const int cell = out_row * s.out_width + out_column;
        const auto grad = load<size, whole>(at(grad_leaves, int64_t(leaf) * cells + cell, leaf_pitch, n), left);
        if (winner) {
            const int position = (y & 1) * 2 + (x & 1);
            const int64_t out = int64_t(leaf >> s.depth) * cells + cell;
            Vec<uint8_t, size> won{};
            if constexpr (whole) {
                won = *reinterpret_cast<const Vec<uint8_t, size>*>(at(winner, out, pitch, n));
            } else {
#pragma unroll
                for (int i = 0; i < size; ++i)
                    if (i < left) won.v[i] = at(winner, out, pitch, n)[i];
            }
#pragma unroll
            for (int i = 0; i < size; ++i) sum.v[i] += won.v[i] == position ? grad.v[i] : 0.f;
        } else {
#pragma unroll
            for (int i = 0; i < size; ++i) sum.v[i] += grad.v[i];
        }
    }
    store<whole>(at(grad_x, (channel * s.height + row) * s.width + column, pitch, n), sum, left);
}

template <class T>
void launch_backward_input(const TreeConv<T>& conv, FanOut fan_out, const TreeConvGradients<T>& gradients,
                           int64_t first, int64_t images, Stream stream) {
    constexpr int size = input_images_a_lane;
    const TreeShape& s = conv.shape;
    const bool unit_stride = s.stride_y == 1 && s.stride_x == 1;
    const bool whole = conv.batch % size == 0 && gradients.chunk % size == 0 && is_aligned(gradients.winner, size) &&
                       is_aligned(gradients.leaves, size) && is_aligned(gradients.x, size);
    const int64_t pixels = 4 * int64_t(s.channels) * ceil_div(s.height, 2) * ceil_div(s.width, 2);
    const auto kernel =
        whole ? (unit_stride ? tree_backward_input<T, true, true> : tree_backward_input<T, true, false>)
              : (unit_stride ? tree_backward_input<T, false, true> : tree_backward_input<T, false, false>);
    for_each_grid(images, lanes_a_row * size, [&](int64_t from, int count) {
        launch("logic_tree_backward_input", kernel, grid_of(pixels, count, size), block_threads, stream,
               gradients.leaves + from, gradients.winner ? gradients.winner + first + from : nullptr, fan_out.start,
               fan_out.edges, gradients.x + first + from, s, conv.batch, gradients.chunk, count);
    });
}

}  // namespace

int64_t num_tree_partials(const TreeShape& s, int64_t images) {
    if (!s.kernels) return 0;
    const int warps = s.depth < 4 ? tree_backward_warps<1> : tree_backward_warps<4>;
    const int64_t steps = int64_t(s.out_height) * s.out_width * ceil_div(images, warp_images);
    const int64_t fills_device = ceil_div(2048, s.kernels), keeps_busy = ceil_div(steps, 4 * warps);
    return fills_device < keeps_busy ? fills_device : keeps_busy;
}

template <class T>
void logic_tree_forward(const TreeConv<T>& conv, T* y, uint8_t* winner, Stream stream) {
    launch_tree_forward("logic_tree_forward", conv.x, conv.selection, Gates<T>{conv.coefficients}, y, winner,
                        conv.shape, conv.batch, stream);
}

template <class T>
void logic_tree_backward(const TreeConv<T>& conv, FanOut fan_out, const TreeConvGradients<T>& gradients,
                         Stream stream) {
    const TreeShape& s = conv.shape;
    const int64_t parts = num_tree_partials(s, gradients.chunk);
    const int64_t coefficients = (int64_t(4) << s.depth) * s.kernels - 4 * int64_t(s.kernels);
    int64_t num_partials = 0;
    for (int64_t first = 0; first < conv.batch; first += gradients.chunk, num_partials += parts) {
        const int64_t images = conv.batch - first < gradients.chunk ? conv.batch - first : gradients.chunk;
        with_depth(s.depth, [&](auto constant) {
            constexpr int depth = decltype(constant)::value;
            launch("logic_tree_backward", tree_backward<T, depth>, dim3(unsigned(s.kernels), unsigned(parts)),
                   unsigned(tree_backward_warps<depth> * 32), stream, conv.x + first, conv.selection, conv.coefficients,
                   gradients.y + first, gradients.winner ? gradients.winner + first : nullptr,
                   gradients.x ? gradients.leaves : nullptr, gradients.partials + num_partials * coefficients, s,
                   conv.batch, gradients.chunk, int(images));
        });
        if (gradients.x) launch_backward_input(conv, fan_out, gradients, first, images, stream);
    }
    sum_partials(gradients.partials, num_partials, coefficients, gradients.coefficients, stream);
}

template void logic_tree_forward(const TreeConv<float>&, float*, uint8_t*, Stream);
template void logic_tree_forward(const TreeConv<BFloat16>&, BFloat16*, uint8_t*, Stream);
template void logic_tree_backward(const TreeConv<float>&, FanOut, const TreeConvGradients<float>&, Stream);
template void logic_tree_backward(const TreeConv<BFloat16>&, FanOut, const TreeConvGradients<BFloat16>&, Stream);

}  // namespace convlogic::cuda
