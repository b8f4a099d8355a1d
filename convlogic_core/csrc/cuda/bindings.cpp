// The Python module `_cuda`: raw pointers, int64 sizes and a stream in, no tensor library. Callers own all memory, keep
// it alive and set the device. Calls put kernels on the stream and return; a failed launch is a RuntimeError.
#include <pybind11/pybind11.h>

#include <type_traits>
#include <utility>

#include "kernels.h"

namespace py = pybind11;

namespace convlogic::cuda {
namespace {

using Address = std::uintptr_t;
using Pair = std::pair<int, int>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

Stream stream_of(Address address) {
    return pointer<CUstream_st>(address);
}

// Calls f(null pointer to the type of activations).
template <class Function>
void with_activations(bool bfloat16, Function f) {
    bfloat16 ? f(static_cast<__nv_bfloat16*>(nullptr)) : f(static_cast<float*>(nullptr));
}

void dense_forward(Address x, Address wiring, Address coefficients, Address y, int64_t batch, int64_t features,
                   int64_t gates, bool bfloat16, Address stream) {
    with_activations(bfloat16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Dense<T> dense{pointer<T>(x), pointer<float>(coefficients), batch, features, gates};
        logic_dense_forward(dense, pointer<int32_t>(wiring), pointer<T>(y), stream_of(stream));
    });
}

void dense_backward(Address grad_y, Address x, Address coefficients, Address start, Address edges, Address grad_x,
                    Address partials, Address grad_coefficients, int64_t batch, int64_t features, int64_t gates,
                    bool bfloat16, Address stream) {
    with_activations(bfloat16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Dense<T> dense{pointer<T>(x), pointer<float>(coefficients), batch, features, gates};
        const DenseGradients<T> gradients{pointer<T>(grad_y), pointer<T>(grad_x), pointer<float>(partials),
                                          pointer<float>(grad_coefficients)};
        const FanOut fan_out{pointer<int32_t>(start), pointer<int32_t>(edges)};
        logic_dense_backward(dense, fan_out, gradients, stream_of(stream));
    });
}

TreeShape shape_of(int channels, Pair image, int kernels, int depth, int pool, Pair stride, Pair padding, Pair out) {
    return {channels,     image.first,   image.second,  kernels,        depth,     pool,
            stride.first, stride.second, padding.first, padding.second, out.first, out.second};
}

void tree_forward(Address x, Address selection, Address coefficients, Address y, Address winner, int64_t batch,
                  bool bfloat16, const TreeShape& shape, Address stream) {
    with_activations(bfloat16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const TreeConv<T> conv{pointer<T>(x), pointer<int32_t>(selection), pointer<float>(coefficients), batch, shape};
        logic_tree_forward(conv, pointer<T>(y), pointer<uint8_t>(winner), stream_of(stream));
    });
}

void tree_backward(Address grad_y, Address x, Address selection, Address coefficients, Address winner, Address start,
                   Address edges, Address grad_x, Address grad_leaves, Address partials, Address grad_coefficients,
                   int64_t chunk, int64_t batch, bool bfloat16, const TreeShape& shape, Address stream) {
    with_activations(bfloat16, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const TreeConv<T> conv{pointer<T>(x), pointer<int32_t>(selection), pointer<float>(coefficients), batch, shape};
        const TreeConvGradients<T> gradients{pointer<T>(grad_y),
                                             pointer<uint8_t>(winner),
                                             pointer<T>(grad_x),
                                             pointer<T>(grad_leaves),
                                             pointer<float>(partials),
                                             pointer<float>(grad_coefficients),
                                             chunk};
        const FanOut fan_out{pointer<int32_t>(start), pointer<int32_t>(edges)};
        logic_tree_backward(conv, fan_out, gradients, stream_of(stream));
    });
}

}  // namespace
}  // namespace convlogic::cuda

