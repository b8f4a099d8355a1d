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
    mean += (gradient - mean) * adamw.mean_rate;
    variance += (gradient * gradient - variance) * adamw.variance_rate;
    const V scale = square_root(variance) * adamw.variance_scale + adamw.epsilon;
    logits = logits * (1 - adamw.decay) - mean / scale * adamw.lr;
}

template <class Rule>
void update(const Network& net, const LogitLayer& layer, bool discrete, const AdamW* adamw, const float* gradients) {
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < layer.gates; first += gates_at_once) {
        const GateRange range(first, layer.gates);
        int64_t place[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n)
            place[n] = layer.places ? layer.places[range.index[n]] : layer.first_gate + range.index[n];
        typename Rule::Values logits;
        range.load_values(layer.logits, logits);
        if (adamw) {
            Four<float> upstream[gates_at_once];
            for (int n = 0; n < gates_at_once; ++n) upstream[n] = load_four(gradients + 4 * place[n]);
            typename Rule::Values gradient, mean, variance;
            range.load_values(layer.mean, mean);
            range.load_values(layer.variance, variance);
            Rule(logits).gradient(upstream, gradient);
            for (int n = 0; n < gates_at_once; ++n)
                for (int v = 0; v < Rule::vectors; ++v)
                    step(*adamw, gradient[n][v], logits[n][v], mean[n][v], variance[n][v]);
            range.store_values(layer.logits, logits);
            range.store_values(layer.mean, mean);
            range.store_values(layer.variance, variance);
        }
        float* coefficients[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n) coefficients[n] = net.coefficients + 4 * place[n];
        if (discrete) {
            for (int n = 0; n < gates_at_once; ++n) store_four(coefficients[n], Rule::discrete_coefficients(logits[n]));
        } else {
            const Rule rule(logits);
            for (int n = 0; n < gates_at_once; ++n) store_four(coefficients[n], rule.coefficients(n));
        }
    }
}

}  // namespace

void network_update(const Network& net, const LogitLayer* layers, int64_t num_layers, int num_logits, bool discrete,
                    const AdamW* adamw, float* partials, int64_t blocks, int threads) {
    const int64_t size = 4 * net.num_gates;
#pragma omp parallel num_threads(threads)
    {
        if (blocks > 1) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < size; i += 4) {
                Four<float> sums = load_four(partials + i);
                for (int64_t block = 1; block < blocks; ++block) sums += load_four(partials + block * size + i);
                store_four(partials + i, sums);
            }
        }
        for (int64_t i = 0; i < num_layers; ++i)
            num_logits == 16 ? update<Softmax<float>>(net, layers[i], discrete, adamw, partials)
                             : update<Iwp<float>>(net, layers[i], discrete, adamw, partials);
    }
}

}  // namespace convlogic::CONVLOGIC_ISA
