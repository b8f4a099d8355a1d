// How the logits of one gate become its four coefficients, and the gradient back; the rules of parametrization.py.
//
// A gate's number spells its truth table: bit 3 - r of it is row r of f00, f01, f10, f11.
#pragma once

#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {

enum class Parametrization { softmax = 16, iwp = 4 };  // the number of logits

template <class Scalar>
struct FourType {
    typedef Scalar type __attribute__((vector_size(4 * sizeof(Scalar))));
};
template <class Scalar>
using Four = typename FourType<Scalar>::type;

template <class Scalar>
CONVLOGIC_INLINE Four<Scalar> load_four(const Scalar* from) {
    Four<Scalar> v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class Scalar>
CONVLOGIC_INLINE void store_four(Scalar* to, Four<Scalar> v) {
    memcpy(to, &v, sizeof v);
}

// A vector's exponentials. In float: 2**n * exp(r), |r| <= ln(2)/2, to about two units in the last place; 0 below -87, infinite above 88.
template <class V>
CONVLOGIC_INLINE V exp(V x) {
    if constexpr (sizeof(x[0]) == 4) {
        typedef int32_t Int __attribute__((vector_size(sizeof(V))));
        const auto too_large = x > 88.0f, too_small = x < -87.0f;
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
        return too_large ? V{} + __builtin_inff() : too_small ? V{} : y;
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

// 16 logits, one for each gate.
template <class Scalar>
struct Softmax {
    static constexpr int num_logits = 16, width = vector_width<Scalar>, vectors = 16 / width;
    typedef Vector<Scalar> Value;

    Value probability[vectors];

    CONVLOGIC_INLINE explicit Softmax(const Value (&logits)[vectors]) {
        Value top = logits[0];
        for (int v = 1; v < vectors; ++v) top = logits[v] > top ? logits[v] : top;
        Scalar largest = top[0];
        for (int i = 1; i < width; ++i) largest = top[i] > largest ? top[i] : largest;
        Value total = {};
        for (int v = 0; v < vectors; ++v) {
            probability[v] = exp(logits[v] - largest);
            total += probability[v];
        }
        Scalar sum = total[0];
        for (int i = 1; i < width; ++i) sum += total[i];
        for (int v = 0; v < vectors; ++v) probability[v] *= 1 / sum;
    }

    CONVLOGIC_INLINE void coefficients(Scalar* to) const {
        Value sums[4];
        for (int j = 0; j < 4; ++j) {
            sums[j] = probability[0] * gate_table<Scalar>.get(j, 0);
            for (int v = 1; v < vectors; ++v) sums[j] += probability[v] * gate_table<Scalar>.get(j, v);
        }
        reduce<Scalar>(sums, to, false);
    }

    // p * (T d - c.d): c.d is the mean of T d.
    CONVLOGIC_INLINE void gradient(Four<Scalar> d, Value (&to)[vectors]) const {
        Value weighted = {};
        for (int v = 0; v < vectors; ++v) {
            to[v] = d[0] * gate_table<Scalar>.get(0, v) + d[1] * gate_table<Scalar>.get(1, v) +
                    d[2] * gate_table<Scalar>.get(2, v) + d[3] * gate_table<Scalar>.get(3, v);
            weighted += probability[v] * to[v];
        }
        Scalar mean = weighted[0];
        for (int i = 1; i < width; ++i) mean += weighted[i];
        for (int v = 0; v < vectors; ++v) to[v] = probability[v] * (to[v] - mean);
    }

    static CONVLOGIC_INLINE void discrete_coefficients(const Value (&logits)[vectors], Scalar* to) {
        alignas(64) Scalar all[16];
        for (int v = 0; v < vectors; ++v) store(all + v * width, logits[v]);
        int best = 0;
        for (int g = 1; g < 16; ++g) best = all[g] > all[best] ? g : best;
        for (int j = 0; j < 4; ++j) to[j] = gate_table<Scalar>.column[j][best];
    }
};

// Input-wise: four logits, one for each row of the truth table.
template <class Scalar>
struct Iwp {
    static constexpr int num_logits = 4, vectors = 1;
    typedef Four<Scalar> Value;

    Value row;

    CONVLOGIC_INLINE explicit Iwp(const Value (&logits)[1]) : row(1 / (1 + exp(-logits[0]))) {}

    CONVLOGIC_INLINE void coefficients(Scalar* to) const { store_four(to, coefficients_of_rows<Scalar>(row)); }

    CONVLOGIC_INLINE void gradient(Four<Scalar> d, Value (&to)[1]) const {
        to[0] = rows_gradient<Scalar>(d) * (row * (1 - row));
    }

    static CONVLOGIC_INLINE void discrete_coefficients(const Value (&logits)[1], Scalar* to) {
        const Value one = Value{} + 1;
        store_four(to, coefficients_of_rows<Scalar>(logits[0] > 0 ? one : Value{}));
    }
};

template <class Scalar, class Value, int vectors>
CONVLOGIC_INLINE void load_values(const Scalar* from, Value (&to)[vectors]) {
    memcpy(&to, from, sizeof to);
}

}  // namespace convlogic::CONVLOGIC_ISA
