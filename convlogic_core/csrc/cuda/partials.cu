// Sums of partial gradients in a fixed order, which makes results repeat bit for bit.
#include "kernels.h"
#include "launch.h"

namespace convlogic::cuda {
namespace {

constexpr int columns = 32, slices = 8, sum_threads = columns * slices;

// Thread (column, slice) adds every slices-th partial of its column; then slice 0 adds the slices.
__global__ void __launch_bounds__(sum_threads)
    sum_columns(const float* __restrict__ partials, float* __restrict__ total, int64_t size, int64_t count) {
    SHARED_ARRAY(float, sums, sum_threads);
    const int column = threadIdx.x % columns, slice = threadIdx.x / columns;
    const int64_t i = int64_t(blockIdx.x) * columns + column;
    float sum = 0;
    if (i < size) {
#pragma unroll 4
        for (int64_t p = slice; p < count; p += slices) sum += partials[p * size + i];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (slice > 0 || i >= size) return;
#pragma unroll
    for (int s = 1; s < slices; ++s) sum += sums[s * columns + column];
    total[i] = sum;
}

}  // namespace

void sum_partials(const float* partials, int64_t count, int64_t size, float* total, Stream stream) {
    launch("sum_partials", sum_columns, dim3(unsigned(ceil_div(size, columns))), sum_threads, stream, partials, total,
           size, count);
}

}  // namespace convlogic::cuda
