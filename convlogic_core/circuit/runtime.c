/* <description> */
/* A word holds one bit of WORD_BITS images. A block is VECTORS words; what is known of the images of one word is its
 * state: the bits of the class sums, values that more than one part needs, the input bits that are read. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* <constants> */

#ifndef WORD_BITS
#if defined(__GNUC__) && defined(__AVX512F__)
#define WORD_BITS 512
#elif defined(__GNUC__) && defined(__AVX2__)
#define WORD_BITS 256
#elif defined(__GNUC__) && (defined(__SSE2__) || defined(__ARM_NEON))
#define WORD_BITS 128
#else
#define WORD_BITS 64
#endif
#endif

#if WORD_BITS == 64
typedef uint64_t word;
#else
typedef uint64_t word __attribute__((vector_size(WORD_BITS / 8), may_alias));
#endif

#ifdef __GNUC__
#define NOT_INLINED __attribute__((noinline))
#else
#define NOT_INLINED
#endif

#define LANES (WORD_BITS / 64)
#define PACKED_BYTES 4096 /* of an image that are packed together at most: they lie on the stack */
/* Each part runs on all words of a block before the next one is fetched; states beyond the cache cost more than that
 * saves. */
#define CACHE_BYTES (128 * 1024)
#define FITTING (CACHE_BYTES / (STATE_WORDS * (WORD_BITS / 8)))
#ifndef VECTORS
#define VECTORS (FITTING < 1 ? 1 : FITTING > 8 ? 8 : FITTING)
#endif

/* Exchanges blocks of size x size bytes in 8 rows of 8 bytes a lane. */
#define TRANSPOSE(size, mask)                                                                         \
    for (size_t row = 0; row < 8; ++row)                                                              \
        if (!(row & (size))) {                                                                        \
            const word exchanged = (rows[row] >> (8 * (size)) ^ rows[row + (size)]) & UINT64_C(mask); \
            rows[row + (size)] ^= exchanged;                                                          \
            rows[row] ^= exchanged << (8 * (size));                                                   \
        }

/* Whether each of num_bytes bytes is at least `threshold`, for 8 images: a byte of 8 bits for each. */
static inline void compare(const uint8_t* const* images, size_t first, size_t num_bytes, unsigned threshold,
                           uint8_t* gathered) {
    const uint64_t every = UINT64_C(0x0101010101010101), low = 127 * every, top = 128 * every;
    const uint64_t offset = (128 - (threshold & 127)) * every;
    const size_t step = num_bytes < sizeof(word) ? num_bytes : sizeof(word);
    for (size_t done = 0; done < num_bytes; done += step) {
        const size_t from = done < num_bytes - step ? done : num_bytes - step;
        word bits = {0};
        for (size_t i = 0; i < 8; ++i) {
            word bytes = {0};
            memcpy(&bytes, images[i] + first + from, step);
            if (threshold < 128)
                bytes |= (bytes & low) + offset;
            else if (threshold > 128)
                bytes &= (bytes & low) + offset;
            bits = bits >> 1 | (bytes & top);
        }
        memcpy(gathered + from, &bits, step);
    }
}

/* One bit for each of 64 images and each of num_bytes bytes from `first`: bits[i * LANES] is of byte i.
 * Images are read 8 at a time, which hardware can foresee; then 8 rows of bytes are transposed in 64-bit lanes. */
static inline void pack(const uint8_t* const* images, size_t first, size_t num_bytes, unsigned threshold,
                        uint64_t* bits) {
    const uint16_t probe = 1;
    const size_t flipped = *(const uint8_t*)&probe ? 0 : 7; /* where the first byte is the highest */
    const size_t step = num_bytes < sizeof(word) ? num_bytes : sizeof(word);
    uint8_t gathered[8][PACKED_BYTES + sizeof(word)]; /* the last word may be read in part */
    for (size_t row = 0; row < 8; ++row) compare(images + 8 * row, first, num_bytes, threshold, gathered[row]);
    for (size_t done = 0; done < num_bytes; done += step) {
        const size_t from = done < num_bytes - step ? done : num_bytes - step;
        word rows[8];
        for (size_t row = 0; row < 8; ++row) memcpy(&rows[row], gathered[row] + from, sizeof(word));
        TRANSPOSE(4, 0x00000000ffffffff)
        TRANSPOSE(2, 0x0000ffff0000ffff)
        TRANSPOSE(1, 0x00ff00ff00ff00ff)
        for (size_t row = 0; row < 8; ++row) {
            uint64_t lanes[LANES];
            memcpy(lanes, &rows[row], sizeof(word));
            for (size_t lane = 0; lane < LANES; ++lane) {
                const size_t byte = 8 * lane + (row ^ flipped);
                if (byte < step) bits[(from + byte) * LANES] = lanes[lane];
            }
        }
    }
}

/* <circuit> */

