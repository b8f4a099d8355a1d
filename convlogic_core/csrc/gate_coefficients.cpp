// Logits to coefficients for whole layers, and the gradient back.
#include "kernels.h"
#include "parametrization.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

template <class Rule, class Scalar>
void forward(const Scalar* logits, int64_t gates, int threads, Scalar* coefficients) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t gate = 0; gate < gates; ++gate) {
        typename Rule::Value values[Rule::vectors];
        load_values(logits + gate * Rule::num_logits, values);
        Rule(values).coefficients(coefficients + 4 * gate);
    }
}

template <class Rule, class Scalar>
void backward(const Scalar* logits, const Scalar* grad_coefficients, int64_t gates, int threads, Scalar* grad_logits) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t gate = 0; gate < gates; ++gate) {
        typename Rule::Value values[Rule::vectors];
        load_values(logits + gate * Rule::num_logits, values);
        const Rule rule(values);
        rule.gradient(load_four(grad_coefficients + 4 * gate), values);
        memcpy(grad_logits + gate * Rule::num_logits, &values, sizeof values);
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
