// How the logits of one gate become its four coefficients, and the gradient back; the rules of parametrization.py.
//
// A gate's number spells its truth table: bit 3 - r of it is row r of f00, f01, f10, f11.
#pragma once

#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {

// A vector's exponentials. In float: 2**n * exp(r), |r| <= ln(2)/2, to about two units in the last place; 0 below -87,
// infinite above 88.
template <class V>
CONVLOGIC_INLINE V exp(V x) {
    if constexpr (sizeof(x[0]) == 4) {
        typedef int32_t Int __attribute__((vector_size(sizeof(V))));
        const auto too_large = x > 88.0f, too_small = x < -87.0f, is_nan = x != x;
        const V given = x;
        x = too_large | too_small ? V{} : x;
        constexpr float magic = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer, in the low bits
        const V shifted = x * 1.44269504f + magic, n = shifted - magic;
        const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
        V p = V{} + 1.3888889e-3f;
        p = p * r + 8.3333333e-3f;
        p = p * r + 4.1666667e-2f;
        p = p * r + 1.6666667e-1f;
        p = p * r + 0.5f;
        p = p * r + 1.0f;
        p = p * r + 1.0f;
        const Int exponent = (Int)shifted << 23;
        const V y = (V)((Int)p + exponent);
        return is_nan ? given : too_large ? V{} + __builtin_inff() : too_small ? V{} : y;
    } else {
        for (unsigned i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = __builtin_exp(x[i]);
        return x;
    }
}

// The coefficients of a truth table f00, f01, f10, f11.
template <class Scalar>
CONVLOGIC_INLINE Four<Scalar> coefficients_of_rows(Four<Scalar> f) {
    const Four<Scalar> c = {f[0], f[2] - f[0], f[1] - f[0], f[0] - f[1] - f[2] + f[3]};
    return c;
}

// The gradient of f from the gradient of its coefficients.
template <class Scalar>
CONVLOGIC_INLINE Four<Scalar> rows_gradient(Four<Scalar> d) {
    const Four<Scalar> rows = {d[0] - d[1] - d[2] + d[3], d[2] - d[3], d[1] - d[3], d[3]};
    return rows;
}

constexpr int truth_row(int gate, int row) {
    return gate >> (3 - row) & 1;
}

// The columns of gates.GATE_TABLE in vectors.
template <class Scalar>
struct GateTable {
    static constexpr int vectors = 16 / vector_width<Scalar>;
    alignas(64) Scalar column[4][16];

    constexpr GateTable() : column() {
        for (int g = 0; g < 16; ++g) {
            const int f[4] = {truth_row(g, 0), truth_row(g, 1), truth_row(g, 2), truth_row(g, 3)};
            column[0][g] = Scalar(f[0]);
            column[1][g] = Scalar(f[2] - f[0]);
            column[2][g] = Scalar(f[1] - f[0]);
            column[3][g] = Scalar(f[0] - f[1] - f[2] + f[3]);
        }
    }

    CONVLOGIC_INLINE Vector<Scalar> get(int coefficient, int vector) const {
        return load(column[coefficient] + vector * vector_width<Scalar>);
    }
};

template <class Scalar>
constexpr GateTable<Scalar> gate_table;

// Gates that are worked on side by side, so that one's latencies hide behind the others'.
constexpr int gates_at_once = 4;

// 16 logits, one for each gate.
template <class Scalar>
struct Softmax {
    static constexpr int num_logits = 16, width = vector_width<Scalar>, vectors = 16 / width;
    typedef Vector<Scalar> Value;
    typedef Value Values[gates_at_once][vectors];

    Values probability;

    CONVLOGIC_INLINE explicit Softmax(const Values& logits) {
        Value top[gates_at_once], total[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n) {
            top[n] = logits[n][0];
            for (int v = 1; v < vectors; ++v) top[n] = logits[n][v] > top[n] ? logits[n][v] : top[n];
        }
        const Four<Scalar> largest = across(top, [](auto a, auto b) { return a > b ? a : b; });
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v) {
                probability[n][v] = exp(logits[n][v] - largest[n]);
                total[n] = v ? total[n] + probability[n][v] : probability[n][v];
            }
        const Four<Scalar> scale = 1 / across(total, [](auto a, auto b) { return a + b; });
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v) probability[n][v] *= scale[n];
    }

    CONVLOGIC_INLINE Four<Scalar> coefficients(int n) const {
        Value sums[4];
        for (int j = 0; j < 4; ++j) {
            sums[j] = probability[n][0] * gate_table<Scalar>.get(j, 0);
            for (int v = 1; v < vectors; ++v) sums[j] += probability[n][v] * gate_table<Scalar>.get(j, v);
        }
        return across(sums, [](auto a, auto b) { return a + b; });
    }

    // p * (T d - c.d): c.d is the mean of T d.
    CONVLOGIC_INLINE void gradient(const Four<Scalar> (&d)[gates_at_once], Values& to) const {
        Value weighted[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v) {
                to[n][v] = d[n][0] * gate_table<Scalar>.get(0, v) + d[n][1] * gate_table<Scalar>.get(1, v) +
                           d[n][2] * gate_table<Scalar>.get(2, v) + d[n][3] * gate_table<Scalar>.get(3, v);
                const Value part = probability[n][v] * to[n][v];
                weighted[n] = v ? weighted[n] + part : part;
            }
        const Four<Scalar> mean = across(weighted, [](auto a, auto b) { return a + b; });
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v) to[n][v] = probability[n][v] * (to[n][v] - mean[n]);
    }

    static CONVLOGIC_INLINE Four<Scalar> discrete_coefficients(const Value (&logits)[vectors]) {
        alignas(64) Scalar all[16];
        for (int v = 0; v < vectors; ++v) store(all + v * width, logits[v]);
        int best = 0;
        for (int g = 1; g < 16; ++g) best = all[g] > all[best] ? g : best;
        const auto& column = gate_table<Scalar>.column;
        const Four<Scalar> c = {column[0][best], column[1][best], column[2][best], column[3][best]};
        return c;
    }
};

