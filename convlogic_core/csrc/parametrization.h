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
        const V given = x;
        x = x < -87.0f ? V{} - 87.0f : x;
        x = x > 88.0f ? V{} + 88.0f : x;
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
        V y = (V)((Int)p + ((Int)shifted << 23));
        y = given < -87.0f ? V{} : y;
        y = given > 88.0f ? V{} + __builtin_inff() : y;
        return given == given ? y : given;
    } else {
        for (unsigned i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = __builtin_exp(x[i]);
        return x;
    }
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

// Gates that are worked on side by side, so that one's latencies hide behind the others'. A rule holds what their
// logits lead to; values of all their logits lie in vectors as they do in memory, [gate][logit].
constexpr int gates_at_once = 8;

// 16 logits, one for each gate.
template <class Scalar>
struct Softmax {
    static constexpr int num_logits = 16, width = vector_width<Scalar>, vectors = 16 / width;
    typedef Vector<Scalar> Value;
    typedef Value Values[gates_at_once * vectors];

    Values probability;

    CONVLOGIC_INLINE explicit Softmax(const Values& logits) {
        Value top[gates_at_once], total[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n) {
            const Value* own = logits + n * vectors;
            top[n] = own[0];
            for (int v = 1; v < vectors; ++v) top[n] = own[v] > top[n] ? own[v] : top[n];
        }
        Scalar largest[gates_at_once], scale[gates_at_once];
        across_all(top, largest, [](auto a, auto b) { return a > b ? a : b; });
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v) {
                const Value power = exp(logits[n * vectors + v] - largest[n]);
                probability[n * vectors + v] = power;
                total[n] = v ? total[n] + power : power;
            }
        across_all(total, scale, [](auto a, auto b) { return a + b; });
        for (int n = 0; n < gates_at_once; n += 4) store_four(scale + n, 1 / load_four(scale + n));
        for (int i = 0; i < gates_at_once * vectors; ++i) probability[i] *= scale[i / vectors];
    }

    CONVLOGIC_INLINE void coefficients(Four<Scalar> (&to)[gates_at_once]) const {
        for (int n = 0; n < gates_at_once; ++n) {
            Value sums[4];
            for (int j = 0; j < 4; ++j)
                for (int v = 0; v < vectors; ++v) {
                    const Value part = probability[n * vectors + v] * gate_table<Scalar>.get(j, v);
                    sums[j] = v ? sums[j] + part : part;
                }
            to[n] = across(sums, [](auto a, auto b) { return a + b; });
        }
    }

    // p * (T d - c.d): c.d is the mean of T d.
    CONVLOGIC_INLINE void gradient(const Four<Scalar> (&d)[gates_at_once], Values& to) const {
        Value weighted[gates_at_once];
        for (int n = 0; n < gates_at_once; ++n)
            for (int v = 0; v < vectors; ++v) {
                Value& of_logit = to[n * vectors + v];
                of_logit = d[n][0] * gate_table<Scalar>.get(0, v) + d[n][1] * gate_table<Scalar>.get(1, v) +
                           d[n][2] * gate_table<Scalar>.get(2, v) + d[n][3] * gate_table<Scalar>.get(3, v);
                const Value part = probability[n * vectors + v] * of_logit;
                weighted[n] = v ? weighted[n] + part : part;
            }
        Scalar mean[gates_at_once];
        across_all(weighted, mean, [](auto a, auto b) { return a + b; });
        for (int i = 0; i < gates_at_once * vectors; ++i) to[i] = probability[i] * (to[i] - mean[i / vectors]);
    }

    template <class Combine>
    static CONVLOGIC_INLINE void across_all(const Value (&v)[gates_at_once], Scalar (&to)[gates_at_once],
                                            const Combine& combine) {
        for (int n = 0; n < gates_at_once; n += 4)
            store_four(to + n, across(reinterpret_cast<const Value(&)[4]>(v[n]), combine));
    }

    static CONVLOGIC_INLINE void discrete_coefficients(const Values& logits, Four<Scalar> (&to)[gates_at_once]) {
        alignas(64) Scalar all[gates_at_once][16];
        memcpy(all, logits, sizeof all);
        for (int n = 0; n < gates_at_once; ++n) {
            int best = 0;
            for (int g = 1; g < 16; ++g) best = all[n][g] > all[n][best] ? g : best;
            for (int j = 0; j < 4; ++j) to[n][j] = gate_table<Scalar>.column[j][best];
        }
    }
};

