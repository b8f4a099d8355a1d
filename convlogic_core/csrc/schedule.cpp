// Netlists made ready to run: gates combined to operations, operations put in order, their results into slots.
#include <algorithm>
#include <utility>

#include "netlist.h"

namespace convlogic {
namespace {

constexpr int64_t outputs_a_section = 2048;  // bounds the rows that wait to be counted
constexpr size_t operations_a_block = 4096;  // within which those of a kind are put together

}  // namespace

// The fewest operations that compute a netlist, where each gate that one other gate alone reads may be part of that
// one's operation.
class Schedule::Cover {
public:
    explicit Cover(const Netlist& netlist)
        : netlist_(netlist), uses_(size_t(netlist.first_gate() + netlist.num_gates), 0), cost_(uses_.size(), 0) {
        for (int64_t g = 0; g < netlist.num_gates; ++g) ++uses_[size_t(netlist.a[g])], ++uses_[size_t(netlist.b[g])];
        for (int64_t o = 0; o < netlist.num_outputs; ++o)
            uses_[size_t(netlist.outputs[o])] += 2;  // never inside others
        for (int64_t g = 0; g < netlist.num_gates; ++g) {
            const int32_t node = int32_t(netlist.first_gate() + g);
            cost_[size_t(node)] = uint32_t(best(node).second);
        }
    }

    Operation operation(int32_t node) const {
        const auto [within_a, within_b] = sides(best(node).first);
        const size_t g = gate(node);
        Operation operation{{}, node, 0, 0};
        int32_t left = netlist_.a[g], right = netlist_.b[g];
        bool expand_left = within_a, expand_right = within_b;
        uint8_t outer = netlist_.gate[g];
        if (outer == 4) outer = 2, std::swap(left, right), std::swap(expand_left, expand_right);
        if (OperationKind::index(outer) < 0) {
            operation.kind = OperationKind::alone(outer);
            operation.num_leaves = 2;
            operation.leaves[0] = left, operation.leaves[1] = right;
            return operation;
        }
        int kinds[2] = {side(left, expand_left), side(right, expand_right)};
        if (outer != 2 && kinds[0] < kinds[1]) std::swap(left, right), std::swap(kinds[0], kinds[1]);
        append(left, kinds[0], operation);
        append(right, kinds[1], operation);
        operation.kind = OperationKind::of(OperationKind::index(outer), kinds[0], kinds[1]);
        return operation;
    }

private:
    size_t gate(int32_t node) const { return size_t(node - netlist_.first_gate()); }

    // Whether a node may be computed inside the one operation that reads it.
    bool may_be_inside(int32_t node) const {
        return node >= netlist_.first_gate() && uses_[size_t(node)] == 1 &&
               (netlist_.gate[gate(node)] == 4 || OperationKind::index(netlist_.gate[gate(node)]) >= 0);
    }

    // Operations for what only this node needs, itself included; nodes that others share have their own.
    uint64_t cost(int32_t node) const { return may_be_shared(node) ? 0 : cost_[size_t(node)]; }
    bool may_be_shared(int32_t node) const { return node < netlist_.first_gate() || uses_[size_t(node)] != 1; }
    uint64_t cost_inside(int32_t node) const { return cost(netlist_.a[gate(node)]) + cost(netlist_.b[gate(node)]); }

    // Which inputs to compute inside (bit 1: a, bit 2: b), and the operations of the whole.
    std::pair<int, uint64_t> best(int32_t node) const {
        const size_t g = gate(node);
        const int32_t a = netlist_.a[g], b = netlist_.b[g];
        const bool combines = netlist_.gate[g] == 4 || OperationKind::index(netlist_.gate[g]) >= 0;
        std::pair<int, uint64_t> best{0, UINT64_MAX};
        for (int inside = 3; inside >= 0; --inside) {
            if ((inside & 1 && !(combines && may_be_inside(a))) || (inside & 2 && !(combines && may_be_inside(b))))
                continue;
            const uint64_t total =
                1 + (inside & 1 ? cost_inside(a) : cost(a)) + (inside & 2 ? cost_inside(b) : cost(b));
            if (total < best.second) best = {inside, total};
        }
        return best;
    }

    static std::pair<bool, bool> sides(int inside) { return {inside & 1, inside & 2}; }

