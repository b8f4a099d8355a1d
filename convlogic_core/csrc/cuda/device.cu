// Whether the driver and a device are there: asked once, by whoever wants to use them.
#include "kernels.h"
#include "launch.h"

namespace convlogic::cuda {

const char* device_problem() {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "no NVIDIA driver";
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return count ? "" : "no CUDA device";
}

}  // namespace convlogic::cuda
