// A binary tree of gates over vectors of samples: L = 2**depth leaves, gates numbered level by level from the leaves.
#pragma once

#include "gate.h"
#include "simd.h"

namespace convlogic::CONVLOGIC_ISA {

// A number as a type, for what is chosen once a call and must be known to the compiler.
template <int value>
struct Constant {
    static constexpr int number = value;
};

template <class Function>
CONVLOGIC_INLINE auto with_depth(int depth, const Function& f) {
    switch (depth) {
        case 1: return f(Constant<1>());
        case 2: return f(Constant<2>());
        case 3: return f(Constant<3>());
        default: return f(Constant<4>());
    }
}

// Node `index` of `level` (level 0: the leaves) for several vectors in flight, depth first to keep few values alive.
// leaf(l, p) loads leaf l of vector p.
template <class Scalar, int num_leaves, int level, int index, int in_flight, class Leaf>
CONVLOGIC_INLINE void tree_node(const Scalar* c, const Leaf& leaf, Vector<Scalar> (&out)[in_flight]) {
    if constexpr (level == 0) {
#pragma GCC unroll 8
        for (int p = 0; p < in_flight; ++p) out[p] = leaf(index, p);
    } else {
        Vector<Scalar> a[in_flight], b[in_flight];
        tree_node<Scalar, num_leaves, level - 1, 2 * index>(c, leaf, a);
        tree_node<Scalar, num_leaves, level - 1, 2 * index + 1>(c, leaf, b);
        constexpr int level_start = num_leaves - (num_leaves >> (level - 1));
#pragma GCC unroll 8
        for (int p = 0; p < in_flight; ++p) out[p] = gate(c + 4 * (level_start + index), a[p], b[p]);
    }
}

template <class Scalar, int depth, int in_flight, class Leaf>
CONVLOGIC_INLINE void tree(const Scalar* c, const Leaf& leaf, Vector<Scalar> (&out)[in_flight]) {
    tree_node<Scalar, 1 << depth, depth, 0>(c, leaf, out);
}

// Adds the halves of a vector up until four lanes are left.
template <class Value>
CONVLOGIC_INLINE auto fold(Value v) {
    constexpr int lanes = sizeof(v) / sizeof(v[0]);
    if constexpr (lanes == 16)
        return fold(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
    else if constexpr (lanes == 8)
        return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    else
        return v;
}

// Adds the lanes of four vectors up; writes the four sums or adds them.
template <class Scalar>
CONVLOGIC_INLINE void reduce(const Vector<Scalar> (&sums)[4], Scalar* to, bool accumulate) {
    if constexpr (vector_width<Scalar> >= 4) {
        const auto a = fold(sums[0]), b = fold(sums[1]), c = fold(sums[2]), d = fold(sums[3]);
        const auto ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const auto cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
        auto total = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
        typedef Scalar Four __attribute__((vector_size(4 * sizeof(Scalar)), aligned(1), may_alias));
        if (accumulate) total += *reinterpret_cast<const Four*>(to);
        *reinterpret_cast<Four*>(to) = total;
    } else {
        for (int i = 0; i < 4; ++i) {
            const Scalar sum = sums[i][0] + sums[i][1];
            to[i] = accumulate ? to[i] + sum : sum;
        }
    }
}

// Backward through one tree for a few vectors at a time: gate after gate, so that a gate's coefficients and the sums of
// their gradients stay in registers. Values between the gates lie in arrays that fit the innermost cache.
template <class Scalar, int depth>
struct TreeBackward {
    static constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1, first_upper = num_leaves / 2;
    static constexpr int max_bytes = depth < 4 ? 512 : 256, max_vectors = max_bytes / CONVLOGIC_VECTOR_BYTES;

    alignas(64) Vector<Scalar> value[num_gates][max_vectors];     // what the gates computed
    alignas(64) Vector<Scalar> gradient[num_gates][max_vectors];  // the caller writes the root's, the last gate

    // leaf(l, i) is leaf l of vector i; leaf_gradient(l, i, gradient) is called where needed, leaves in order;
    // partials(gate) says where the four sums of a gate go.
    template <bool needs_leaf_gradients, class Leaf, class LeafGradient, class Partials>
    CONVLOGIC_INLINE void run(const Scalar* c, int vectors, const Leaf& leaf, const LeafGradient& leaf_gradient,
                              const Partials& partials, bool accumulate) {
#pragma GCC unroll 1
        for (int g = 0; g < first_upper && depth > 1; ++g)
#pragma GCC unroll 1
            for (int i = 0; i < vectors; ++i) value[g][i] = gate(c + 4 * g, leaf(2 * g, i), leaf(2 * g + 1, i));
#pragma GCC unroll 1
        for (int g = first_upper; g < num_gates - 1; ++g)
#pragma GCC unroll 1
            for (int i = 0; i < vectors; ++i)
                value[g][i] = gate(c + 4 * g, value[2 * g - num_leaves][i], value[2 * g + 1 - num_leaves][i]);
#pragma GCC unroll 1
        for (int g = num_gates - 1; g >= first_upper; --g) {
            const int a = 2 * g - num_leaves, b = a + 1;
            backward_gate<true>(
                g, c + 4 * g, vectors, value[a], value[b], partials(g), accumulate,
                [&](int i, Vector<Scalar> v) { gradient[a][i] = v; },
                [&](int i, Vector<Scalar> v) { gradient[b][i] = v; });
        }
#pragma GCC unroll 1
        for (int g = 0; g < first_upper; ++g) {
            const int a = 2 * g, b = a + 1;
            backward_gate<needs_leaf_gradients>(
                g, c + 4 * g, vectors, LeafOf<Leaf>{leaf, a}, LeafOf<Leaf>{leaf, b}, partials(g), accumulate,
                [&](int i, Vector<Scalar> v) { leaf_gradient(a, i, v); },
                [&](int i, Vector<Scalar> v) { leaf_gradient(b, i, v); });
        }
    }

private:
    template <class Leaf>
    struct LeafOf {
        const Leaf& leaf;
        int index;
        CONVLOGIC_INLINE Vector<Scalar> operator[](int i) const { return leaf(index, i); }
    };

    template <bool needs_input_gradients, class A, class B, class GradientA, class GradientB>
    CONVLOGIC_INLINE void backward_gate(int g, const Scalar* c, int vectors, const A& a, const B& b, Scalar* partials,
                                        bool accumulate, const GradientA& gradient_a, const GradientB& gradient_b) {
        Vector<Scalar> sums[4] = {};
#pragma GCC unroll 1
        for (int i = 0; i < vectors; ++i) {
            const Vector<Scalar> va = a[i], vb = b[i], upstream = gradient[g][i];
            add_coefficient_gradients(sums, upstream, va, vb);
            if constexpr (needs_input_gradients) {
                gradient_a(i, upstream * gate_slope_a(c, vb));
                gradient_b(i, upstream * gate_slope_b(c, va));
            }
        }
        reduce<Scalar>(sums, partials, accumulate);
    }
};

}  // namespace convlogic::CONVLOGIC_ISA
