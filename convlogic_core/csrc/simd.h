// Vectors of the width that this translation unit is compiled for, written with GCC/Clang vector extensions.
//
// The kernel sources are compiled once an instruction set, each time in its own namespace. They must not
// instantiate templates of the standard library: the linker would keep one copy for all instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Whether x86 has instructions for vectors of this width here; the compiler splits vectors that are wider.
#if defined(__x86_64__) && (CONVLOGIC_VECTOR_BYTES == 16 || (CONVLOGIC_VECTOR_BYTES == 32 && defined(__AVX2__)) || \
                            (CONVLOGIC_VECTOR_BYTES == 64 && defined(__AVX512F__)))
#define CONVLOGIC_X86_VECTORS
#include <immintrin.h>
#endif

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

// Four scalars, as a gate's coefficients are.
template <class Scalar>
struct FourType {
    typedef Scalar type __attribute__((vector_size(4 * sizeof(Scalar))));
};
template <class Scalar>
using Four = typename FourType<Scalar>::type;

template <class Scalar>
CONVLOGIC_INLINE Four<Scalar> load_four(const Scalar* from) {
    typedef Scalar Unaligned __attribute__((vector_size(4 * sizeof(Scalar)), aligned(1), may_alias));
    return *reinterpret_cast<const Unaligned*>(from);
}

template <class Scalar>
CONVLOGIC_INLINE void store_four(Scalar* to, Four<Scalar> v) {
    typedef Scalar Unaligned __attribute__((vector_size(4 * sizeof(Scalar)), aligned(1), may_alias));
    *reinterpret_cast<Unaligned*>(to) = v;
}

// The halves of a vector combined until four lanes are left.
template <class V, class Combine>
CONVLOGIC_INLINE auto fold(V v, const Combine& combine) {
    constexpr int lanes = sizeof(v) / sizeof(v[0]);
    if constexpr (lanes == 16)
        return fold(combine(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                            __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)),
                    combine);
    else if constexpr (lanes == 8)
        return combine(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7));
    else
        return v;
}

// The lanes of each of four vectors combined to one.
template <class V, class Combine>
CONVLOGIC_INLINE auto across(const V (&v)[4], const Combine& combine) {
    typedef Four<__typeof__(v[0][0] + v[0][0])> Result;
    if constexpr (sizeof(V) / sizeof(v[0][0]) >= 4) {
        const auto a = fold(v[0], combine), b = fold(v[1], combine), c = fold(v[2], combine), d = fold(v[3], combine);
        const auto ab = combine(__builtin_shufflevector(a, b, 0, 4, 1, 5), __builtin_shufflevector(a, b, 2, 6, 3, 7));
        const auto cd = combine(__builtin_shufflevector(c, d, 0, 4, 1, 5), __builtin_shufflevector(c, d, 2, 6, 3, 7));
        const Result result =
            combine(__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
        return result;
    } else {
        const Result result = {combine(v[0][0], v[0][1]), combine(v[1][0], v[1][1]), combine(v[2][0], v[2][1]),
                               combine(v[3][0], v[3][1])};
        return result;
    }
}

// Small whole numbers between bytes in memory and lanes as wide as the scalar. GCC takes __builtin_convertvector
// between such widths apart, lane by lane.
template <class Scalar>
CONVLOGIC_INLINE void store_bytes(uint8_t* to, Mask<Scalar> v) {
#ifdef CONVLOGIC_X86_VECTORS
    if constexpr (sizeof(Scalar) == 4) {
#if CONVLOGIC_VECTOR_BYTES == 64
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)v));
#elif CONVLOGIC_VECTOR_BYTES == 32
        const __m128i low = _mm256_castsi256_si128((__m256i)v), high = _mm256_extracti128_si256((__m256i)v, 1);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(_mm_packs_epi32(low, high), low));
#else
        const __m128i words = _mm_packs_epi32((__m128i)v, (__m128i)v);
        const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        memcpy(to, &bytes, 4);
#endif
        return;
    }
#endif
    for (int i = 0; i < vector_width<Scalar>; ++i) to[i] = uint8_t(v[i]);
}

template <class Scalar>
CONVLOGIC_INLINE Mask<Scalar> load_bytes(const uint8_t* from) {
#ifdef CONVLOGIC_X86_VECTORS
    if constexpr (sizeof(Scalar) == 4) {
#if CONVLOGIC_VECTOR_BYTES == 64
        return (Mask<Scalar>)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif CONVLOGIC_VECTOR_BYTES == 32
        return (Mask<Scalar>)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
        int bytes;
        memcpy(&bytes, from, 4);
        const __m128i zero = _mm_setzero_si128();
        return (Mask<Scalar>)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), zero), zero);
#endif
    }
#endif
    Mask<Scalar> v;
    for (int i = 0; i < vector_width<Scalar>; ++i) v[i] = from[i];
    return v;
}

}  // namespace convlogic::CONVLOGIC_ISA
