// The optimizer's part of a step, fused: partial sums, gradient of the logits, AdamW, the next step's coefficients.
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
    mean += (gradient - mean) * (1 - adamw.beta1);
    variance = variance * adamw.beta2 + gradient * gradient * (1 - adamw.beta2);
    const V scale = square_root(variance) * (1 / __builtin_sqrtf(adamw.correction2)) + adamw.epsilon;
    logits = logits * (1 - adamw.lr * adamw.weight_decay) - mean / scale * (adamw.lr / adamw.correction1);
}

template <class Rule>
void update(const Network& net, const LogitLayer& layer, bool discrete, const AdamW& adamw, const float* partials,
            int64_t blocks, int threads) {
    typedef typename Rule::Value Value;
    constexpr int vectors = Rule::vectors, num_logits = Rule::num_logits;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t gate = 0; gate < layer.gates; ++gate) {
        const int64_t place = layer.places ? layer.places[gate] : layer.first_gate + gate;
        Value logits[vectors];
        load_values(layer.logits + gate * num_logits, logits);
        if (blocks) {
            Four<float> sums = load_four(partials + 4 * place);
            for (int64_t block = 1; block < blocks; ++block)
                sums += load_four(partials + (block * net.num_gates + place) * 4);
            Value gradient[vectors], mean[vectors], variance[vectors];
            load_values(layer.mean + gate * num_logits, mean);
            load_values(layer.variance + gate * num_logits, variance);
            Rule(logits).gradient(sums, gradient);
            for (int v = 0; v < vectors; ++v) step(adamw, gradient[v], logits[v], mean[v], variance[v]);
            memcpy(layer.logits + gate * num_logits, &logits, sizeof logits);
            memcpy(layer.mean + gate * num_logits, &mean, sizeof mean);
            memcpy(layer.variance + gate * num_logits, &variance, sizeof variance);
        }
        if (discrete)
            Rule::discrete_coefficients(logits, net.coefficients + 4 * place);
        else
            Rule(logits).coefficients(net.coefficients + 4 * place);
    }
}

}  // namespace

void network_update(const Network& net, const LogitLayer& layer, int num_logits, bool discrete, const AdamW& adamw,
                    const float* partials, int64_t blocks, int threads) {
    num_logits == 16 ? update<Softmax<float>>(net, layer, discrete, adamw, partials, blocks, threads)
                     : update<Iwp<float>>(net, layer, discrete, adamw, partials, blocks, threads);
}

}  // namespace convlogic::CONVLOGIC_ISA
