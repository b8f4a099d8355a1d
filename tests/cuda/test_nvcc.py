"""nvcc compiles every CUDA source for both architectures without a warning; registers and spills are printed."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "convlogic_core" / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (80, 90)
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Kernel(NamedTuple):
    name: str
    architecture: int
    registers: int
    spilled_bytes: int

    @property
    def depth(self) -> int:
        """Of a tree kernel; 0 of others."""
        found = re.match(r"tree_(?:forward|backward)<[^,]+, (\d)", self.name)
        return int(found[1]) if found else 0


def compile_source(nvcc: str, source: Path, folder: Path) -> list[Kernel]:
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    flags = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra", "-Xptxas=-v"]
    command = [nvcc, *flags, *targets, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = list(ENTRY.finditer(done.stdout + done.stderr))
    mangled = "\n".join(entry["name"] for entry in found)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout.splitlines()
    return [
        Kernel(
            plain_name(name),
            int(entry["architecture"]),
            int(entry["registers"]),
            int(entry["stores"]) + int(entry["loads"]),
        )
        for name, entry in zip(names, found, strict=True)
    ]


def plain_name(demangled: str) -> str:
    """Without namespaces, result and arguments."""
    bare = re.sub(r"convlogic::cuda::|\(anonymous namespace\)::|^void ", "", demangled)
    return bare.replace("__nv_", "").split("(")[0]


def test_compiles_without_warnings_and_spills(tmp_path, capsys):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        assert os.environ.get("CI") != "true", "no nvcc on PATH: continuous integration installs one, see .ci/run"
        pytest.skip("no nvcc on PATH")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = sorted(
            {kernel for part in pool.map(lambda s: compile_source(nvcc, s, tmp_path), SOURCES) for kernel in part}
        )
    with capsys.disabled():
        print(f"\n{'kernel':<46}" + "".join(f"{f'sm_{a}: registers, spilled bytes':>36}" for a in ARCHITECTURES))
        for name in dict.fromkeys(kernel.name for kernel in kernels):
            row = [k for k in kernels if k.name == name]
            print(f"{name:<46}" + "".join(f"{k.registers:>28}{k.spilled_bytes:>8}" for k in row))
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert {kernel.depth for kernel in kernels} == {0, 1, 2, 3, 4}
    assert not [kernel for kernel in kernels if kernel.spilled_bytes and kernel.depth < 4]