// Input-wise: four logits, one for each row of the truth table.
template <class Scalar>
struct Iwp {
    static constexpr int num_logits = 4, vectors = 1;
    typedef Four<Scalar> Value;
    typedef Value Values[gates_at_once][vectors];

    Value row[gates_at_once];

    CONVLOGIC_INLINE explicit Iwp(const Values& logits) {
        for (int n = 0; n < gates_at_once; ++n) row[n] = 1 / (1 + exp(-logits[n][0]));
    }

    CONVLOGIC_INLINE Four<Scalar> coefficients(int n) const { return coefficients_of_rows<Scalar>(row[n]); }

    CONVLOGIC_INLINE void gradient(const Four<Scalar> (&d)[gates_at_once], Values& to) const {
        for (int n = 0; n < gates_at_once; ++n) to[n][0] = rows_gradient<Scalar>(d[n]) * (row[n] * (1 - row[n]));
    }

    static CONVLOGIC_INLINE Four<Scalar> discrete_coefficients(const Value (&logits)[1]) {
        const Value one = Value{} + 1;
        return coefficients_of_rows<Scalar>(logits[0] > 0 ? one : Value{});
    }
};

// The logits (or moments) of gates first .. first + gates_at_once - 1; beyond the last gate the last one again, which
// is then worked on more than once with the same result.
struct GateRange {
    int64_t index[gates_at_once];

    GateRange(int64_t first, int64_t gates) {
        for (int n = 0; n < gates_at_once; ++n) index[n] = first + n < gates ? first + n : gates - 1;
    }

    template <class Scalar, class Value, int vectors>
    CONVLOGIC_INLINE void load_values(const Scalar* from, Value (&to)[gates_at_once][vectors]) const {
        constexpr int64_t lanes = sizeof(Value) / sizeof(Scalar);
        typedef Value Unaligned __attribute__((aligned(1), may_alias));
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v)
                to[n][v] = *reinterpret_cast<const Unaligned*>(from + (index[n] * vectors + v) * lanes);
    }

    template <class Scalar, class Value, int vectors>
    CONVLOGIC_INLINE void store_values(Scalar* to, const Value (&from)[gates_at_once][vectors]) const {
        constexpr int64_t lanes = sizeof(Value) / sizeof(Scalar);
        typedef Value Unaligned __attribute__((aligned(1), may_alias));
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v)
                *reinterpret_cast<Unaligned*>(to + (index[n] * vectors + v) * lanes) = from[n][v];
    }
};

}  // namespace convlogic::CONVLOGIC_ISA
