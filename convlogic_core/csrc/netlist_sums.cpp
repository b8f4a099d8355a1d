// Netlists on packed bits: no code is made for a net, a program of slots is followed, 512 images at a time.
#include <utility>

#include "class_sums.h"
#include "kernels.h"
#include "netlist.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

constexpr int64_t row_words = 8;  // a cache line: the rows in use then fit into a core's own caches
constexpr int width = vector_width<Word>;
static_assert(row_words % width == 0, "rows are whole vectors");

// A gate's number is its outputs for (a, b) = 00, 01, 10, 11, the first in bit 8.
template <int gate>
CONVLOGIC_INLINE Words apply(Words a, Words b) {
    if constexpr (gate & 8)
        return ~apply<15 - gate>(a, b);
    else if constexpr (gate == 0)
        return Words{};
    else if constexpr (gate == 1)
        return a & b;
    else if constexpr (gate == 2)
        return a & ~b;
    else if constexpr (gate == 3)
        return a;
    else if constexpr (gate == 4)
        return ~a & b;
    else if constexpr (gate == 5)
        return b;
    else if constexpr (gate == 6)
        return a ^ b;
    else
        return a | b;
}

// One side of an operation: a leaf, or a gate of two; slots are read on.
template <int side>
CONVLOGIC_INLINE void load_side(const Word* rows, const uint32_t*& slots, Words (&y)[row_words / width]) {
    const Word* a = rows + *slots++ * row_words;
    if constexpr (side == 0) {
        for (int64_t i = 0; i < row_words / width; ++i) y[i] = load(a + i * width);
    } else {
        constexpr int gate = OperationKind::combined[side - 1];
        const Word* b = rows + *slots++ * row_words;
        for (int64_t i = 0; i < row_words / width; ++i) y[i] = apply<gate>(load(a + i * width), load(b + i * width));
    }
}

template <int outer, int left, int right>
const uint32_t* run(const uint32_t* slots, uint32_t count, Word* rows) {
    for (; count > 0; --count) {
        Words a[row_words / width], b[row_words / width];
        load_side<left>(rows, slots, a);
        load_side<right>(rows, slots, b);
        Word* out = rows + *slots++ * row_words;
        for (int64_t i = 0; i < row_words / width; ++i) store(out + i * width, apply<outer>(a[i], b[i]));
    }
    return slots;
}

using RunOperations = const uint32_t* (*)(const uint32_t*, uint32_t, Word*);
struct Runs {
    RunOperations of_kind[OperationKind::count];

    template <int kind>
    static constexpr RunOperations run_of() {
        if constexpr (kind >= OperationKind::num_combined) {
            return run<kind - OperationKind::num_combined, 0, 0>;
        } else {
            constexpr int n = OperationKind::num_sides;
            return run<OperationKind::combined[kind / (n * n)], kind / n % n, kind % n>;
        }
    }
    template <int... kinds>
    constexpr explicit Runs(std::integer_sequence<int, kinds...>) : of_kind{run_of<kinds>()...} {}
};
constexpr Runs runs{std::make_integer_sequence<int, OperationKind::count>()};

// The images of one row: sums[class * stride + image].
void evaluate(const NetlistProgram& program, int num_digits, int64_t images, int64_t stride, Word* rows,
              int32_t* sums) {
    const uint32_t* slots = program.slots;
    const NetlistProgram::Run* next_run = program.runs;
    const uint32_t* output = program.outputs;
    const NetlistProgram::Count* count = program.counts;
    Words digits[row_words / width][max_digits];
    for (int64_t i = 0; i < row_words / width; ++i)
        for (int d = 0; d < num_digits; ++d) digits[i][d] = Words{};
    for (int64_t s = 0; s < program.num_sections; ++s) {
        const NetlistProgram::Section& section = program.sections[s];
        for (const auto* end = next_run + section.num_runs; next_run != end; ++next_run)
            slots = runs.of_kind[next_run->kind](slots, next_run->count, rows);
        for (const auto* end = count + section.num_counts; count != end; ++count) {
            for (int64_t i = 0; i < row_words / width; ++i) {
                const auto plain = [&](int64_t r) { return load(rows + output[r] * row_words + i * width); };
                const auto inverted = [&](int64_t r) { return ~plain(count->num_plain + r); };
                count_ones(count->num_plain, plain, num_digits, digits[i]);
                count_ones(count->num_inverted, inverted, num_digits, digits[i]);
            }
            output += count->num_plain + count->num_inverted;
            if (!count->ends_class) continue;
            for (int64_t i = 0; i < row_words / width; ++i) {
                const int64_t first = i * width * 64;
                if (first < images) store_numbers(digits[i], num_digits, images - first, sums + first);
                for (int d = 0; d < num_digits; ++d) digits[i][d] = Words{};
            }
            sums += stride;
        }
    }
}

}  // namespace

bool netlist_sums(const NetlistProgram& program, const Word* x, int64_t images, int threads, int32_t* sums) {
    const int64_t words = (images + 63) / 64;
    const int num_digits = digits_for(program.class_size);
    bool complete = true;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : complete)
    for (int64_t first = 0; first < words; first += row_words) {
        constexpr size_t row_bytes = size_t(row_words) * sizeof(Word);
        Word* rows = static_cast<Word*>(scratch(size_t(program.num_slots) * row_bytes));
        if (!rows) {
            complete = false;
            continue;
        }
        memset(rows, 0, row_bytes);  // constant false
        const int64_t count = words - first < row_words ? words - first : row_words;
        for (int64_t i = 0; i < program.num_inputs; ++i) {
            Word* row = rows + program.inputs[i].slot * row_words;
            const Word* from = x + program.inputs[i].row * words + first;
            if (count == row_words) {
                for (int64_t w = 0; w < row_words; w += width) store(row + w, load(from + w));
            } else {
                memset(row, 0, row_bytes);
                memcpy(row, from, size_t(count) * sizeof(Word));
            }
        }
        evaluate(program, num_digits, images - first * 64, images, rows, sums + first * 64);
    }
    return complete;
}

}  // namespace convlogic::CONVLOGIC_ISA
