// Logits to coefficients for whole layers, and the gradient back.
#include "kernels.h"
#include "parametrization.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

template <class Rule, class Scalar>
void forward(const Scalar* logits, int64_t gates, int threads, Scalar* coefficients) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < gates; first += gates_at_once) {
        const GateRange range(first, gates);
        typename Rule::Values values;
        range.load_values(logits, values);
        Four<Scalar> of_gate[gates_at_once];
        Rule(values).coefficients(of_gate);
        for (int n = 0; n < gates_at_once; ++n) store_four(coefficients + 4 * range.index[n], of_gate[n]);
    }
}

template <class Rule, class Scalar>
void backward(const Scalar* logits, const Scalar* grad_coefficients, int64_t gates, int threads, Scalar* grad_logits) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < gates; first += gates_at_once) {
        const GateRange range(first, gates);
        typename Rule::Values values;
        range.load_values(logits, values);
        Four<Scalar> gradients[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n) gradients[n] = load_four(grad_coefficients + 4 * range.index[n]);
        Rule(values).gradient(gradients, values);
        range.store_values(grad_logits, values);
    }
}

}  // namespace

template <class Scalar>
void gate_coefficients_forward(const Scalar* logits, int64_t gates, int num_logits, int threads, Scalar* coefficients) {
    num_logits == 16 ? forward<Softmax<Scalar>>(logits, gates, threads, coefficients)
                     : forward<Iwp<Scalar>>(logits, gates, threads, coefficients);
}

template <class Scalar>
void gate_coefficients_backward(const Scalar* logits, const Scalar* grad_coefficients, int64_t gates, int num_logits,
                                int threads, Scalar* grad_logits) {
    num_logits == 16 ? backward<Softmax<Scalar>>(logits, grad_coefficients, gates, threads, grad_logits)
                     : backward<Iwp<Scalar>>(logits, grad_coefficients, gates, threads, grad_logits);
}

#define CONVLOGIC_INSTANTIATE(Scalar)                                                   \
    template void gate_coefficients_forward(const Scalar*, int64_t, int, int, Scalar*); \
    template void gate_coefficients_backward(const Scalar*, const Scalar*, int64_t, int, int, Scalar*);
CONVLOGIC_INSTANTIATE(float)
CONVLOGIC_INSTANTIATE(double)

}  // namespace convlogic::CONVLOGIC_ISA