/* The state of each word of a block of num_images. */
static void run(const uint8_t* pixels, size_t num_images, word* states) {
    const size_t num_words = (num_images + WORD_BITS - 1) / WORD_BITS;
    for (size_t start = 0; start < num_words * WORD_BITS; start += 64) {
        const uint8_t* images[64]; /* beyond the last one it stands in */
        for (size_t i = 0; i < 64; ++i)
            images[i] = pixels + IMAGE_BYTES * (start + i < num_images ? start + i : num_images - 1);
        pack_inputs(images, (uint64_t*)(states + start / WORD_BITS * STATE_WORDS) + start % WORD_BITS / 64);
    }
    for (size_t part = 0; part < sizeof PARTS / sizeof *PARTS; ++part)
        for (size_t i = 0; i < num_words; ++i) PARTS[part](states + i * STATE_WORDS);
}

/* Numbers of 64 images from their bits, of which bit i lies in bits[i * LANES]. */
static inline void unpack(const uint64_t* bits, unsigned num_bits, uint32_t* numbers) {
    for (unsigned first = 0; first < 64; first += 8) {
        for (unsigned i = 0; i < 8; ++i) numbers[first + i] = 0;
        for (unsigned low = 0; low < num_bits; low += 8) {
            uint64_t bytes = 0; /* 8 bits of each of 8 images */
            for (unsigned bit = low; bit < num_bits && bit < low + 8; ++bit) {
                const uint64_t eight = bits[bit * LANES] >> first & 255;
                const uint64_t spread = eight * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201);
                bytes |= ((spread + UINT64_C(0x00406070787c7e7f)) >> 7 & UINT64_C(0x0101010101010101)) << (bit - low);
            }
            for (unsigned i = 0; i < 8; ++i) numbers[first + i] |= (uint32_t)(bytes >> 8 * i & 255) << low;
        }
    }
}

/* The class of the highest sum, of equal ones the lowest, as CLASS_BITS words. */
static void find_highest(const word* sums, word* classes) {
    word best[SUM_BITS];
    memcpy(best, sums, sizeof best);
    memset(classes, 0, CLASS_BITS * sizeof(word));
    for (size_t number = 1; number < NUM_CLASSES; ++number) {
        const word* sum = sums + number * SUM_BITS;
        word is_higher = {0};
        for (size_t bit = 0; bit < SUM_BITS; ++bit) {
            const word differs = sum[bit] ^ best[bit];
            is_higher = (is_higher & ~differs) | (sum[bit] & differs);
        }
        for (size_t bit = 0; bit < SUM_BITS; ++bit) best[bit] ^= (best[bit] ^ sum[bit]) & is_higher;
        for (size_t bit = 0; bit < CLASS_BITS; ++bit)
            classes[bit] = number >> bit & 1 ? classes[bit] | is_higher : classes[bit] & ~is_higher;
    }
}

static void sums_from_bits(const word* state, size_t num_images, int32_t* sums) {
    for (size_t start = 0; start < num_images; start += 64) {
        const size_t here = num_images - start < 64 ? num_images - start : 64;
        for (size_t number = 0; number < NUM_CLASSES; ++number) {
            uint32_t numbers[64];
            unpack((const uint64_t*)(state + number * SUM_BITS) + start / 64, SUM_BITS, numbers);
            for (size_t i = 0; i < here; ++i) sums[(start + i) * NUM_CLASSES + number] = (int32_t)numbers[i];
        }
    }
}

static void classes_from_bits(const word* state, size_t num_images, uint16_t* classes) {
    word highest[CLASS_BITS];
    find_highest(state, highest);
    for (size_t start = 0; start < num_images; start += 64) {
        const size_t here = num_images - start < 64 ? num_images - start : 64;
        uint32_t numbers[64];
        unpack((const uint64_t*)highest + start / 64, CLASS_BITS, numbers);
        for (size_t i = 0; i < here; ++i) classes[start + i] = (uint16_t)numbers[i];
    }
}

/* Sums or, where there is room for them, classes. */
static int run_all(const uint8_t* pixels, size_t num_images, int32_t* sums, uint16_t* classes) {
    void* memory = malloc((VECTORS * STATE_WORDS + 1) * sizeof(word));
    if (!memory) return -1;
    word* states = (word*)(((uintptr_t)memory + sizeof(word) - 1) / sizeof(word) * sizeof(word));
    for (size_t start = 0; start < num_images; start += VECTORS * WORD_BITS) {
        const size_t left = num_images - start, block = left < VECTORS * WORD_BITS ? left : VECTORS * WORD_BITS;
        run(pixels + start * IMAGE_BYTES, block, states);
        for (size_t first = 0; first < block; first += WORD_BITS) {
            const size_t here = block - first < WORD_BITS ? block - first : WORD_BITS;
            const word* state = states + first / WORD_BITS * STATE_WORDS;
            if (classes)
                classes_from_bits(state, here, classes + start + first);
            else
                sums_from_bits(state, here, sums + (start + first) * NUM_CLASSES);
        }
    }
    free(memory);
    return 0;
}

/* Each class's sum: sums[image * NUM_CLASSES + class]. Returns 0, or -1 where there is no memory. */
int PUBLIC(sums)(const uint8_t* pixels, size_t num_images, int32_t* sums) {
    return run_all(pixels, num_images, sums, NULL);
}

/* Each image's class, the lowest of those with the highest sum. Returns 0, or -1 where there is no memory. */
int PUBLIC(classify)(const uint8_t* pixels, size_t num_images, uint16_t* classes) {
    return run_all(pixels, num_images, NULL, classes);
}