// Input-wise: four logits, one for each row of the truth table.
template <class Scalar>
struct Iwp {
    static constexpr int num_logits = 4, lanes = vector_width<Scalar> < 4 ? 4 : vector_width<Scalar>;
    static constexpr int vectors = gates_at_once * 4 / lanes;
    typedef Scalar Value __attribute__((vector_size(lanes * sizeof(Scalar))));
    typedef Value Values[vectors];
    typedef Four<Scalar> Row;

    Values row;

    CONVLOGIC_INLINE explicit Iwp(const Values& logits) {
        for (int v = 0; v < vectors; ++v) row[v] = 1 / (1 + exp(-logits[v]));
    }

    CONVLOGIC_INLINE void coefficients(Four<Scalar> (&to)[gates_at_once]) const { coefficients_of_rows(row, to); }

    CONVLOGIC_INLINE void gradient(const Four<Scalar> (&d)[gates_at_once], Values& to) const {
        for (int v = 0; v < vectors; ++v) {
            const Value of_gates = side_by_side<lanes>(d + v * lanes / 4);
            const Value of_rows =
                combine(of_gates, Row{1, 0, 0, 0}, Row{-1, 0, 1, 0}, Row{-1, 1, 0, 0}, Row{1, -1, -1, 1});
            to[v] = of_rows * (row[v] * (1 - row[v]));
        }
    }

    static CONVLOGIC_INLINE void discrete_coefficients(const Values& logits, Four<Scalar> (&to)[gates_at_once]) {
        Values rows;
        for (int v = 0; v < vectors; ++v) rows[v] = logits[v] > 0 ? Value{} + 1 : Value{};
        coefficients_of_rows(rows, to);
    }

private:
    static CONVLOGIC_INLINE Value repeated(Row row) {
        const Row rows[] = {row, row, row, row};
        return side_by_side<lanes>(rows);
    }

    // Of every four lanes their combination: the first times a, the second times b, ...
    static CONVLOGIC_INLINE Value combine(Value v, Four<Scalar> a, Four<Scalar> b, Four<Scalar> c, Four<Scalar> d) {
        typedef Fours<lanes> F;
        return F::template lane<0>(v) * repeated(a) + F::template lane<1>(v) * repeated(b) +
               F::template lane<2>(v) * repeated(c) + F::template lane<3>(v) * repeated(d);
    }

    // The coefficients of truth tables f00, f01, f10, f11.
    static CONVLOGIC_INLINE void coefficients_of_rows(const Values& rows, Four<Scalar> (&to)[gates_at_once]) {
        for (int v = 0; v < vectors; ++v) {
            const Value c = combine(rows[v], Row{1, -1, -1, 1}, Row{0, 0, 1, -1}, Row{0, 1, 0, -1}, Row{0, 0, 0, 1});
            memcpy(to + v * lanes / 4, &c, sizeof c);
        }
    }
};

// The gates first .. first + gates_at_once - 1; beyond the last gate the last one again, which is then worked on more
// than once with the same result.
struct GateRange {
    int64_t index[gates_at_once];
    bool is_whole;

    GateRange(int64_t first, int64_t gates) : is_whole(first + gates_at_once <= gates) {
        for (int n = 0; n < gates_at_once; ++n) index[n] = first + n < gates ? first + n : gates - 1;
    }

    // Logits or moments, [gates][num_logits] in memory.
    template <class Scalar, class Value, int count>
    CONVLOGIC_INLINE void load_values(const Scalar* from, Value (&to)[count]) const {
        constexpr int64_t lanes = sizeof(Value) / sizeof(Scalar), own = count * lanes / gates_at_once;
        typedef Value Unaligned __attribute__((aligned(1), may_alias));
        if (is_whole)
            for (int i = 0; i < count; ++i)
                to[i] = *reinterpret_cast<const Unaligned*>(from + index[0] * own + i * lanes);
        else
            for (int n = 0; n < gates_at_once; ++n)
                memcpy(reinterpret_cast<Scalar*>(&to) + n * own, from + index[n] * own, size_t(own) * sizeof(Scalar));
    }

    template <class Scalar, class Value, int count>
    CONVLOGIC_INLINE void store_values(Scalar* to, const Value (&from)[count]) const {
        constexpr int64_t lanes = sizeof(Value) / sizeof(Scalar), own = count * lanes / gates_at_once;
        typedef Value Unaligned __attribute__((aligned(1), may_alias));
        if (is_whole)
            for (int i = 0; i < count; ++i) *reinterpret_cast<Unaligned*>(to + index[0] * own + i * lanes) = from[i];
        else
            for (int n = 0; n < gates_at_once; ++n)
                memcpy(to + index[n] * own, reinterpret_cast<const Scalar*>(&from) + n * own,
                       size_t(own) * sizeof(Scalar));
    }
};

}  // namespace convlogic::CONVLOGIC_ISA
