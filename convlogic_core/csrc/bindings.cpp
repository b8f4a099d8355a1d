// The Python module: raw pointers and sizes in, no tensor library. Callers own all memory and keep it alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "bindings.h"
#include "kernels.h"
#include "wiring.h"

namespace py = pybind11;

namespace convlogic {

void* scratch(size_t bytes) {
    struct Buffer {
        void* memory = nullptr;
        size_t size = 0;
        ~Buffer() { std::free(memory); }
    };
    thread_local Buffer buffer;
    if (buffer.size < bytes) {
        std::free(buffer.memory);
        const size_t rounded = (bytes + 63) / 64 * 64;
        buffer.memory = std::aligned_alloc(64, rounded);
        buffer.size = buffer.memory ? rounded : 0;
    }
    return buffer.memory;
}

namespace {

bool supported(Isa isa) {
#ifdef CONVLOGIC_X86
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == Isa::avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && supported(Isa::avx2);
#endif
    return isa == Isa::baseline;
}

constexpr std::pair<const char*, Isa> isas[] = {
    {"avx512", Isa::avx512}, {"avx2", Isa::avx2}, {"baseline", Isa::baseline}};

Isa best_isa() {
    for (const auto& [name, isa] : isas)
        if (supported(isa)) return isa;
    return Isa::baseline;
}

}  // namespace

Isa current_isa = best_isa();

namespace {

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const auto& [name, isa] : isas)
        if (supported(isa)) names.emplace_back(name);
    return names;
}

void set_isa(const std::string& wanted) {
    for (const auto& [name, isa] : isas)
        if (wanted == name && supported(isa)) {
            current_isa = isa;
            return;
        }
    throw std::invalid_argument("instruction set \"" + wanted + "\" is not one this processor supports");
}

// The wiring of a forest, checked so that no kernel reads or leaves out a row. Made once, for many calls.
struct ForestWiring {
    int64_t features, trees, gates;
    std::vector<int32_t> leaves, gate_rows;

    ForestWiring(Address leaf_indices, Address row_indices, int64_t trees, int64_t gates, int64_t features)
        : features(features),
          trees(trees),
          gates(gates),
          leaves(checked_indices("leaves", pointer<int64_t>(leaf_indices), trees, gates + 1, features, "features")) {
        if (row_indices) gate_rows = checked_gate_rows(pointer<int64_t>(row_indices), trees, gates);
    }

    const int32_t* rows() const { return gate_rows.empty() ? nullptr : gate_rows.data(); }

    template <class Scalar>
    Forest<Scalar> forest(const Scalar* x, const Scalar* coefficients, std::unique_ptr<Scalar[]>& memory, int64_t batch,
                          int64_t group, int threads) const {
        const Scalar* ordered = in_order(coefficients, memory, threads);
        return {x, ordered, leaves.data(), batch, features, trees, group, depth_of(gates), threads};
    }

private:
    // The coefficients tree after tree, as they are or collected in `memory`.
    template <class Scalar>
    const Scalar* in_order(const Scalar* coefficients, std::unique_ptr<Scalar[]>& memory, int threads) const {
        if (gate_rows.empty()) return coefficients;
        const int64_t size = int64_t(gate_rows.size());
        memory.reset(new Scalar[gate_rows.size() * 4]);
        Scalar* to = memory.get();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t gate = 0; gate < size; ++gate)
            std::memcpy(to + 4 * gate, coefficients + 4 * int64_t(gate_rows[size_t(gate)]), 4 * sizeof(Scalar));
        return to;
    }
};

void logic_forest_forward(Address x, const ForestWiring& wiring, Address coefficients, Address y, int64_t batch,
                          int64_t group, int itemsize, int threads) {
    const auto run = [&](auto scalar) {
        using Scalar = decltype(scalar);
        std::unique_ptr<Scalar[]> memory;
        const Forest<Scalar> forest =
            wiring.forest(pointer<Scalar>(x), pointer<Scalar>(coefficients), memory, batch, group, threads);
        require_memory(CONVLOGIC_DISPATCH(forest_forward, forest, pointer<Scalar>(y)));
    };
    itemsize == 4 ? run(float()) : run(double());
}

