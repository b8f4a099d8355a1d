"""Builds the CUDA sources for the host: each .cu compiled unmodified by g++, where emulate.h stands for CUDA.

The result is a Python module with the functions of `_cuda`, which then take addresses of host memory.
"""

import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

MODULE_VARIABLE = "CONVLOGIC_EMULATED_MODULE"  # names a module that was built before, as the sanitizer test does
SOURCES = Path(__file__).parents[3] / "convlogic_core" / "csrc" / "cuda"
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-DCONVLOGIC_EMULATE", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)
SANITIZE = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def build(folder: Path, flags: tuple[str, ...] = (), sources: Path = SOURCES, bindings: Path | None = None) -> Path:
    """Compiles and links the module `_cuda` into folder; its path.

    Args:
        folder: where objects and the module go.
        flags: more of them, for the kernels.
        sources: the folder of the .cu files.
        bindings: bindings.o of an earlier build, which takes as long as everything else.

    Raises:
        RuntimeError: with what the compiler said.
    """
    compiler = os.environ.get("CXX", "g++")
    here = Path(__file__).parent
    include = [f"-I{here}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    files = [*sorted(sources.glob("*.cu")), here / "schedule.cpp"]
    if not bindings:
        files.insert(0, sources / "bindings.cpp")

    def compile_one(file: Path) -> Path:
        target = folder / f"{file.stem}.o"
        own_flags = flags if file.suffix == ".cu" else ("-O0", "-g0")
        _run([compiler, *FLAGS, *own_flags, *include, "-x", "c++", "-c", str(file), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [*pool.map(compile_one, files), *([bindings] if bindings else [])]
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    _run([compiler, "-shared", *flags, *map(str, objects), "-o", str(module)])
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
