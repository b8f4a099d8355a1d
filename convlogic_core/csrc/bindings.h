// What the files of the Python module share: addresses, checks, and the instruction set that the kernels run on.
#pragma once

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include <pybind11/pybind11.h>

namespace convlogic {

enum class Isa { baseline, avx2, avx512 };

extern Isa current_isa;

// Calls one kernel of the current instruction set.
#ifdef CONVLOGIC_X86
#define CONVLOGIC_DISPATCH(kernel, ...)                       \
    (current_isa == Isa::avx512 ? avx512::kernel(__VA_ARGS__) \
     : current_isa == Isa::avx2 ? avx2::kernel(__VA_ARGS__)   \
                                : baseline::kernel(__VA_ARGS__))
#else
#define CONVLOGIC_DISPATCH(kernel, ...) baseline::kernel(__VA_ARGS__)
#endif

inline void require_memory(bool complete) {
    if (!complete) throw std::bad_alloc();
}

using Address = std::uintptr_t;
using Pair = std::pair<int64_t, int64_t>;

template <class Scalar>
Scalar* pointer(Address address) {
    return reinterpret_cast<Scalar*>(address);
}

inline int depth_of(int64_t gates) {
    int depth = 0;
    while (gates >> depth) ++depth;
    if (depth < 1 || depth > 4 || gates != (int64_t(1) << depth) - 1)
        throw std::invalid_argument("trees have 1, 3, 7 or 15 gates, not " + std::to_string(gates));
    return depth;
}

void bind_netlist(pybind11::module_& module);
void bind_network(pybind11::module_& module);
void bind_packed(pybind11::module_& module);

}  // namespace convlogic
