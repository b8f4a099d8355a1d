// What follows the samples' part of a step: partial sums, gradient of the logits, AdamW, the next step's coefficients.
#include "network.h"
#include "parametrization.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

template <class V>
CONVLOGIC_INLINE V square_root(V x) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(float); ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

// As torch.optim.AdamW.
template <class V>
CONVLOGIC_INLINE void step(const AdamW& adamw, V gradient, V& logits, V& mean, V& variance) {
    mean += (gradient - mean) * adamw.mean_rate;
    variance += (gradient * gradient - variance) * adamw.variance_rate;
    const V scale = square_root(variance) * adamw.variance_scale + adamw.epsilon;
    logits = logits * (1 - adamw.decay) - mean / scale * adamw.lr;
}

// Some gates of a layer, and where they lie among the network's.
struct PlacedGates : GateRange {
    int64_t place[gates_at_once];

    PlacedGates(const LogitLayer& layer, int64_t first) : GateRange(first, layer.gates) {
        for (int n = 0; n < gates_at_once; ++n)
            place[n] = layer.places ? layer.places[index[n]] : layer.first_gate + index[n];
    }
};

template <class Rule>
CONVLOGIC_INLINE void gradient_of(const typename Rule::Values& logits, const PlacedGates& range, const float* gradients,
                                  typename Rule::Values& to) {
    Four<float> upstream[gates_at_once];
    for (int n = 0; n < gates_at_once; ++n) upstream[n] = load_four(gradients + 4 * range.place[n]);
    Rule(logits).gradient(upstream, to);
}

template <class Rule>
void logit_gradients(const LogitLayer& layer, const float* gradients) {
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < layer.gates; first += gates_at_once) {
        const PlacedGates range(layer, first);
        typename Rule::Values logits, gradient;
        range.load_values(layer.logits, logits);
        gradient_of<Rule>(logits, range, gradients, gradient);
        range.store_values(layer.gradient, gradient);
    }
}

template <class Rule>
void update(const Network& net, const LogitLayer& layer, bool discrete, const AdamW* adamw, const float* gradients) {
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < layer.gates; first += gates_at_once) {
        const PlacedGates range(layer, first);
        typename Rule::Values logits;
        range.load_values(layer.logits, logits);
        if (adamw) {
            typename Rule::Values gradient, mean, variance;
            range.load_values(layer.mean, mean);
            range.load_values(layer.variance, variance);
            gradient_of<Rule>(logits, range, gradients, gradient);
            for (int i = 0; i < int(sizeof logits / sizeof logits[0]); ++i)
                step(*adamw, gradient[i], logits[i], mean[i], variance[i]);
            range.store_values(layer.logits, logits);
            range.store_values(layer.mean, mean);
            range.store_values(layer.variance, variance);
        }
        Four<float> coefficients[gates_at_once];
        if (discrete)
            Rule::discrete_coefficients(logits, coefficients);
        else
            Rule(logits).coefficients(coefficients);
        for (int n = 0; n < gates_at_once; ++n) store_four(net.coefficients + 4 * range.place[n], coefficients[n]);
    }
}

// Adds the other blocks' sums of some trees to the first block's and completes them.
void sum_blocks_of(const Network& net, float* partials, int64_t blocks, int64_t first_gate, int64_t trees, int depth) {
    const int64_t gates = (1 << depth) - 1, size = 4 * net.num_gates;
#pragma omp for schedule(static) nowait
    for (int64_t tree = 0; tree < trees; ++tree) {
        const int64_t first = 4 * (first_gate + tree * gates);
        for (int64_t i = first; i < first + 4 * gates; i += 4) {
            Four<float> sums = load_four(partials + i);
            for (int64_t block = 1; block < blocks; ++block) sums += load_four(partials + block * size + i);
            store_four(partials + i, sums);
        }
        complete_sums<float>(int(gates), net.coefficients + first, partials + first);
    }
}

void sum_blocks(const Network& net, float* partials, int64_t blocks) {
    for (int64_t i = 0; i < net.num_convs; ++i)
        sum_blocks_of(net, partials, blocks, net.convs[i].first_gate, net.convs[i].kernels, net.convs[i].depth);
    sum_blocks_of(net, partials, blocks, net.first_gate, net.trees, net.depth);
#pragma omp barrier
}

}  // namespace

void network_logit_gradients(const Network& net, const LogitLayer* layers, int64_t num_layers, int num_logits,
                             float* partials, int64_t blocks, int threads) {
#pragma omp parallel num_threads(threads)
    {
        sum_blocks(net, partials, blocks);
        for (int64_t i = 0; i < num_layers; ++i)
            num_logits == 16 ? logit_gradients<Softmax<float>>(layers[i], partials)
                             : logit_gradients<Iwp<float>>(layers[i], partials);
    }
}

void network_update(const Network& net, const LogitLayer* layers, int64_t num_layers, int num_logits, bool discrete,
                    const AdamW* adamw, float* partials, int64_t blocks, int threads) {
#pragma omp parallel num_threads(threads)
    {
        if (adamw) sum_blocks(net, partials, blocks);
        for (int64_t i = 0; i < num_layers; ++i)
            num_logits == 16 ? update<Softmax<float>>(net, layers[i], discrete, adamw, partials)
                             : update<Iwp<float>>(net, layers[i], discrete, adamw, partials);
    }
}

}  // namespace convlogic::CONVLOGIC_ISA
