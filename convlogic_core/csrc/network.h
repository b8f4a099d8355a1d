// A whole network of conv blocks, a forest of dense gates and class sums: forward, backward and AdamW in one plan.
//
// Groups of samples go through all layers before the next group starts, so that activations stay in the cache.
// float only. Memory belongs to the caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace convlogic {

constexpr int64_t group_lanes = 32;      // samples that go through the network together
constexpr int64_t conv_tile_lanes = 16;  // of them, those that go through a conv block together

constexpr int64_t max_convs = 8;

struct NetworkConv {
    const int32_t* leaves;                                  // as in ConvTile
    int64_t channels, height, width, padding_y, padding_x;  // of its input, without padding
    int64_t kernels, out_height, out_width, stride_y, stride_x;
    int depth, pool;
    int64_t first_gate;  // where its gates begin among the network's

    int64_t padded_height() const { return height + 2 * padding_y; }
    int64_t padded_width() const { return width + 2 * padding_x; }
    int64_t input_size() const { return channels * padded_height() * padded_width() * conv_tile_lanes; }
    int64_t outputs() const { return kernels * out_height * out_width; }
};

struct Network {
    const NetworkConv* convs;
    int64_t num_convs;
    const int32_t* leaves;  // of the forest: [trees][leaves], rows of features
    int64_t features, trees, first_gate;
    int depth;
    int64_t input_size, num_classes, num_gates;  // input_size: bytes of an image
    float tau;
    float* coefficients;  // [num_gates][4]: conv blocks in order, then the forest tree by tree
};

// Of images and values one is null. Of labels and grad_scores one is, too, for gradients; both are for scores.
struct Batch {
    const uint8_t* images;     // planes of zeros and ones, [image][input_size] ...
    const float* values;       // ... or planes of any values, [input_size][size]
    const int64_t* labels;     // of all images, for the cross-entropy ...
    const float* grad_scores;  // ... or the gradient of something else, [size][num_classes]
    const int64_t* rows;       // which images are the batch's; null: one after the other
    int64_t size;
    int threads;
};

// Coefficient gradients are summed a block of groups at a time, the blocks in order, whatever the thread count.
constexpr int64_t max_network_blocks = 8;

constexpr int64_t num_groups(int64_t batch) {
    return (batch + group_lanes - 1) / group_lanes;
}
constexpr int64_t num_network_blocks(int64_t batch) {
    return num_groups(batch) < max_network_blocks ? num_groups(batch) : max_network_blocks;
}

// One layer's logits, their gradient (where it is asked for) and two moments (for a step), and where its gates lie
// among the network's.
struct LogitLayer {
    float *logits, *gradient, *mean, *variance;  // [gates][num_logits]
    const int32_t* places;                       // of gate i among the network's gates; null: first_gate + i
    int64_t first_gate, gates;
};

// As in torch.optim.AdamW, worked out in double before: lr is corrected by 1 - beta1 ** step, variance_scale is
// 1 / sqrt(1 - beta2 ** step), the rates are 1 - beta, decay is lr * weight_decay.
struct AdamW {
    float lr, mean_rate, variance_rate, variance_scale, epsilon, decay;
};

// False where scratch memory ran out.
#define CONVLOGIC_DECLARE_NETWORK(isa)                                                                        \
    namespace isa {                                                                                           \
    /* Class scores [batch][num_classes]. */                                                                  \
    bool network_scores(const Network&, const Batch&, float* scores);                                         \
    /* Coefficient gradients of the mean cross-entropy over the batch, or what grad_scores lead to, in        \
       partials [num_network_blocks][num_gates][4]; the sum of the cross-entropy over each block's samples in \
       losses, null with grad_scores. */                                                                      \
    bool network_gradients(const Network&, const Batch&, double* losses, float* partials);                    \
    /* Adds the other blocks of partials to the first and writes the gradients of the logits. */              \
    void network_logit_gradients(const Network&, const LogitLayer*, int64_t num_layers, int num_logits,       \
                                 float* partials, int64_t blocks, int threads);                               \
    /* Adds the other blocks of partials to the first, steps the logits (adamw null: neither) and writes      \
       coefficients, soft or discrete. */                                                                     \
    void network_update(const Network&, const LogitLayer*, int64_t num_layers, int num_logits, bool discrete, \
                        const AdamW*, float* partials, int64_t blocks, int threads);                          \
    }

CONVLOGIC_DECLARE_NETWORK(baseline)
CONVLOGIC_DECLARE_NETWORK(avx2)
CONVLOGIC_DECLARE_NETWORK(avx512)

}  // namespace convlogic
