// Discrete evaluation of packed bits, 32 images a word: packing, the forward kernels over GF(2), and class sums.
#include "dense_forward.h"
#include "tree_forward.h"

namespace convlogic::cuda {
namespace {

constexpr int pack_threads = 256;
constexpr int word_bits = 32, sum_words = 32, sum_slices = 8;
constexpr int num_planes = 8, max_counted = (1 << num_planes) - 1;

const Bits* as_bits(const uint32_t* words) {
    return reinterpret_cast<const Bits*>(words);
}

// A thread makes the words of one feature that its grid row names; neighbours read neighbouring bytes.
__global__ void __launch_bounds__(pack_threads) pack(const uint8_t* __restrict__ x, uint32_t* __restrict__ words,
                                                     int64_t images, int64_t features, int64_t num_words) {
    const int64_t feature = int64_t(blockIdx.x) * pack_threads + threadIdx.x;
    if (feature >= features) return;
    for (int64_t word = blockIdx.y; word < num_words; word += gridDim.y) {
        const int64_t first = word * word_bits;
        uint32_t bits = 0;
#pragma unroll 8
        for (int bit = 0; bit < word_bits; ++bit)
            if (first + bit < images) bits |= uint32_t(x[(first + bit) * features + feature] == 1) << bit;
        words[feature * num_words + word] = bits;
    }
}

// A block takes 32 words of one class: thread (word, slice) counts every sum_slices-th of the class's features, first
// bit-sliced (plane p holds bit p of 32 counts), then in shared memory.
__global__ void __launch_bounds__(sum_words* sum_slices)
    class_sums(const uint32_t* __restrict__ words, int32_t* __restrict__ sums, int64_t num_words, int64_t class_size,
               int64_t classes, int64_t images) {
    SHARED_ARRAY(int32_t, counts, sum_slices * word_bits * sum_words);
    const int word = threadIdx.x % sum_words, slice = threadIdx.x / sum_words;
    const int64_t first_word = int64_t(blockIdx.x) * sum_words, row = blockIdx.y * class_size;
    int32_t* own = counts + slice * word_bits * sum_words + word;
#pragma unroll
    for (int bit = 0; bit < word_bits; ++bit) own[bit * sum_words] = 0;
    if (first_word + word < num_words) {
        const uint32_t* from = words + row * num_words + first_word + word;
        for (int64_t i = slice; i < class_size;) {
            uint32_t plane[num_planes] = {};
#pragma unroll 4
            for (int counted = 0; counted < max_counted && i < class_size; ++counted, i += sum_slices) {
                uint32_t carry = from[i * num_words];
#pragma unroll
                for (int p = 0; p < num_planes; ++p) {
                    const uint32_t next = plane[p] & carry;
                    plane[p] ^= carry;
                    carry = next;
                }
            }
#pragma unroll
            for (int bit = 0; bit < word_bits; ++bit) {
                int32_t count = 0;
#pragma unroll
                for (int p = 0; p < num_planes; ++p) count |= int32_t(plane[p] >> bit & 1) << p;
                own[bit * sum_words] += count;
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int bit = slice; bit < word_bits; bit += sum_slices) {
        int32_t total = 0;
#pragma unroll
        for (int s = 0; s < sum_slices; ++s) total += counts[(s * word_bits + bit) * sum_words + word];
        const int64_t image = (first_word + word) * word_bits + bit;
        if (image < images) sums[image * classes + blockIdx.y] = total;
    }
}

}  // namespace

void pack_bits(const uint8_t* x, uint32_t* words, int64_t images, int64_t features, int64_t num_words, Stream stream) {
    const dim3 grid(unsigned(ceil_div(features, pack_threads)),
                    unsigned(num_words < max_grid_y ? num_words : max_grid_y));
    launch("pack_bits", pack, grid, pack_threads, stream, x, words, images, features, num_words);
}

void packed_dense(const uint32_t* words, const int32_t* wiring, const int64_t* gates, uint32_t* out, int64_t num_words,
                  int64_t num_gates, Stream stream) {
    launch_dense_forward("packed_dense", as_bits(words), wiring, Gates<Bits>{gates}, reinterpret_cast<Bits*>(out),
                         num_gates, num_words, stream);
}

void packed_tree(const uint32_t* words, const int32_t* selection, const int64_t* gates, uint32_t* out,
                 int64_t num_words, const TreeShape& shape, Stream stream) {
    launch_tree_forward("packed_tree", as_bits(words), selection, Gates<Bits>{gates}, reinterpret_cast<Bits*>(out),
                        nullptr, shape, num_words, stream);
}

void packed_class_sums(const uint32_t* words, int32_t* sums, int64_t num_words, int64_t features, int64_t classes,
                       int64_t images, Stream stream) {
    const dim3 grid(unsigned(ceil_div(num_words, sum_words)), unsigned(classes));
    launch("packed_class_sums", class_sums, grid, sum_words * sum_slices, stream, words, sums, num_words,
           features / classes, classes, images);
}

}  // namespace convlogic::cuda
