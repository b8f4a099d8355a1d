// Bit-packed discrete evaluation for Python: a network is put together layer by layer, each checked as it comes.
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "packed.h"
#include "wiring.h"

namespace py = pybind11;

namespace convlogic {
namespace {

// Codes of a tree in which only the root is one on zeros, its bit 8 then set: every other gate that is one on zeros is
// replaced by its complement, which the truth table of the gate above takes back.
void normalize(const uint8_t* gates, int64_t num_gates, uint8_t* codes) {
    const int64_t num_leaves = num_gates + 1;
    bool complemented[31] = {};  // leaves, then gates; node num_leaves + g is gate g and reads nodes 2g and 2g + 1
    for (int64_t g = 0; g < num_gates; ++g) {
        unsigned rows = gates[g];  // outputs for (a, b) = 00, 01, 10, 11, the first in bit 8
        if (complemented[2 * g]) rows = (rows << 2 & 12) | (rows >> 2 & 3);
        if (complemented[2 * g + 1]) rows = (rows << 1 & 10) | (rows >> 1 & 5);
        const bool one_on_zeros = rows & 8;
        if (one_on_zeros) rows = ~rows & 15;
        complemented[num_leaves + g] = one_on_zeros;
        codes[g] = uint8_t(rows);
    }
    if (complemented[num_leaves + num_gates - 1]) codes[num_gates - 1] |= 8;
}

// The layers of a stack of planes of bits, beginning with so many rows.
class Stack {
public:
    explicit Stack(int64_t rows) : rows_(rows) {}

    // Trees over all rows. A forest below with a tree for every leaf becomes part of them: no more gates to evaluate,
    // and no planes in between.
    void add_forest(Address leaves, Address gates, int64_t trees, int64_t gates_a_tree) {
        const int64_t features = out_rows();
        Layer layer{{nullptr, nullptr, trees, features, 1, 1, 0, 0, 1, 1, 1, 1, depth_of(gates_a_tree), 1},
                    checked_indices("leaves", pointer<int64_t>(leaves), trees, gates_a_tree + 1, features, "features"),
                    checked_gates(gates, trees, gates_a_tree),
                    true};
        if (!layers_.empty()) {
            const Layer& below = layers_.back();
            if (below.is_forest && below.layer.depth + layer.layer.depth <= 4 &&
                layer.leaves.size() <= size_t(below.layer.trees)) {
                layer = merged(below, layer);
                layers_.pop_back();
            }
        }
        add(std::move(layer));
    }

    void add_tree(Address selection, Address gates, int64_t channels, Pair image, int64_t kernels, int64_t gates_a_tree,
                  Pair kernel, Pair stride, Pair padding, int64_t pool) {
        const auto out = [&](int64_t Pair::* axis) {
            return tree_output(image.*axis, kernel.*axis, stride.*axis, padding.*axis, pool);
        };
        const PackedLayer layer{nullptr,
                                nullptr,
                                kernels,
                                channels,
                                image.first,
                                image.second,
                                padding.first,
                                padding.second,
                                stride.first,
                                stride.second,
                                out(&Pair::first),
                                out(&Pair::second),
                                depth_of(gates_a_tree),
                                int(pool)};
        if (channels * image.first * image.second != out_rows())
            throw std::invalid_argument("a layer of " + std::to_string(channels) + " channels of " +
                                        std::to_string(image.first) + "x" + std::to_string(image.second) +
                                        " cannot follow " + std::to_string(out_rows()) + " rows");
        add({layer, leaf_pixels(pointer<int32_t>(selection), kernels, gates_a_tree, channels, image, kernel, padding),
             checked_gates(gates, kernels, gates_a_tree), false});
    }

    void planes(Address x, Address y, int64_t words, int threads) const {
        run({nullptr, 0, pointer<Word>(x), rows_, words, pointer<Word>(y), nullptr, 1, 64 * words, threads});
    }

    void class_sums(Address x, Address sums, int64_t images, int64_t classes, int threads) const {
        if (classes < 1 || out_rows() % classes)
            throw std::invalid_argument(std::to_string(out_rows()) + " outputs cannot be divided among " +
                                        std::to_string(classes) + " classes");
        const int64_t words = (images + 63) / 64;
        run({nullptr, 0, pointer<Word>(x), rows_, words, nullptr, pointer<int32_t>(sums), classes, images, threads});
    }

private:
    struct Layer {
        PackedLayer layer;
        std::vector<int32_t> leaves;
        std::vector<uint8_t> gates;  // their numbers
        bool is_forest;
        std::vector<uint8_t> codes = {};
    };

    int64_t out_rows() const { return layers_.empty() ? rows_ : layers_.back().layer.out_rows(); }