void logic_forest_backward(Address grad_y, Address x, const ForestWiring& wiring, Address coefficients, Address grad_x,
                           Address grad_coefficients, Address partials, int64_t batch, int64_t group, int itemsize,
                           int threads) {
    const auto run = [&](auto scalar) {
        using Scalar = decltype(scalar);
        std::unique_ptr<Scalar[]> memory;
        const Forest<Scalar> forest =
            wiring.forest(pointer<Scalar>(x), pointer<Scalar>(coefficients), memory, batch, group, threads);
        const ForestGradients<Scalar> gradients{pointer<Scalar>(grad_y), pointer<Scalar>(grad_x),
                                                pointer<Scalar>(partials)};
        require_memory(CONVLOGIC_DISPATCH(forest_backward, forest, gradients));
        CONVLOGIC_DISPATCH(sum_partials, gradients.partials, forest_blocks(batch).count, wiring.trees,
                           int(wiring.gates), forest.coefficients, wiring.rows(), threads,
                           pointer<Scalar>(grad_coefficients));
    };
    itemsize == 4 ? run(float()) : run(double());
}

// The sizes of a tree convolution and the wiring, checked leaf by leaf so that no kernel reads outside its planes.
struct TreeSizes {
    int64_t batch, channels, kernels, gates, pool;
    Pair image, kernel, stride, padding;

    int64_t out(int64_t Pair::* axis) const {
        return tree_output(image.*axis, kernel.*axis, stride.*axis, padding.*axis, pool);
    }

    std::vector<int32_t> leaf_pixels(Address selection) const {
        return convlogic::leaf_pixels(pointer<int32_t>(selection), kernels, gates, channels, image, kernel, padding);
    }

    template <class Scalar>
    TreeConv<Scalar> conv(Address x, const std::vector<int32_t>& leaves, Address coefficients, int threads) const {
        return {pointer<Scalar>(x),
                pointer<Scalar>(coefficients),
                leaves.data(),
                batch,
                channels,
                image.first,
                image.second,
                kernels,
                stride.first,
                stride.second,
                padding.first,
                padding.second,
                out(&Pair::first),
                out(&Pair::second),
                depth_of(gates),
                int(pool),
                threads};
    }
};

void logic_tree_forward(Address x, Address selection, Address coefficients, Address y, Address winner, int64_t batch,
                        int64_t channels, Pair image, int64_t kernels, int64_t gates, Pair kernel, Pair stride,
                        Pair padding, int64_t pool, int itemsize, int threads) {
    const TreeSizes sizes{batch, channels, kernels, gates, pool, image, kernel, stride, padding};
    const std::vector<int32_t> leaves = sizes.leaf_pixels(selection);
    const auto run = [&](auto scalar) {
        using Scalar = decltype(scalar);
        const auto conv = sizes.conv<Scalar>(x, leaves, coefficients, threads);
        require_memory(CONVLOGIC_DISPATCH(tree_conv_forward, conv, pointer<Scalar>(y), pointer<uint8_t>(winner)));
    };
    itemsize == 4 ? run(float()) : run(double());
}

void logic_tree_backward(Address grad_y, Address x, Address selection, Address coefficients, Address winner,
                         Address grad_x, Address grad_coefficients, Address partials, int64_t batch, int64_t channels,
                         Pair image, int64_t kernels, int64_t gates, Pair kernel, Pair stride, Pair padding,
                         int64_t pool, int itemsize, int threads) {
    const TreeSizes sizes{batch, channels, kernels, gates, pool, image, kernel, stride, padding};
    const std::vector<int32_t> leaves = sizes.leaf_pixels(selection);
    const auto run = [&](auto scalar) {
        using Scalar = decltype(scalar);
        const auto conv = sizes.conv<Scalar>(x, leaves, coefficients, threads);
        const TreeConvGradients<Scalar> gradients{pointer<Scalar>(grad_y), pointer<uint8_t>(winner),
                                                  pointer<Scalar>(grad_x), pointer<Scalar>(partials)};
        require_memory(CONVLOGIC_DISPATCH(tree_conv_backward, conv, gradients));
        CONVLOGIC_DISPATCH(sum_partials, gradients.partials, tree_blocks(batch).count, kernels, int(gates),
                           conv.coefficients, nullptr, threads, pointer<Scalar>(grad_coefficients));
    };
    itemsize == 4 ? run(float()) : run(double());
}

void gate_coefficients_forward(Address logits, Address coefficients, int64_t gates, int num_logits, int itemsize,
                               int threads) {
    const auto run = [&](auto scalar) {
        using Scalar = decltype(scalar);
        CONVLOGIC_DISPATCH(gate_coefficients_forward, pointer<Scalar>(logits), gates, num_logits, threads,
                           pointer<Scalar>(coefficients));
    };
    itemsize == 4 ? run(float()) : run(double());
}

