// What one lane holds: several neighbouring images of a row, loaded and stored as one access where rows allow it.
#pragma once

#include "../gate.h"
#include "launch.h"

namespace convlogic::cuda {

using BFloat16 = __nv_bfloat16;

// A word of bits, one an image, with the arithmetic of GF(2): the gate's polynomial then evaluates discrete gates.
struct Bits {
    uint32_t word;
};
__device__ __forceinline__ Bits operator*(Bits a, Bits b) {
    return {a.word & b.word};
}
__device__ __forceinline__ Bits operator+(Bits a, Bits b) {
    return {a.word ^ b.word};
}

template <class T, int size>
struct alignas(sizeof(T) * size) Vec {
    T v[size];
};

// What registers hold: floats for every kind of activation.
template <class T>
struct ValueType {
    using type = float;
};
template <>
struct ValueType<Bits> {
    using type = Bits;
};
template <class T>
using Value = typename ValueType<T>::type;

__device__ __forceinline__ float to_value(float x) {
    return x;
}
__device__ __forceinline__ float to_value(BFloat16 x) {
    return __bfloat162float(x);
}
__device__ __forceinline__ Bits to_value(Bits x) {
    return x;
}

__device__ __forceinline__ void assign(float& to, float x) {
    to = x;
}
__device__ __forceinline__ void assign(BFloat16& to, float x) {
    to = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void assign(Bits& to, Bits x) {
    to = x;
}
__device__ __forceinline__ void assign(uint8_t& to, int x) {
    to = uint8_t(x);
}

// Element n of a row. n stays 32 bits wide: nvcc splits 16-byte accesses whose offset is a 64-bit sum.
template <class T>
__device__ __forceinline__ T* at(T* data, int64_t row, int64_t pitch, int n) {
    return data + row * pitch + n;
}

// `size` images. Where rows are not whole vectors, only the first `left` are touched; the others are zero.
template <int size, bool whole, class T>
__device__ __forceinline__ Vec<Value<T>, size> load(const T* from, int left) {
    Vec<Value<T>, size> values{};
    if constexpr (whole) {
        const Vec<T, size> raw = *reinterpret_cast<const Vec<T, size>*>(from);
#pragma unroll
        for (int i = 0; i < size; ++i) values.v[i] = to_value(raw.v[i]);
    } else {
#pragma unroll
        for (int i = 0; i < size; ++i)
            if (i < left) values.v[i] = to_value(from[i]);
    }
    return values;
}

template <bool whole, int size, class T, class From>
__device__ __forceinline__ void store(T* to, const Vec<From, size>& values, int left) {
    if constexpr (whole) {
        Vec<T, size> raw;
#pragma unroll
        for (int i = 0; i < size; ++i) assign(raw.v[i], values.v[i]);
        *reinterpret_cast<Vec<T, size>*>(to) = raw;
    } else {
#pragma unroll
        for (int i = 0; i < size; ++i)
            if (i < left) assign(to[i], values.v[i]);
    }
}

template <class T>
bool is_aligned(const T* data, int size) {
    return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * size) == 0;
}

// Where gates come from: float coefficients for activations, gate numbers for bits.
template <class T>
struct Gates {
    const float* coefficients;  // [gates][4], 16-byte aligned

    __device__ __forceinline__ Vec<float, 4> operator[](int64_t gate) const {
        return reinterpret_cast<const Vec<float, 4>*>(coefficients)[gate];
    }
};

template <>
struct Gates<Bits> {
    const int64_t* numbers;

    // A number is the truth table f00 f01 f10 f11 read as a binary word; over GF(2) differences are sums.
    __device__ __forceinline__ Vec<Bits, 4> operator[](int64_t gate) const {
        const uint32_t number = uint32_t(numbers[gate]);
        const uint32_t f00 = number >> 3, f01 = number >> 2, f10 = number >> 1, f11 = number;
        return {{mask(f00), mask(f00 ^ f10), mask(f00 ^ f01), mask(f00 ^ f01 ^ f10 ^ f11)}};
    }

    static __device__ __forceinline__ Bits mask(uint32_t bit) { return {0u - (bit & 1u)}; }
};

// Sums 2**levels values over the lanes of a warp that differ in their low `levels` bits: lane l of them returns the sum
// of value l. Half as many values every step: 2**levels - 1 shuffles, always in the same order.
template <int levels>
__device__ __forceinline__ float sum_over_lanes(float* values) {
    if constexpr (levels == 0) {
        return values[0];
    } else {
        constexpr int half = 1 << (levels - 1);
        const bool upper = threadIdx.x & half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float given = upper ? values[i] : values[i + half];
            values[i] = (upper ? values[i + half] : values[i]) + __shfl_xor_sync(full_warp, given, half);
        }
        return sum_over_lanes<levels - 1>(values);
    }
}

// A block is rows of lanes: a row has one gate, output or pixel, its lanes neighbouring images.
constexpr int block_threads = 256, lanes_a_row = 8, rows_a_block = block_threads / lanes_a_row;

struct Place {
    int row, n;
};

template <int images_a_lane>
__device__ __forceinline__ Place place() {
    return {int(blockIdx.x * rows_a_block + threadIdx.x / lanes_a_row),
            int((blockIdx.y * lanes_a_row + threadIdx.x % lanes_a_row) * images_a_lane)};
}

// The grid for `rows` rows of `images` images.
inline dim3 grid_of(int64_t rows, int64_t images, int images_a_lane) {
    return dim3(unsigned(ceil_div(rows, rows_a_block)), unsigned(ceil_div(images, lanes_a_row * images_a_lane)));
}

}  // namespace convlogic::cuda