    static std::vector<uint8_t> checked_gates(Address gates, int64_t trees, int64_t gates_a_tree) {
        const int64_t* numbers = pointer<int64_t>(gates);
        std::vector<uint8_t> checked(size_t(trees * gates_a_tree));
        for (size_t i = 0; i < checked.size(); ++i) {
            if (numbers[i] < 0 || numbers[i] > 15)
                throw std::invalid_argument(entry("gates", int64_t(i), gates_a_tree) + " = " +
                                            std::to_string(numbers[i]) + " is outside the 16 gates");
            checked[i] = uint8_t(numbers[i]);
        }
        return checked;
    }

    // Every leaf of `above` with a tree of `below` in its place.
    static Layer merged(const Layer& below, const Layer& above) {
        Layer layer{above.layer, {}, {}, true};
        layer.layer.channels = below.layer.channels;
        layer.layer.depth += below.layer.depth;
        const int64_t leaves_above = int64_t(1) << above.layer.depth, leaves_below = int64_t(1) << below.layer.depth;
        layer.leaves.reserve(above.leaves.size() * size_t(leaves_below));
        layer.gates.reserve(above.leaves.size() * size_t(leaves_below - 1) + above.gates.size());
        for (int64_t k = 0; k < above.layer.trees; ++k) {
            const int32_t* trees = &above.leaves[size_t(k * leaves_above)];
            for (int64_t j = 0; j < leaves_above; ++j) {
                const auto first = below.leaves.begin() + trees[j] * leaves_below;
                layer.leaves.insert(layer.leaves.end(), first, first + leaves_below);
            }
            for (int64_t level = leaves_below / 2; level > 0; level /= 2)  // gates of a level
                for (int64_t j = 0; j < leaves_above; ++j) {
                    const auto first = below.gates.begin() + trees[j] * (leaves_below - 1) + leaves_below - 2 * level;
                    layer.gates.insert(layer.gates.end(), first, first + level);
                }
            const auto first = above.gates.begin() + k * (leaves_above - 1);
            layer.gates.insert(layer.gates.end(), first, first + leaves_above - 1);
        }
        return layer;
    }

    void add(Layer added) {
        const PackedLayer& layer = added.layer;
        if (layer.padded_rows() > INT32_MAX || layer.out_rows() > INT32_MAX)
            throw std::invalid_argument("a layer of " + std::to_string(layer.padded_rows()) + " inputs and " +
                                        std::to_string(layer.out_rows()) + " outputs exceeds 2**31 - 1: use fewer");
        added.codes.resize(added.gates.size());
        const int64_t gates_a_tree = (int64_t(1) << layer.depth) - 1;
        for (size_t i = 0; i < added.gates.size(); i += size_t(gates_a_tree))
            normalize(&added.gates[i], gates_a_tree, &added.codes[i]);
        layers_.push_back(std::move(added));
    }

    void run(PackedNetwork network) const {
        std::vector<PackedLayer> layers;
        for (const Layer& from : layers_) {
            layers.push_back(from.layer);
            layers.back().leaves = from.leaves.data();
            layers.back().codes = from.codes.data();
        }
        network.layers = layers.data();
        network.num_layers = int64_t(layers.size());
        require_memory(CONVLOGIC_DISPATCH(packed_network, network));
    }

    int64_t rows_;
    std::vector<Layer> layers_;
};

void pack(Address x, Address y, int64_t images, int64_t features, int threads) {
    if (!CONVLOGIC_DISPATCH(pack_bits, pointer<uint8_t>(x), images, features, threads, pointer<Word>(y)))
        throw std::invalid_argument("pack_bits takes zeros and ones only, and found another value");
}

}  // namespace

void bind_packed(py::module_& module) {
    using py::arg;
    using release_gil = py::call_guard<py::gil_scoped_release>;

    module.def("pack_bits", &pack, release_gil(), py::kw_only(), arg("x"), arg("y"), arg("images"), arg("features"),
               arg("threads"));
    py::class_<Stack>(module, "PackedStack", "Layers over packed planes; see convlogic_core.ops.packed.")
        .def(py::init<int64_t>(), py::kw_only(), arg("rows"))
        .def("add_forest", &Stack::add_forest, release_gil(), py::kw_only(), arg("leaves"), arg("gates"), arg("trees"),
             arg("gates_a_tree"))
        .def("add_tree", &Stack::add_tree, release_gil(), py::kw_only(), arg("selection"), arg("gates"),
             arg("channels"), arg("image"), arg("kernels"), arg("gates_a_tree"), arg("kernel"), arg("stride"),
             arg("padding"), arg("pool"))
        .def("planes", &Stack::planes, release_gil(), py::kw_only(), arg("x"), arg("y"), arg("words"), arg("threads"))
        .def("class_sums", &Stack::class_sums, release_gil(), py::kw_only(), arg("x"), arg("sums"), arg("images"),
             arg("classes"), arg("threads"));
}

}  // namespace convlogic
