// Vectors of the width that this translation unit is compiled for, written with GCC/Clang vector extensions.
//
// The kernel sources are compiled once an instruction set, each time in its own namespace. They must not
// instantiate templates of the standard library: the linker would keep one copy for all instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define CONVLOGIC_INLINE inline __attribute__((always_inline))

namespace convlogic::CONVLOGIC_ISA {

template <class Scalar>
struct VectorTypes {
    static constexpr int width = CONVLOGIC_VECTOR_BYTES / sizeof(Scalar);
    typedef Scalar Vector __attribute__((vector_size(CONVLOGIC_VECTOR_BYTES)));
    typedef decltype(Vector{} > Vector{}) Mask;
    // A vector anywhere in memory. GCC keeps what it reads through this in registers, and what memcpy fills on the
    // stack.
    typedef Scalar Unaligned __attribute__((vector_size(CONVLOGIC_VECTOR_BYTES), aligned(1), may_alias));
};

template <class Scalar>
using Vector = typename VectorTypes<Scalar>::Vector;
template <class Scalar>
using Mask = typename VectorTypes<Scalar>::Mask;
template <class Scalar>
constexpr int vector_width = VectorTypes<Scalar>::width;

template <class Scalar>
CONVLOGIC_INLINE Vector<Scalar> load(const Scalar* from) {
    return *reinterpret_cast<const typename VectorTypes<Scalar>::Unaligned*>(from);
}

template <class Scalar>
CONVLOGIC_INLINE void store(Scalar* to, Vector<Scalar> v) {
    *reinterpret_cast<typename VectorTypes<Scalar>::Unaligned*>(to) = v;
}

// The first `lanes` lanes, the others zero; more lanes than a vector has mean all of them.
template <class Scalar>
CONVLOGIC_INLINE Vector<Scalar> load(const Scalar* from, int64_t lanes) {
    if (lanes >= vector_width<Scalar>) return load(from);
    Vector<Scalar> v = {};
    memcpy(&v, from, size_t(lanes) * sizeof(Scalar));
    return v;
}

template <class Scalar>
CONVLOGIC_INLINE void store(Scalar* to, Vector<Scalar> v, int64_t lanes) {
    if (lanes >= vector_width<Scalar>)
        store(to, v);
    else
        memcpy(to, &v, size_t(lanes) * sizeof(Scalar));
}

template <class Scalar>
CONVLOGIC_INLINE Vector<Scalar> select(Mask<Scalar> mask, Vector<Scalar> yes, Vector<Scalar> no) {
    return mask ? yes : no;
}

template <class Scalar>
CONVLOGIC_INLINE Vector<Scalar> keep(Mask<Scalar> mask, Vector<Scalar> v) {
    return (Vector<Scalar>)(mask & (Mask<Scalar>)v);
}

}  // namespace convlogic::CONVLOGIC_ISA