    int side(int32_t node, bool inside) const {
        if (!inside) return 0;
        const uint8_t gate_number = netlist_.gate[gate(node)];
        return 1 + OperationKind::index(gate_number == 4 ? 2 : gate_number);
    }

    void append(int32_t node, int kind, Operation& to) const {
        if (kind == 0) {
            to.leaves[to.num_leaves++] = node;
            return;
        }
        const size_t g = gate(node);
        const bool exchanged = netlist_.gate[g] == 4;
        to.leaves[to.num_leaves++] = exchanged ? netlist_.b[g] : netlist_.a[g];
        to.leaves[to.num_leaves++] = exchanged ? netlist_.a[g] : netlist_.b[g];
    }

    const Netlist& netlist_;
    std::vector<uint32_t> uses_, cost_;
};

// The operations that an output needs and no earlier one did: depth first, so that a value is computed shortly before
// it is read.
class Schedule::DepthFirst {
public:
    explicit DepthFirst(const Netlist& netlist)
        : cover_(netlist), first_gate_(netlist.first_gate()), done_(size_t(first_gate_ + netlist.num_gates), 0) {
        std::fill_n(done_.begin(), first_gate_, 1);
    }

    void append(int32_t output, std::vector<Operation>& order) {
        if (done_[size_t(output)]) return;
        pending_.push_back(cover_.operation(output));
        while (!pending_.empty()) {
            const Operation operation = pending_.back();
            const auto end = operation.leaves + operation.num_leaves;
            const auto missing =
                std::find_if(operation.leaves, end, [&](int32_t leaf) { return !done_[size_t(leaf)]; });
            if (missing != end) {
                pending_.push_back(cover_.operation(*missing));
                continue;
            }
            done_[size_t(operation.node)] = 1;
            order.push_back(operation);
            pending_.pop_back();
        }
    }

private:
    const Cover cover_;
    int64_t first_gate_;
    std::vector<uint8_t> done_;
    std::vector<Operation> pending_;
};

// A few operations put into an order of few runs: always the kind of which most are ready, as long as there are any.
class Schedule::Block {
public:
    explicit Block(size_t num_nodes) : position_(num_nodes, 0) {}