void gate_coefficients_backward(Address logits, Address grad_coefficients, Address grad_logits, int64_t gates,
                                int num_logits, int itemsize, int threads) {
    const auto run = [&](auto scalar) {
        using Scalar = decltype(scalar);
        CONVLOGIC_DISPATCH(gate_coefficients_backward, pointer<Scalar>(logits), pointer<Scalar>(grad_coefficients),
                           gates, num_logits, threads, pointer<Scalar>(grad_logits));
    };
    itemsize == 4 ? run(float()) : run(double());
}

}  // namespace
}  // namespace convlogic

PYBIND11_MODULE(_native, module) {
    using namespace convlogic;
    using py::arg;
    using release_gil = py::call_guard<py::gil_scoped_release>;
#ifdef __GLIBC__
    // Every training step frees what the next one allocates again. By default glibc hands such memory back to the
    // system, and faulting its pages in anew can take as long as the kernels themselves.
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
    // As torch's allocators tell it on a GPU, for one except clause; torch is loaded where its tensors are computed on.
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const std::bad_alloc&) {
            PyErr_SetString(py::module_::import("torch").attr("OutOfMemoryError").ptr(),
                            "out of memory in a native kernel on the CPU: use a smaller batch or fewer threads");
        }
    });
    module.doc() = "Native kernels of convlogic_core: batch-innermost memory, raw addresses, int64 sizes.";

    module.def("supported_isas", &supported_isas);
    module.def("isa", [] {
        for (const auto& [name, isa] : isas)
            if (isa == current_isa) return name;
        return "";
    });
    module.def("set_isa", &set_isa, arg("name"), "For tests: force an instruction set that this processor supports.");
    module.def("num_forest_blocks", [](int64_t batch) { return forest_blocks(batch).count; }, arg("batch"));
    module.def("num_tree_blocks", [](int64_t batch) { return tree_blocks(batch).count; }, arg("batch"));

    py::class_<ForestWiring>(module, "ForestWiring")
        .def(py::init<Address, Address, int64_t, int64_t, int64_t>(), py::kw_only(), arg("leaves"), arg("gate_rows"),
             arg("trees"), arg("gates"), arg("features"))
        .def_readonly("trees", &ForestWiring::trees);
    module.def("logic_forest_forward", &logic_forest_forward, release_gil(), py::kw_only(), arg("x"), arg("wiring"),
               arg("coefficients"), arg("y"), arg("batch"), arg("group"), arg("itemsize"), arg("threads"));
    module.def("logic_forest_backward", &logic_forest_backward, release_gil(), py::kw_only(), arg("grad_y"), arg("x"),
               arg("wiring"), arg("coefficients"), arg("grad_x"), arg("grad_coefficients"), arg("partials"),
               arg("batch"), arg("group"), arg("itemsize"), arg("threads"));
    module.def("logic_tree_forward", &logic_tree_forward, release_gil(), py::kw_only(), arg("x"), arg("selection"),
               arg("coefficients"), arg("y"), arg("winner"), arg("batch"), arg("channels"), arg("image"),
               arg("kernels"), arg("gates"), arg("kernel"), arg("stride"), arg("padding"), arg("pool"), arg("itemsize"),
               arg("threads"));
    module.def("logic_tree_backward", &logic_tree_backward, release_gil(), py::kw_only(), arg("grad_y"), arg("x"),
               arg("selection"), arg("coefficients"), arg("winner"), arg("grad_x"), arg("grad_coefficients"),
               arg("partials"), arg("batch"), arg("channels"), arg("image"), arg("kernels"), arg("gates"),
               arg("kernel"), arg("stride"), arg("padding"), arg("pool"), arg("itemsize"), arg("threads"));
    module.def("gate_coefficients_forward", &gate_coefficients_forward, release_gil(), py::kw_only(), arg("logits"),
               arg("coefficients"), arg("gates"), arg("num_logits"), arg("itemsize"), arg("threads"));
    module.def("gate_coefficients_backward", &gate_coefficients_backward, release_gil(), py::kw_only(), arg("logits"),
               arg("grad_coefficients"), arg("grad_logits"), arg("gates"), arg("num_logits"), arg("itemsize"),
               arg("threads"));
    bind_netlist(module);
    bind_network(module);
    bind_packed(module);
}