PYBIND11_MODULE(_cuda, module) {
    using namespace convlogic::cuda;
    using py::arg;
    using release_gil = py::call_guard<py::gil_scoped_release>;
    module.doc() = "CUDA kernels of convlogic_core: batch-innermost memory, raw addresses, int64 sizes, a stream.";

    module.def("device_problem", &device_problem, "Why no device can be used, empty where one can.");
    py::class_<TreeShape>(module, "TreeShape", py::module_local(),
                          "Sizes of a tree convolution; out is after the pool.")
        .def(py::init(&shape_of), py::kw_only(), arg("channels"), arg("image"), arg("kernels"), arg("depth"),
             arg("pool"), arg("stride"), arg("padding"), arg("out"));
    module.def("num_dense_chunks", &num_dense_chunks, arg("batch"), arg("bfloat16"));
    module.def("num_tree_partials", &num_tree_partials, arg("shape"), arg("images"));

    module.def("logic_dense_forward", &dense_forward, release_gil(), py::kw_only(), arg("x"), arg("wiring"),
               arg("coefficients"), arg("y"), arg("batch"), arg("features"), arg("gates"), arg("bfloat16"),
               arg("stream"));
    module.def("logic_dense_backward", &dense_backward, release_gil(), py::kw_only(), arg("grad_y"), arg("x"),
               arg("coefficients"), arg("start"), arg("edges"), arg("grad_x"), arg("partials"),
               arg("grad_coefficients"), arg("batch"), arg("features"), arg("gates"), arg("bfloat16"), arg("stream"));
    module.def("logic_tree_forward", &tree_forward, release_gil(), py::kw_only(), arg("x"), arg("selection"),
               arg("coefficients"), arg("y"), arg("winner"), arg("batch"), arg("bfloat16"), arg("shape"),
               arg("stream"));
    module.def("logic_tree_backward", &tree_backward, release_gil(), py::kw_only(), arg("grad_y"), arg("x"),
               arg("selection"), arg("coefficients"), arg("winner"), arg("start"), arg("edges"), arg("grad_x"),
               arg("grad_leaves"), arg("partials"), arg("grad_coefficients"), arg("chunk"), arg("batch"),
               arg("bfloat16"), arg("shape"), arg("stream"));

    module.def(
        "coefficients_forward",
        [](Address logits, Address coefficients, int64_t gates, int num_logits, Address stream) {
            coefficients_forward(pointer<float>(logits), gates, num_logits, pointer<float>(coefficients),
                                 stream_of(stream));
        },
        release_gil(), py::kw_only(), arg("logits"), arg("coefficients"), arg("gates"), arg("num_logits"),
        arg("stream"));
    module.def(
        "coefficients_backward",
        [](Address grad_coefficients, Address logits, Address grad_logits, int64_t gates, int num_logits,
           Address stream) {
            coefficients_backward(pointer<float>(grad_coefficients), pointer<float>(logits), gates, num_logits,
                                  pointer<float>(grad_logits), stream_of(stream));
        },
        release_gil(), py::kw_only(), arg("grad_coefficients"), arg("logits"), arg("grad_logits"), arg("gates"),
        arg("num_logits"), arg("stream"));

    module.def(
        "pack_bits",
        [](Address x, Address words, int64_t images, int64_t features, int64_t num_words, Address stream) {
            pack_bits(pointer<uint8_t>(x), pointer<uint32_t>(words), images, features, num_words, stream_of(stream));
        },
        release_gil(), py::kw_only(), arg("x"), arg("words"), arg("images"), arg("features"), arg("num_words"),
        arg("stream"));
    module.def(
        "packed_dense",
        [](Address words, Address wiring, Address gates, Address out, int64_t num_words, int64_t num_gates,
           Address stream) {
            packed_dense(pointer<uint32_t>(words), pointer<int32_t>(wiring), pointer<int64_t>(gates),
                         pointer<uint32_t>(out), num_words, num_gates, stream_of(stream));
        },
        release_gil(), py::kw_only(), arg("words"), arg("wiring"), arg("gates"), arg("out"), arg("num_words"),
        arg("num_gates"), arg("stream"));
    module.def(
        "packed_tree",
        [](Address words, Address selection, Address gates, Address out, int64_t num_words, const TreeShape& shape,
           Address stream) {
            packed_tree(pointer<uint32_t>(words), pointer<int32_t>(selection), pointer<int64_t>(gates),
                        pointer<uint32_t>(out), num_words, shape, stream_of(stream));
        },
        release_gil(), py::kw_only(), arg("words"), arg("selection"), arg("gates"), arg("out"), arg("num_words"),
        arg("shape"), arg("stream"));
    module.def(
        "packed_class_sums",
        [](Address words, Address sums, int64_t num_words, int64_t features, int64_t classes, int64_t images,
           Address stream) {
            packed_class_sums(pointer<uint32_t>(words), pointer<int32_t>(sums), num_words, features, classes, images,
                              stream_of(stream));
        },
        release_gil(), py::kw_only(), arg("words"), arg("sums"), arg("num_words"), arg("features"), arg("classes"),
        arg("images"), arg("stream"));
}
