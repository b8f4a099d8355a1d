// Netlists: two-input gates over numbered nodes. Node 0 is constant false, then come the inputs, then the gates, each
// after the nodes it reads. Whoever calls has checked that (convlogic_core.circuit.Circuit does).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "packed.h"

namespace convlogic {

struct Netlist {
    int64_t num_inputs, num_gates, num_outputs;
    const int32_t *a, *b;     // [gates]: nodes
    const uint8_t* gate;      // [gates]: numbers of gates
    const int32_t* outputs;   // [outputs]: nodes
    const uint8_t* inverted;  // [outputs]: whether an output is its node's complement

    int64_t first_gate() const { return 1 + num_inputs; }
};

struct SimplifiedNetlist {
    std::vector<int32_t> a, b;
    std::vector<uint8_t> gate;
    std::vector<int32_t> outputs;
    std::vector<uint8_t> inverted;
    std::vector<int32_t> was;  // of each gate, its number before
};

// See convlogic_core.circuit.simplify: its reference is the specification.
SimplifiedNetlist simplify(const Netlist&);

// What an operation computes: outer(left, right), each of the latter a gate of two leaves, or a leaf itself. Gates that
// only one other reads are computed with it, so that their values stay in registers.
struct OperationKind {
    // Gates that are so combined; any other is an operation alone. b's complement is what only 2 has: the two sides of
    // gate 4 are exchanged.
    static constexpr uint8_t combined[4] = {1, 2, 6, 7};
    static constexpr int num_sides = 5;  // a leaf, or one of `combined`
    static constexpr int num_combined = 4 * num_sides * num_sides, count = num_combined + 16;

    // Index of a gate in `combined`, or -1.
    static constexpr int index(uint8_t gate) {
        for (int i = 0; i < 4; ++i)
            if (combined[i] == gate) return i;
        return -1;
    }
    // Sides: 0 for a leaf, 1 + index for a gate.
    static constexpr uint8_t of(int outer, int left, int right) {
        return uint8_t((outer * num_sides + left) * num_sides + right);
    }
    static constexpr uint8_t alone(uint8_t gate) { return uint8_t(num_combined + gate); }
};

// A netlist put into an order in which few nodes are alive at a time, each in a slot: a row of words that is another's
// once nobody reads it any more. Slot 0 is constant false.
struct NetlistProgram {
    struct Input {
        uint32_t row, slot;
    };
    struct Run {  // operations of the same kind, one after the other
        uint32_t kind, count;
    };
    // Some outputs of a class, to be added to its sum: first those that are their node itself.
    struct Count {
        uint32_t num_plain, num_inverted;
        bool ends_class;
    };
    struct Section {  // some runs, and what is counted after them
        uint32_t num_runs, num_counts;
    };

    const Input* inputs;
    const uint32_t* slots;  // of each operation's leaves, then of its result
    const Run* runs;
    const uint32_t* outputs;  // slots
    const Count* counts;
    const Section* sections;
    int64_t num_inputs, num_sections, num_slots;
    int64_t class_size;  // outputs a class
};

// Owns what a program points to.
class Schedule {
public:
    Schedule(const Netlist&, int64_t num_classes);
    NetlistProgram program() const;

private:
    struct Operation {
        int32_t leaves[4], node;  // nodes
        uint8_t num_leaves, kind;
    };
    class Cover;
    class DepthFirst;
    class Block;

    // Operations in the order of sections, and within a section's blocks with those of a kind together.
    std::vector<Operation> order(const Netlist&);
    void assign_slots(const Netlist&, const std::vector<Operation>& order);

    std::vector<NetlistProgram::Input> inputs_;
    std::vector<uint32_t> slots_;
    std::vector<NetlistProgram::Run> runs_;
    std::vector<uint32_t> outputs_;
    std::vector<NetlistProgram::Count> counts_;
    std::vector<NetlistProgram::Section> sections_;
    std::vector<size_t> section_ends_, output_ends_;  // in the order, and among the outputs
    int64_t num_slots_ = 1, class_size_;
};

#define CONVLOGIC_DECLARE_NETLIST_KERNELS(isa)                                                           \
    namespace isa {                                                                                      \
    /* x: [inputs][words]; sums: [classes][images]. False where scratch memory ran out. */               \
    bool netlist_sums(const NetlistProgram&, const Word* x, int64_t images, int threads, int32_t* sums); \
    }

CONVLOGIC_DECLARE_NETLIST_KERNELS(baseline)
CONVLOGIC_DECLARE_NETLIST_KERNELS(avx2)
CONVLOGIC_DECLARE_NETLIST_KERNELS(avx512)

}  // namespace convlogic
