"""What bounds a training step: the work it has to do, and the rates this machine was just measured to reach.

Work is counted as multiply-adds, the operation a gate is made of (three to evaluate it); the limit is the time that
they alone would take on all vector units. Shapes as in `convlogic_core.model`.
"""

import ctypes
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from convlogic_core import ModelSpec
from convlogic_core.model import conv_shapes

PROBE: Final = r"""
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float V __attribute__((vector_size(BYTES)));
static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
template <class Work> static double rate(int threads, double amount, Work work) {
    double best = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
        const double start = seconds();
        std::vector<std::thread> all;
        for (int t = 0; t < threads; ++t) all.emplace_back(work, t);
        for (auto& thread : all) thread.join();
        const double reached = threads * amount / (seconds() - start);
        best = reached > best ? reached : best;
    }
    return best;
}
extern "C" double multiply_adds_per_second(int threads) {
    const int64_t rounds = 20000000;
    return rate(threads, double(rounds) * 12 * (BYTES / 4), [=](int) {
        V sums[12], a = V{} + 1.0f, b = V{} + 1e-9f;
        for (int j = 0; j < 12; ++j) sums[j] = V{} + float(j);
        asm volatile("" : "+x"(a), "+x"(b));
        for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
            for (int j = 0; j < 12; ++j) sums[j] = sums[j] * a + b;
        for (V& sum : sums) asm volatile("" : : "x"(sum));
    });
}
extern "C" double copied_bytes_per_second(int threads) {
    const size_t size = size_t(128) << 20;
    std::vector<std::vector<char>> from(threads, std::vector<char>(size, 1)), to(threads, std::vector<char>(size, 2));
    return rate(threads, 2.0 * size, [&](int t) { memcpy(to[t].data(), from[t].data(), size); });
}
"""


@dataclass(frozen=True)
class Limits:
    """Measured rates of some threads: multiply-adds (of float32) and bytes, read and written, per second."""

    multiply_adds: float
    bytes: float


@cache
def _probe() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(PROBE)
        compiler = (sysconfig.get_config_var("CXX") or "c++").split()[0]
        flags = ["-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        probe = ctypes.CDLL(str(library))
    for function in (probe.multiply_adds_per_second, probe.copied_bytes_per_second):
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_double
    return probe


def measure_limits(threads: int) -> Limits:
    """Best of five short runs each; x86 with a C++ compiler only.

    Raises:
        OSError, subprocess.CalledProcessError: no compiler, or another kind of processor.
    """
    probe = _probe()
    return Limits(probe.multiply_adds_per_second(threads), probe.copied_bytes_per_second(threads))


def multiply_adds(spec: ModelSpec) -> int:
    """Of one image, forward and backward, conv gradients at the winners of the pooling only; without the optimizer.

    Evaluating a gate takes 3, its coefficients' gradient 3, its inputs' gradients 4. Backward evaluates all gates but
    the roots again; the inputs of the first layer need no gradient.
    """
    total, shape = 0, spec.input_shape
    for number, block in enumerate(spec.conv):
        pooled = conv_shapes(block, shape).pooled
        gates, leaf_gates = 2**block.tree_depth - 1, 2 ** (block.tree_depth - 1)
        positions = pooled[0] * pooled[1] * pooled[2]
        forward = positions * block.pool**2 * 3 * gates
        with_input_gradients = gates - leaf_gates if number == 0 else gates
        total += forward + positions * (3 * (gates - 1) + 3 * gates + 4 * with_input_gradients)
        shape = pooled
    for number, layer in enumerate(spec.dense):
        last, first = number == len(spec.dense) - 1, number == 0 and not spec.conv
        total += layer.out_dim * (3 + (0 if last else 3) + 3 + (0 if first else 4))
    return total


def activation_bytes(spec: ModelSpec) -> int:
    """Of one image, float32: every conv output and the dense input written, read again, and their gradients alike."""
    features, shape = 0, spec.input_shape
    for block in spec.conv:
        shape = conv_shapes(block, shape).pooled
        features += shape[0] * shape[1] * shape[2]
    return 4 * 4 * features
