// Bit-packed discrete evaluation of a whole network, a chunk of images at a time so that its planes stay in the cache.
#include "packed.h"

#include "class_sums.h"
#include "kernels.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

constexpr int width = vector_width<Word>;

// 1,024 images, a row of two cache lines: planes of mnist_s then take 100 to 640 KiB.
constexpr int64_t chunk_words = 16;
constexpr int max_in_flight = chunk_words / width < 4 ? chunk_words / width : 4;

CONVLOGIC_INLINE int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// A gate with g(0, 0) = 0 is the polynomial c1*a + c2*b + c3*a*b over GF(2): + is XOR, * is AND, and every coefficient
// is a mask. The gate's code is the rest of its truth table, g(0, 1) g(1, 0) g(1, 1).
struct Polynomials {
    alignas(64) Word mask[8][3][width];

    constexpr Polynomials() : mask() {
        for (unsigned code = 0; code < 8; ++code) {
            const unsigned c2 = code >> 2 & 1, c1 = code >> 1 & 1, c3 = (code ^ c1 ^ c2) & 1;
            for (int lane = 0; lane < width; ++lane) {
                mask[code][0][lane] = Word(0) - c1;
                mask[code][1][lane] = Word(0) - c2;
                mask[code][2][lane] = Word(0) - c3;
            }
        }
    }
};
constexpr Polynomials polynomials;

using Masks = const Word (*)[width];  // of one gate

CONVLOGIC_INLINE Words packed_gate(Masks c, Words a, Words b) {
    return (load(c[0]) & a) ^ (((load(c[2]) & a) ^ load(c[1])) & b);
}

// Node `index` of `level` (level 0: the leaves), depth first; leaf(l, i) loads leaf l of vector i.
template <int num_leaves, int level, int index, int in_flight, class Leaf>
CONVLOGIC_INLINE void packed_node(const Masks* masks, const Leaf& leaf, Words (&out)[in_flight]) {
    if constexpr (level == 0) {
        for (int i = 0; i < in_flight; ++i) out[i] = leaf(index, i);
    } else {
        Words a[in_flight], b[in_flight];
        packed_node<num_leaves, level - 1, 2 * index>(masks, leaf, a);
        packed_node<num_leaves, level - 1, 2 * index + 1>(masks, leaf, b);
        constexpr int level_start = num_leaves - (num_leaves >> (level - 1));
        for (int i = 0; i < in_flight; ++i) out[i] = packed_gate(masks[level_start + index], a[i], b[i]);
    }
}

// Rows of words: row r begins at data + r * stride.
struct Planes {
    const Word* data;
    int64_t stride;
};

// One tree for a few vectors: the OR over its pool, whose windows begin at the given offsets. The last vector of
// a row may be ragged, of so many words as are left.
template <int depth, int pool_size, int in_flight, bool ragged>
CONVLOGIC_INLINE void packed_cell(const Word* const* leaves, const Masks* masks, const int64_t* offsets, Words invert,
                                  int64_t first, int64_t words, Word* y) {
    Words any[in_flight] = {};
    for (int p = 0; p < pool_size; ++p) {
        Words value[in_flight];
        const auto leaf = [&](int l, int i) {
            const Word* from = leaves[l] + (offsets[p] + first + i * width);
            return ragged ? load(from, words - first) : load(from);
        };
        packed_node<1 << depth, depth, 0>(masks, leaf, value);
        for (int i = 0; i < in_flight; ++i) any[i] |= value[i] ^ invert;
    }
    for (int i = 0; i < in_flight; ++i) store(y + first + i * width, any[i], ragged ? words - first : width);
}

