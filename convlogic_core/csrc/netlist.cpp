// Simplification of netlists.
#include "netlist.h"

#include <algorithm>
#include <utility>

namespace convlogic {
namespace {

struct Literal {  // a node, or its complement
    uint32_t bits;

    uint32_t node() const { return bits >> 1; }
    bool complemented() const { return bits & 1; }
};

// A gate of literals as a gate of nodes: 0 (false), 3 (a), or one that depends on both, with a < b and g(0, 0) = 0; and
// whether the result is its complement. A gate's number is its outputs for (a, b) = 00, 01, 10, 11, the first in bit 8.
struct NormalGate {
    uint32_t a, b, gate;
    bool complemented;
};

NormalGate normalized(Literal left, Literal right, uint32_t gate) {
    uint32_t a = left.node(), b = right.node();
    if (left.complemented()) gate = (gate & 3) << 2 | gate >> 2;
    if (right.complemented()) gate = (gate & 5) << 1 | (gate & 10) >> 1;
    if (a == 0) gate = (gate & 12) | gate >> 2;
    if (b == 0) gate = (gate & 10) | (gate & 10) >> 1;
    if (a == b) gate = 12 * (gate >> 3) + 3 * (gate & 1);
    if (gate >> 2 == (gate & 3)) {  // does not depend on a: take b for it
        a = b;
        gate = 12 * (gate >> 3) + 3 * (gate & 1);
    } else if ((gate & 10) >> 1 != (gate & 5) && a > b) {
        std::swap(a, b);
        gate = (gate & 9) | (gate & 4) >> 1 | (gate & 2) << 1;
    }
    const bool complemented = gate >> 3;
    return {a, b, complemented ? gate ^ 15 : gate, complemented};
}

// The nodes of gates by what they compute: open addressing, at most half full.
class KnownGates {
public:
    KnownGates(const SimplifiedNetlist& gates, uint32_t first_gate, int64_t num_gates)
        : gates_(gates), first_gate_(first_gate) {
        int bits = 4;
        while (int64_t(1) << bits < 2 * num_gates) ++bits;
        shift_ = 64 - bits;
        nodes_.resize(size_t(1) << bits, 0);
    }

    // The node of this gate, or a place to enter one: 0 there.
    uint32_t& find(const NormalGate& gate) {
        const uint64_t key = uint64_t(gate.a) << 34 ^ uint64_t(gate.b) << 3 ^ gate.gate;
        size_t place = size_t((key * 0x9E3779B97F4A7C15u) >> shift_);
        while (nodes_[place] && !is(nodes_[place], gate)) place = (place + 1) & (nodes_.size() - 1);
        return nodes_[place];
    }

private:
    bool is(uint32_t node, const NormalGate& gate) const {
        const size_t g = node - first_gate_;
        return uint32_t(gates_.a[g]) == gate.a && uint32_t(gates_.b[g]) == gate.b && gates_.gate[g] == gate.gate;
    }

    const SimplifiedNetlist& gates_;
    uint32_t first_gate_;
    int shift_;
    std::vector<uint32_t> nodes_;
};

// Keeps the gates that outputs need, in their order.
void drop_dead(SimplifiedNetlist& netlist, uint32_t first_gate) {
    const size_t num_gates = netlist.gate.size();
    std::vector<int32_t> renumbered(first_gate + num_gates, 0);  // at first: whether alive
    for (int32_t node : netlist.outputs) renumbered[size_t(node)] = 1;
    for (size_t g = num_gates; g-- > 0;)
        if (renumbered[first_gate + g]) renumbered[size_t(netlist.a[g])] = renumbered[size_t(netlist.b[g])] = 1;
    size_t kept = 0;
    for (uint32_t node = 0; node < first_gate; ++node) renumbered[node] = int32_t(node);
    for (size_t g = 0; g < num_gates; ++g) {
        if (!renumbered[first_gate + g]) continue;
        netlist.a[kept] = renumbered[size_t(netlist.a[g])];
        netlist.b[kept] = renumbered[size_t(netlist.b[g])];
        netlist.gate[kept] = netlist.gate[g];
        netlist.was[kept] = netlist.was[g];
        renumbered[first_gate + g] = int32_t(first_gate + kept++);
    }
    netlist.a.resize(kept);
    netlist.b.resize(kept);
    netlist.gate.resize(kept);
    netlist.was.resize(kept);
    for (int32_t& node : netlist.outputs) node = renumbered[size_t(node)];
}

}  // namespace

SimplifiedNetlist simplify(const Netlist& from) {
    SimplifiedNetlist to;
    const uint32_t first_gate = uint32_t(from.first_gate());
    std::vector<Literal> became(size_t(first_gate + from.num_gates));  // of each node
    for (uint32_t node = 0; node < first_gate; ++node) became[node] = {2 * node};
    KnownGates known(to, first_gate, from.num_gates);
    for (int64_t g = 0; g < from.num_gates; ++g) {
        const NormalGate gate = normalized(became[size_t(from.a[g])], became[size_t(from.b[g])], from.gate[g]);
        uint32_t node = 0;  // false
        if (gate.gate == 3) {
            node = gate.a;
        } else if (gate.gate != 0) {
            uint32_t& entry = known.find(gate);
            if (!entry) {
                entry = uint32_t(first_gate + to.gate.size());
                to.a.push_back(int32_t(gate.a));
                to.b.push_back(int32_t(gate.b));
                to.gate.push_back(uint8_t(gate.gate));
                to.was.push_back(int32_t(g));
            }
            node = entry;
        }
        became[first_gate + size_t(g)] = {2 * node + gate.complemented};
    }
    for (int64_t o = 0; o < from.num_outputs; ++o) {
        const Literal literal = became[size_t(from.outputs[o])];
        to.outputs.push_back(int32_t(literal.node()));
        to.inverted.push_back(uint8_t(literal.complemented() != bool(from.inverted[o])));
    }
    drop_dead(to, first_gate);
    return to;
}

}  // namespace convlogic
