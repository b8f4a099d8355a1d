// How kernels are launched. Tests define CONVLOGIC_EMULATE and run the same sources on the host, which is why shared
// memory is a macro and a launch a function.
#pragma once

#include <cstdint>

#ifdef CONVLOGIC_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define SHARED_ARRAY(type, name, size) __shared__ type name[size]
#endif

namespace convlogic::cuda {

constexpr unsigned full_warp = 0xffffffffu;

template <class T>
struct Exactly {
    using type = T;
};

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned block, cudaStream_t stream,
            typename Exactly<Parameters>::type... arguments) {
    if (!grid.x || !grid.y) return;
#ifdef CONVLOGIC_EMULATE
    (void)stream;
    emulate::run(name, grid, block, [=] { kernel(arguments...); });
#else
    void* pointers[] = {&arguments...};
    const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, 0, stream);
    if (error == cudaSuccess) return;
    cudaGetLastError();  // told here, so that nobody meets it again
    throw std::runtime_error(std::string("CUDA kernel ") + name + ": " + cudaGetErrorString(error));
#endif
}

#ifdef CONVLOGIC_EMULATE
constexpr int64_t max_grid_y = 3;  // small, so that every larger batch takes several launches
#else
constexpr int64_t max_grid_y = 65535;
#endif

// Calls f(first image, images) for parts of the batch that fit one grid, whose y counts blocks of images_a_block.
template <class Function>
void for_each_grid(int64_t batch, int64_t images_a_block, Function f) {
    const int64_t most = max_grid_y * images_a_block;
    for (int64_t first = 0; first < batch; first += most) f(first, int(batch - first < most ? batch - first : most));
}

}  // namespace convlogic::cuda
