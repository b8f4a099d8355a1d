// What the CUDA bindings call: functions that put kernels on a stream and return.
//
// Memory is batch-innermost: x is [feature][batch], images are [channel][row][column][batch]. All memory belongs to the
// caller; nothing here allocates or waits. Coefficients and all sums are float, activations float or bfloat16.
// A failed launch is a std::runtime_error with the kernel's name.
#pragma once

#include <cstdint>

struct CUstream_st;
struct __nv_bfloat16;

namespace convlogic::cuda {

using Stream = CUstream_st*;

// Partial sums of coefficient gradients, one a chunk of the batch; the count depends on sizes alone.
int64_t num_dense_chunks(int64_t batch, bool bfloat16);

template <class T>
struct Dense {
    const T* x;
    const float* coefficients;  // [gates][4]
    int64_t batch, features, gates;
};

// The gates that read feature f are edges start[f] .. start[f + 1] - 1: {2 * gate + side, the other feature}.
struct FanOut {
    const int32_t *start, *edges;
};

template <class T>
struct DenseGradients {
    const T* y;
    T* x;                            // null: not computed
    float *partials, *coefficients;  // partials: [num_dense_chunks][gates][4]
};

// wiring: [gates][2], the features a and b.
template <class T>
void logic_dense_forward(const Dense<T>&, const int32_t* wiring, T* y, Stream);
template <class T>
void logic_dense_backward(const Dense<T>&, FanOut, const DenseGradients<T>&, Stream);

// Sizes of a tree convolution; everything but the batch fits 31 bits.
struct TreeShape {
    int channels, height, width, kernels, depth, pool;
    int stride_y, stride_x, padding_y, padding_x, out_height, out_width;  // out_*: after the pool
};

template <class T>
struct TreeConv {
    const T* x;
    const int32_t* selection;   // [kernels][leaves], channel << 16 | row << 8 | column
    const float* coefficients;  // [kernels][gates][4]
    int64_t batch;
    TreeShape shape;
};

template <class T>
struct TreeConvGradients {
    const T* y;
    const uint8_t* winner;  // the place of each output in its pool block
    T* x;                   // null: not computed
    T* leaves;              // [kernels][leaves][out_height][out_width][chunk], written and read again
    float *partials, *coefficients;
    int64_t chunk;  // images at a time, a multiple of 32 or the batch
};

// Partial sums a chunk of images; partials: [chunks][num_tree_partials][kernels][gates][4].
int64_t num_tree_partials(const TreeShape&, int64_t images);

template <class T>
void logic_tree_forward(const TreeConv<T>&, T* y, uint8_t* winner, Stream);

// fan_out: the leaves that read channel c, {kernel * leaves + leaf, row << 8 | column}.
template <class T>
void logic_tree_backward(const TreeConv<T>&, FanOut fan_out, const TreeConvGradients<T>&, Stream);

// The coefficients [gates][4] of softmax (16 logits a gate) or of four sigmoids (4 logits a gate).
void coefficients_forward(const float* logits, int64_t gates, int num_logits, float* coefficients, Stream);
void coefficients_backward(const float* grad_coefficients, const float* logits, int64_t gates, int num_logits,
                           float* grad_logits, Stream);

// Words [features][num_words] of bytes [images][features]; a byte that is not one is a zero, and so are unused bits.
void pack_bits(const uint8_t* x, uint32_t* words, int64_t images, int64_t features, int64_t num_words, Stream);

// Bits of 32 images a word. gates are numbers 0..15; words outside the image are zero.
void packed_dense(const uint32_t* words, const int32_t* wiring, const int64_t* gates, uint32_t* out, int64_t num_words,
                  int64_t num_gates, Stream);
void packed_tree(const uint32_t* words, const int32_t* selection, const int64_t* gates, uint32_t* out,
                 int64_t num_words, const TreeShape&, Stream);

// sums: [images][classes], the set bits among each class's share of the features.
void packed_class_sums(const uint32_t* words, int32_t* sums, int64_t num_words, int64_t features, int64_t classes,
                       int64_t images, Stream);

// total[i] = the sum over p of partials[p][i], always in the same order.
void sum_partials(const float* partials, int64_t count, int64_t size, float* total, Stream);

// What keeps this process from using a device; empty where nothing does.
const char* device_problem();

}  // namespace convlogic::cuda
