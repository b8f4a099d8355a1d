// The relaxed two-input gate, y = c0 + c1*a + c2*b + c3*a*b, and its derivatives.
#pragma once

#ifdef __CUDACC__
#define CONVLOGIC_GATE __host__ __device__ inline
#else
#define CONVLOGIC_GATE inline __attribute__((always_inline))
#endif

namespace convlogic {

// Value is a scalar or a vector of samples; c points to the gate's four coefficients.
template <class Scalar, class Value>
CONVLOGIC_GATE Value gate(const Scalar* c, Value a, Value b) {
    return (c[3] * a + c[2]) * b + (c[1] * a + c[0]);
}

// dy/da and dy/db.
template <class Scalar, class Value>
CONVLOGIC_GATE Value gate_slope_a(const Scalar* c, Value b) {
    return c[3] * b + c[1];
}

template <class Scalar, class Value>
CONVLOGIC_GATE Value gate_slope_b(const Scalar* c, Value a) {
    return c[3] * a + c[2];
}

// Adds the gradients of the four coefficients: grad * (1, a, b, ab); of the first only where it is wanted.
template <bool with_first = true, class Value>
CONVLOGIC_GATE void add_coefficient_gradients(Value (&sums)[4], Value grad, Value a, Value b) {
    const Value grad_a = grad * a;
    if (with_first) sums[0] += grad;
    sums[1] += grad_a;
    sums[2] += grad * b;
    sums[3] += grad_a * b;
}

}  // namespace convlogic
