// Netlists for Python: simplification, and evaluation on packed bits.
#include "bindings.h"
#include "netlist.h"

namespace py = pybind11;

namespace convlogic {
namespace {

Netlist netlist(int64_t num_inputs, int64_t num_gates, int64_t num_outputs, Address a, Address b, Address gate,
                Address outputs, Address inverted) {
    return {num_inputs,
            num_gates,
            num_outputs,
            pointer<int32_t>(a),
            pointer<int32_t>(b),
            pointer<uint8_t>(gate),
            pointer<int32_t>(outputs),
            pointer<uint8_t>(inverted)};
}

template <class Scalar>
py::bytes as_bytes(const std::vector<Scalar>& values) {
    return py::bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Scalar));
}

py::tuple simplified(int64_t num_inputs, int64_t num_gates, int64_t num_outputs, Address a, Address b, Address gate,
                     Address outputs, Address inverted) {
    SimplifiedNetlist result;
    {
        py::gil_scoped_release release;
        result = simplify(netlist(num_inputs, num_gates, num_outputs, a, b, gate, outputs, inverted));
    }
    return py::make_tuple(as_bytes(result.a), as_bytes(result.b), as_bytes(result.gate), as_bytes(result.outputs),
                          as_bytes(result.inverted), as_bytes(result.was));
}

class Program {
public:
    Program(int64_t num_inputs, int64_t num_gates, int64_t num_outputs, int64_t num_classes, Address a, Address b,
            Address gate, Address outputs, Address inverted)
        : schedule_(netlist(num_inputs, num_gates, num_outputs, a, b, gate, outputs, inverted), num_classes) {}

    void sums(Address x, Address sums, int64_t images, int threads) const {
        require_memory(CONVLOGIC_DISPATCH(netlist_sums, schedule_.program(), pointer<Word>(x), images, threads,
                                          pointer<int32_t>(sums)));
    }

private:
    Schedule schedule_;
};

}  // namespace

void bind_netlist(py::module_& module) {
    using py::arg;
    using release_gil = py::call_guard<py::gil_scoped_release>;

    module.def("simplify", &simplified, py::kw_only(), arg("num_inputs"), arg("num_gates"), arg("num_outputs"),
               arg("a"), arg("b"), arg("gate"), arg("outputs"), arg("inverted"));
    py::class_<Program>(module, "NetlistProgram", "A netlist made ready to run; see convlogic_core.circuit.evaluate.")
        .def(py::init<int64_t, int64_t, int64_t, int64_t, Address, Address, Address, Address, Address>(), release_gil(),
             py::kw_only(), arg("num_inputs"), arg("num_gates"), arg("num_outputs"), arg("num_classes"), arg("a"),
             arg("b"), arg("gate"), arg("outputs"), arg("inverted"))
        .def("sums", &Program::sums, release_gil(), py::kw_only(), arg("x"), arg("sums"), arg("images"),
             arg("threads"));
}

}  // namespace convlogic