template <int depth, int pool>
void evaluate(const PackedLayer& layer, Planes x, int64_t words, Word* y, int64_t y_stride) {
    constexpr int num_leaves = 1 << depth, num_gates = num_leaves - 1, pool_size = pool * pool,
                  in_flight = max_in_flight;
    const int64_t step_y = layer.stride_y * layer.padded_width() * x.stride, step_x = layer.stride_x * x.stride;
    for (int64_t k = 0; k < layer.trees; ++k) {
        const uint8_t* codes = layer.codes + k * num_gates;
        const Word* leaves[num_leaves];
        Masks masks[num_gates];
        for (int l = 0; l < num_leaves; ++l) leaves[l] = x.data + layer.leaves[k * num_leaves + l] * x.stride;
        for (int g = 0; g < num_gates; ++g) masks[g] = polynomials.mask[codes[g] & 7];
        const Words invert = Words{} - Word(codes[num_gates - 1] >> 3);
        for (int64_t row = 0; row < layer.out_height; ++row)
            for (int64_t column = 0; column < layer.out_width; ++column, y += y_stride) {
                int64_t offsets[pool_size];
                for (int p = 0; p < pool_size; ++p)
                    offsets[p] = (row * pool + p / pool) * step_y + (column * pool + p % pool) * step_x;
                int64_t word = 0;
                for (; word + in_flight * width <= words; word += in_flight * width)
                    packed_cell<depth, pool_size, in_flight, false>(leaves, masks, offsets, invert, word, words, y);
                for (; word < words; word += width)
                    packed_cell<depth, pool_size, 1, true>(leaves, masks, offsets, invert, word, words, y);
            }
    }
}

template <int pool>
void evaluate(const PackedLayer& layer, Planes x, int64_t words, Word* y, int64_t y_stride) {
    switch (layer.depth) {
        case 1: return evaluate<1, pool>(layer, x, words, y, y_stride);
        case 2: return evaluate<2, pool>(layer, x, words, y, y_stride);
        case 3: return evaluate<3, pool>(layer, x, words, y, y_stride);
        default: return evaluate<4, pool>(layer, x, words, y, y_stride);
    }
}

// Copies planes into larger ones with a border of zeros.
void pad(const PackedLayer& layer, Planes x, int64_t words, Word* y) {
    const size_t row_bytes = size_t(words) * sizeof(Word);
    const int64_t left = layer.padding_x * words, above = layer.padding_y * layer.padded_width() * words;
    const Word* from = x.data;
    const auto zeros = [&](int64_t count) {
        memset(y, 0, size_t(count) * sizeof(Word));
        y += count;
    };
    for (int64_t channel = 0; channel < layer.channels; ++channel) {
        zeros(above);
        for (int64_t row = 0; row < layer.height; ++row) {
            zeros(left);
            for (int64_t column = 0; column < layer.width; ++column, from += x.stride, y += words)
                memcpy(y, from, row_bytes);
            zeros(left);
        }
        zeros(above);
    }
}

// sums[class][image] of a chunk.
void class_sums(Planes x, int64_t group, int64_t classes, int64_t images, int32_t* sums, int64_t sums_stride) {
    const int64_t words = (images + 63) / 64;
    const int num_digits = digits_for(group);
    for (int64_t c = 0; c < classes; ++c, x.data += group * x.stride, sums += sums_stride)
        for (int64_t word = 0; word < words; word += width) {
            const auto row = [&](int64_t r) { return load(x.data + r * x.stride + word, words - word); };
            Words digits[max_digits] = {};
            count_ones(group, row, num_digits, digits);
            store_numbers(digits, num_digits, images - word * 64, sums + word * 64);
        }
}

// Features that are packed together: long runs of each image, so that the hardware prefetches them; no power of two, so
// that the rows of a buffer do not share cache sets.
constexpr int64_t pack_features = 832;

// Adds up the bits of eight images at a feature to one byte. Returns the OR of all bytes read.
Vector<uint8_t> pack_eight(const uint8_t* x, int64_t row_bytes, int64_t images, int64_t features, uint8_t* eight) {
    constexpr int bytes = vector_width<uint8_t>;
    Vector<uint8_t> seen = {};
    for (int64_t feature = 0; feature < features; feature += bytes) {
        Vector<uint8_t> sum = {};
        const auto add = [&](int image, bool ragged) {
            const uint8_t* from = x + image * row_bytes + feature;
            const Vector<uint8_t> bits = ragged ? load(from, features - feature) : load(from);
            seen |= bits;
            sum += sum + bits;
        };
        if (images >= 8 && features - feature >= bytes)
            for (int image = 7; image >= 0; --image) add(image, false);
        else
            for (int image = int(smaller(images, 8)) - 1; image >= 0; --image) add(image, true);
        store(eight + feature, sum);
    }
    return seen;
}

