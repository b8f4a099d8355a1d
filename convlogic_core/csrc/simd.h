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

// In groups of four lanes: two vectors woven together, one scalar or two at a time (what x86 calls unpack), and lane i
// of each group in all its lanes.
template <int lanes>
struct Fours;

#define CONVLOGIC_SHUFFLE(name, ...)                       \
    template <class V>                                     \
    static CONVLOGIC_INLINE V name(V a, V b) {             \
        return __builtin_shufflevector(a, b, __VA_ARGS__); \
    }
template <>
struct Fours<4> {
    CONVLOGIC_SHUFFLE(low, 0, 4, 1, 5)
    CONVLOGIC_SHUFFLE(high, 2, 6, 3, 7)
    CONVLOGIC_SHUFFLE(low_pairs, 0, 1, 4, 5)
    CONVLOGIC_SHUFFLE(high_pairs, 2, 3, 6, 7)
    template <int i, class V>
    static CONVLOGIC_INLINE V lane(V a) {
        return __builtin_shufflevector(a, a, i, i, i, i);
    }
};
template <>
struct Fours<8> {
    CONVLOGIC_SHUFFLE(low, 0, 8, 1, 9, 4, 12, 5, 13)
    CONVLOGIC_SHUFFLE(high, 2, 10, 3, 11, 6, 14, 7, 15)
    CONVLOGIC_SHUFFLE(low_pairs, 0, 1, 8, 9, 4, 5, 12, 13)
    CONVLOGIC_SHUFFLE(high_pairs, 2, 3, 10, 11, 6, 7, 14, 15)
    template <int i, class V>
    static CONVLOGIC_INLINE V lane(V a) {
        return __builtin_shufflevector(a, a, i, i, i, i, i + 4, i + 4, i + 4, i + 4);
    }
};
template <>
struct Fours<16> {
    CONVLOGIC_SHUFFLE(low, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
    CONVLOGIC_SHUFFLE(high, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
    CONVLOGIC_SHUFFLE(low_pairs, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
    CONVLOGIC_SHUFFLE(high_pairs, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
    template <int i, class V>
    static CONVLOGIC_INLINE V lane(V a) {
        return __builtin_shufflevector(a, a, i, i, i, i, i + 4, i + 4, i + 4, i + 4, i + 8, i + 8, i + 8, i + 8, i + 12,
                                       i + 12, i + 12, i + 12);
    }
};
#undef CONVLOGIC_SHUFFLE

// Fours in one vector: what four stores and one load would make the processor wait for.
template <int lanes, class V>
CONVLOGIC_INLINE auto side_by_side(const V* fours) {
    if constexpr (lanes == 4)
        return fours[0];
    else if constexpr (lanes == 8)
        return __builtin_shufflevector(fours[0], fours[1], 0, 1, 2, 3, 4, 5, 6, 7);
    else
        return __builtin_shufflevector(side_by_side<8>(fours), side_by_side<8>(fours + 2), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                       10, 11, 12, 13, 14, 15);
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
    constexpr int lanes = sizeof(V) / sizeof(v[0][0]);
    if constexpr (lanes >= 4) {
        typedef Fours<lanes> F;
        const V ab = combine(F::low(v[0], v[1]), F::high(v[0], v[1]));
        const V cd = combine(F::low(v[2], v[3]), F::high(v[2], v[3]));
        const Result result = fold(combine(F::low_pairs(ab, cd), F::high_pairs(ab, cd)), combine);
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
