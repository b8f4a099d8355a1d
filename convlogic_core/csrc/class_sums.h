// How many of some rows of bits are one, for each image: counted in binary digits of which each is a row itself.
#pragma once

#include <utility>

#include "packed.h"
#include "simd.h"

namespace convlogic::CONVLOGIC_ISA {

using Words = Vector<Word>;

constexpr int max_digits = 31;

// sum + a + b of single bits: the sum's low bit, and the carry.
CONVLOGIC_INLINE Words full_adder(Words& sum, Words a, Words b) {
    const Words either = sum ^ a, carry = (sum & a) | (either & b);
    sum = either ^ b;
    return carry;
}

CONVLOGIC_INLINE int digits_for(int64_t rows) {
    int num_digits = 4;
    while (rows >> num_digits) ++num_digits;
    return num_digits;
}

// Adds rows of bits, row(r) for the images of one vector, to digits that have room for the sum. What carries beyond
// sixteen is rare, and kept in memory.
template <class Row>
CONVLOGIC_INLINE void count_ones(int64_t rows, const Row& row, int num_digits, Words* digits) {
    Words ones = digits[0], twos = digits[1], fours = digits[2], eights = digits[3];
    const auto pair = [&](int64_t r) { return full_adder(ones, row(r), row(r + 1)); };
    const auto quad = [&](int64_t r) {
        const Words first = pair(r);
        return full_adder(twos, first, pair(r + 2));
    };
    const auto eight = [&](int64_t r) {
        const Words first = quad(r);
        return full_adder(fours, first, quad(r + 4));
    };
    const auto carry_on = [&](Words carry) {
        for (int i = 4; i < num_digits; ++i) {
            const Words next = digits[i] & carry;
            digits[i] ^= carry;
            carry = next;
        }
    };
    int64_t r = 0;
    for (; r + 16 <= rows; r += 16) {
        const Words first = eight(r);
        carry_on(full_adder(eights, first, eight(r + 8)));
    }
    for (; r < rows; ++r) {
        Words carry = row(r);
        for (Words* digit : {&ones, &twos, &fours, &eights}) {
            const Words next = *digit & carry;
            *digit ^= carry;
            carry = next;
        }
        carry_on(carry);
    }
    digits[0] = ones, digits[1] = twos, digits[2] = fours, digits[3] = eights;
}

// A byte of all ones or zeros for each bit: bit i of `bits` for lane i, of as many bits as a vector has bytes.
template <int... lanes>
CONVLOGIC_INLINE Vector<uint8_t> spread_bits(Word bits, std::integer_sequence<int, lanes...>) {
    constexpr int bytes = sizeof...(lanes);
    // repeated, so that each byte is found in its own 16 bytes of the vector
    const auto all =
        bytes == 64 ? (Vector<uint8_t>)(Vector<Word>{} + bits) : (Vector<uint8_t>)(Vector<uint32_t>{} + uint32_t(bits));
    const Vector<uint8_t> of_lane = {uint8_t(1 << lanes % 8)...};
    const Vector<uint8_t> spread = __builtin_shufflevector(all, all, (lanes / 16 * 16 + lanes / 8)...);
    return (Vector<uint8_t>)((spread & of_lane) == of_lane);
}

// The numbers that digits stand for, of so many images as there are, at most those of a vector.
CONVLOGIC_INLINE void store_numbers(const Words* digits, int num_digits, int64_t images, int32_t* numbers) {
    constexpr int bytes = vector_width<uint8_t>, lanes = vector_width<int32_t>, width = vector_width<Word>;
    for (int64_t first = 0; first < images && first < width * 64; first += bytes) {
        alignas(64) uint8_t parts[(max_digits + 7) / 8][bytes];  // of each image's number, eight digits at a time
        for (int d = 0; d < num_digits; d += 8) {
            Vector<uint8_t> part = {};
            for (int i = (d + 8 < num_digits ? d + 8 : num_digits) - 1; i >= d; --i) {
                const char* from = reinterpret_cast<const char*>(&digits[i]) + first / 8;
                Word bits = 0;
                memcpy(&bits, from, bytes / 8);
                part = part + part - spread_bits(bits, std::make_integer_sequence<int, bytes>());
            }
            store(parts[d / 8], part);
        }
        for (int64_t image = 0; image < bytes && first + image < images; image += lanes) {
            typedef uint8_t Narrow __attribute__((vector_size(lanes)));
            Vector<int32_t> total = {};
            for (int d = (num_digits - 1) / 8; d >= 0; --d) {
                Narrow narrow;
                memcpy(&narrow, parts[d] + image, sizeof(narrow));
                total = total * 256 + __builtin_convertvector(narrow, Vector<int32_t>);
            }
            store(numbers + first + image, total, images - first - image);
        }
    }
}

}  // namespace convlogic::CONVLOGIC_ISA