// Words of sixteen features from their eight bytes, which lie pack_features apart.
CONVLOGIC_INLINE void transpose_bytes(const uint8_t* eights, int64_t features, Word* y, int64_t y_stride) {
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    typedef Word Pair __attribute__((vector_size(16)));
    const auto interleaved = [](const Bytes(&from)[8], Bytes(&to)[8]) {
        for (int i = 0; i < 4; ++i) {
            to[2 * i] =
                __builtin_shufflevector(from[i], from[i + 4], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + 4], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                                    14, 30, 15, 31);
        }
    };
    Bytes v[8], w[8];
    for (int q = 0; q < 8; ++q) memcpy(&v[q], eights + q * pack_features, sizeof(Bytes));
    interleaved(v, w), interleaved(w, v), interleaved(v, w);  // after which a feature's bytes lie side by side
    for (int f = 0; f < 16; ++f)
        if (f < features) y[f * y_stride] = Pair(w[f / 2])[f % 2];
}

}  // namespace

bool pack_bits(const uint8_t* x, int64_t images, int64_t features, int threads, Word* y) {
    constexpr int64_t block = 8;  // words: a cache line of each row of y
    const int64_t words = (images + 63) / 64;
    bool binary = true;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : binary)
    for (int64_t start = 0; start < words; start += block) {
        Vector<uint8_t> seen = {};
        for (int64_t first = 0; first < features; first += pack_features) {
            alignas(64) uint8_t eights[block][8 * pack_features];
            const int64_t count = smaller(pack_features, features - first), end = smaller(block, words - start);
            for (int64_t word = 0; word < end; ++word)
                for (int64_t q = 0; q < 8; ++q) {
                    const int64_t image = (start + word) * 64 + q * 8;
                    seen |= pack_eight(x + image * features + first, features, images - image, count,
                                       eights[word] + q * pack_features);
                }
            for (int64_t f = 0; f < count; f += 16)
                for (int64_t word = 0; word < end; ++word)
                    transpose_bytes(eights[word] + f, count - f, y + (first + f) * words + start + word, words);
        }
        uint8_t any = 0;
        for (int i = 0; i < vector_width<uint8_t>; ++i) any |= seen[i];
        binary = binary && any <= 1;
    }
    return binary;
}

bool packed_network(const PackedNetwork& network) {
    int64_t rows = 0;  // most of a buffer
    for (int64_t l = 0; l < network.num_layers; ++l) {
        const PackedLayer& layer = network.layers[l];
        rows = layer.padded_rows() > rows ? layer.padded_rows() : rows;
        rows = layer.out_rows() > rows ? layer.out_rows() : rows;
    }
    bool complete = true;
#pragma omp parallel for num_threads(network.threads) schedule(dynamic) reduction(&& : complete)
    for (int64_t first = 0; first < network.words; first += chunk_words) {
        const int64_t words = smaller(chunk_words, network.words - first);
        Word* buffer = static_cast<Word*>(scratch(size_t(2 * rows * words) * sizeof(Word)));
        complete = complete && (buffer || !rows);
        if (!complete) continue;
        Word *free = buffer, *other = buffer + rows * words;
        Planes x{network.x + first, network.words};
        const auto written = [&] {
            x = {free, words};
            Word* swapped = free;
            free = other, other = swapped;
        };
        for (int64_t l = 0; l < network.num_layers; ++l) {
            const PackedLayer& layer = network.layers[l];
            if (layer.padding_y || layer.padding_x) {
                pad(layer, x, words, free);
                written();
            }
            const bool to_caller = network.y && l + 1 == network.num_layers;
            (layer.pool == 1 ? evaluate<1> : evaluate<2>)(layer, x, words, to_caller ? network.y + first : free,
                                                          to_caller ? network.words : words);
            written();
        }
        if (network.sums)
            class_sums(x, network.out_rows() / network.classes, network.classes,
                       smaller(64 * words, network.images - 64 * first), network.sums + 64 * first, network.images);
    }
    return complete;
}

}  // namespace convlogic::CONVLOGIC_ISA
