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

// The sums of one gate's coefficient gradients, grad * (1, a, b, ab). The first is summed for the root of a tree alone,
// see `complete_sums`.
template <class Scalar>
struct GateSums {
    Vector<Scalar> sums[4] = {};

    template <bool is_root>
    CONVLOGIC_INLINE void add(Vector<Scalar> grad, Vector<Scalar> a, Vector<Scalar> b) {
        add_coefficient_gradients<is_root>(sums, grad, a, b);
    }

    // Over all lanes.
    CONVLOGIC_INLINE Four<Scalar> total() const {
        return across(sums, [](auto a, auto b) { return a + b; });
    }
};

// Writes totals of a tree's gates to partials, [gates][4], or adds them.
template <class Scalar, int num_gates>
CONVLOGIC_INLINE void write_totals(const Four<Scalar> (&totals)[num_gates], Scalar* partials, bool accumulate) {
    for (int g = 0; g < num_gates; ++g, partials += 4)
        store_four(partials, accumulate ? load_four(partials) + totals[g] : totals[g]);
}

// The first sum of every gate but the root's, [gates][4] of one tree: what reaches a gate is its parent's gradient
// times a slope that is linear in the parent's other input. Once for all samples, as the others' sums are of all
// samples.
template <class Scalar>
CONVLOGIC_INLINE void complete_sums(int num_gates, const Scalar* c, Scalar* sums) {
    for (int parent = num_gates - 1, child = num_gates - 2; child > 0; --parent, child -= 2) {
        const Scalar *of_parent = sums + 4 * parent, *slopes = c + 4 * parent;
        sums[4 * child] = slopes[2] * of_parent[0] + slopes[3] * of_parent[1];
        sums[4 * (child - 1)] = slopes[1] * of_parent[0] + slopes[3] * of_parent[2];
    }
}

// Backward from one node down, depth first, for several vectors in flight; see `tree_backward`.
template <class Scalar, int num_leaves, int level, int index, int in_flight, bool needs_leaf_gradients, class Leaf,
          class LeafGradient, class Sums>
CONVLOGIC_INLINE void backward_node(const Scalar* c, const Leaf& leaf,
                                    const Vector<Scalar> (&values)[num_leaves][in_flight],
                                    const Vector<Scalar> (&grad)[in_flight], const LeafGradient& leaf_gradient,
                                    const Sums& sums) {
    constexpr int g = num_leaves - (num_leaves >> (level - 1)) + index;
    constexpr int below = num_leaves - (num_leaves >> (level > 1 ? level - 2 : 0)) + 2 * index;
    Vector<Scalar> a[in_flight], b[in_flight];
#pragma GCC unroll 8
    for (int i = 0; i < in_flight; ++i) {
        a[i] = level == 1 ? leaf(2 * index, i) : values[below][i];
        b[i] = level == 1 ? leaf(2 * index + 1, i) : values[below + 1][i];
    }
    sums(Constant<g>(), Constant<g == num_leaves - 2>(), grad, a, b);
    if constexpr (level > 1 || needs_leaf_gradients) {
#pragma GCC unroll 8
        for (int i = 0; i < in_flight; ++i) {
            const Vector<Scalar> slope_a = gate_slope_a(c + 4 * g, b[i]), slope_b = gate_slope_b(c + 4 * g, a[i]);
            a[i] = grad[i] * slope_a;
            b[i] = grad[i] * slope_b;
        }
        if constexpr (level == 1) {
#pragma GCC unroll 8
            for (int i = 0; i < in_flight; ++i) {
                leaf_gradient(2 * index, i, a[i]);
                leaf_gradient(2 * index + 1, i, b[i]);
            }
        } else {
            backward_node<Scalar, num_leaves, level - 1, 2 * index, in_flight, needs_leaf_gradients>(
                c, leaf, values, a, leaf_gradient, sums);
            backward_node<Scalar, num_leaves, level - 1, 2 * index + 1, in_flight, needs_leaf_gradients>(
                c, leaf, values, b, leaf_gradient, sums);
        }
    }
}

// Backward through a tree for several vectors in flight, in registers as far as they go: all gates but the root are
// evaluated, then gradients go down depth first.
//
// leaf(l, i) is leaf l of vector i, grad the root's gradient. leaf_gradient(l, i, gradient) is called where needed, and
// sums(gate, is_root, grad, a, b) once for each gate, the first two as constants, to add to its sums.
template <class Scalar, int depth, int in_flight, bool needs_leaf_gradients, class Leaf, class LeafGradient, class Sums>
CONVLOGIC_INLINE void tree_backward(const Scalar* c, const Leaf& leaf, const Vector<Scalar> (&grad)[in_flight],
                                    const LeafGradient& leaf_gradient, const Sums& sums) {
    constexpr int num_leaves = 1 << depth;
    Vector<Scalar> values[num_leaves][in_flight];
#pragma GCC unroll 8
    for (int g = 0; g < num_leaves / 2 && depth > 1; ++g)
#pragma GCC unroll 8
        for (int i = 0; i < in_flight; ++i) values[g][i] = gate(c + 4 * g, leaf(2 * g, i), leaf(2 * g + 1, i));
#pragma GCC unroll 8
    for (int g = num_leaves / 2; g < num_leaves - 2; ++g)
#pragma GCC unroll 8
        for (int i = 0; i < in_flight; ++i)
            values[g][i] = gate(c + 4 * g, values[2 * g - num_leaves][i], values[2 * g + 1 - num_leaves][i]);
    backward_node<Scalar, num_leaves, depth, 0, in_flight, needs_leaf_gradients>(c, leaf, values, grad, leaf_gradient,
                                                                                 sums);
}

}  // namespace convlogic::CONVLOGIC_ISA