    void append(const Operation* operations, size_t count, std::vector<Operation>& order,
                std::vector<NetlistProgram::Run>& runs) {
        readers_.assign(count, {});
        missing_.assign(count, 0);
        for (uint32_t i = 0; i < count; ++i) position_[size_t(operations[i].node)] = i + 1;
        for (uint32_t i = 0; i < count; ++i)
            for (int l = 0; l < operations[i].num_leaves; ++l)
                if (const uint32_t leaf = position_[size_t(operations[i].leaves[l])]) {
                    readers_[leaf - 1].push_back(i);
                    ++missing_[i];
                }
        for (uint32_t i = 0; i < count; ++i)
            if (missing_[i] == 0) ready_[operations[i].kind].push_back(i);
        for (size_t left = count; left > 0;) {
            const auto most = std::max_element(ready_, ready_ + OperationKind::count,
                                               [](const auto& x, const auto& y) { return x.size() < y.size(); });
            runs.push_back({uint32_t(most - ready_), 0});
            for (size_t next = 0; next < most->size(); ++next) {  // which grows while it is gone through
                const uint32_t i = (*most)[next];
                order.push_back(operations[i]);
                for (uint32_t reader : readers_[i])
                    if (--missing_[reader] == 0) ready_[operations[reader].kind].push_back(reader);
            }
            runs.back().count = uint32_t(most->size());
            left -= most->size();
            most->clear();
        }
        for (size_t i = 0; i < count; ++i) position_[size_t(operations[i].node)] = 0;
    }

private:
    std::vector<uint32_t> position_;  // of each node's operation in the block, from 1; 0 for other nodes
    std::vector<std::vector<uint32_t>> readers_;
    std::vector<uint32_t> missing_;
    std::vector<uint32_t> ready_[OperationKind::count];
};

Schedule::Schedule(const Netlist& netlist, int64_t num_classes) : class_size_(netlist.num_outputs / num_classes) {
    assign_slots(netlist, order(netlist));
}

NetlistProgram Schedule::program() const {
    return {inputs_.data(),
            slots_.data(),
            runs_.data(),
            outputs_.data(),
            counts_.data(),
            sections_.data(),
            int64_t(inputs_.size()),
            int64_t(sections_.size()),
            num_slots_,
            class_size_};
}

std::vector<Schedule::Operation> Schedule::order(const Netlist& netlist) {
    std::vector<Operation> needed, order;
    DepthFirst depth_first(netlist);
    Block block(size_t(netlist.first_gate() + netlist.num_gates));
    for (int64_t start = 0, end; start < netlist.num_outputs; start = end) {
        end = std::min(start + outputs_a_section, netlist.num_outputs);
        needed.clear();
        for (int64_t o = start; o < end; ++o) depth_first.append(netlist.outputs[o], needed);
        const size_t first_run = runs_.size(), first_count = counts_.size();
        for (size_t first = 0; first < needed.size(); first += operations_a_block)
            block.append(&needed[first], std::min(operations_a_block, needed.size() - first), order, runs_);
        for (int64_t o = start, class_end; o < end; o = class_end) {
            class_end = std::min(o / class_size_ * class_size_ + class_size_, end);
            const auto num_inverted = std::count(netlist.inverted + o, netlist.inverted + class_end, 1);
            counts_.push_back(
                {uint32_t(class_end - o - num_inverted), uint32_t(num_inverted), class_end % class_size_ == 0});
        }
        sections_.push_back({uint32_t(runs_.size() - first_run), uint32_t(counts_.size() - first_count)});
        section_ends_.push_back(order.size());
        output_ends_.push_back(size_t(end));
    }
    return order;
}

void Schedule::assign_slots(const Netlist& netlist, const std::vector<Operation>& order) {
    const int64_t first_gate = netlist.first_gate();
    const size_t num_nodes = size_t(first_gate + netlist.num_gates);
    constexpr size_t never = 0, done = SIZE_MAX;
    std::vector<size_t> last_read(num_nodes, never);  // 2i + 2 by operation i, 2i + 1 by outputs before it
    for (size_t i = 0; i < order.size(); ++i)
        for (int l = 0; l < order[i].num_leaves; ++l) last_read[size_t(order[i].leaves[l])] = 2 * i + 2;
    for (size_t s = 0, o = 0; s < sections_.size(); ++s)
        for (; o < output_ends_[s]; ++o)
            last_read[size_t(netlist.outputs[o])] =
                std::max(last_read[size_t(netlist.outputs[o])], 2 * section_ends_[s] + 1);

    std::vector<uint32_t> slot(num_nodes, 0), free;
    const auto take = [&](int32_t node) {
        if (free.empty()) return slot[size_t(node)] = uint32_t(num_slots_++);
        slot[size_t(node)] = free.back();
        free.pop_back();
        return slot[size_t(node)];
    };
    const auto release = [&](int32_t node, size_t when) {
        if (node == 0 || last_read[size_t(node)] != when) return;
        free.push_back(slot[size_t(node)]);
        last_read[size_t(node)] = done;
    };
    for (int32_t node = 1; node < first_gate; ++node)
        if (last_read[size_t(node)] != never) inputs_.push_back({uint32_t(node - 1), take(node)});
    const auto* count = counts_.data();
    for (size_t s = 0, i = 0, o = 0; s < sections_.size(); ++s) {
        for (; i < section_ends_[s]; ++i) {
            const Operation& operation = order[i];
            for (int l = 0; l < operation.num_leaves; ++l) slots_.push_back(slot[size_t(operation.leaves[l])]);
            for (int l = 0; l < operation.num_leaves; ++l) release(operation.leaves[l], 2 * i + 2);
            slots_.push_back(take(operation.node));
        }
        const size_t first = o;
        for (const auto* end = count + sections_[s].num_counts; count != end; ++count) {
            const size_t count_end = o + count->num_plain + count->num_inverted;
            for (uint8_t inverted : {0, 1})
                for (size_t output = o; output < count_end; ++output)
                    if (netlist.inverted[output] == inverted) outputs_.push_back(slot[size_t(netlist.outputs[output])]);
            o = count_end;
        }
        for (size_t output = first; output < o; ++output) release(netlist.outputs[output], 2 * i + 1);
    }
}

}  // namespace convlogic
