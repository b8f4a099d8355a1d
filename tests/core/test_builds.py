"""The native sources as other machines build them: for arm64, without OpenMP, and with vectors of 64 bytes.

Clang, which zig brings along with the headers of its targets, cross-compiles them. Kernels with the widest vectors are
run as well, on any processor: the compiler splits what is too wide for it.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
BINDINGS = sorted((ROOT / "convlogic_core" / "csrc").glob("bindings*.cpp"))
KERNELS = sorted(set((ROOT / "convlogic_core" / "csrc").glob("*.cpp")) - set(BINDINGS))
WARNINGS = ("-Wall", "-Wextra", "-Werror")
KERNEL_FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-DCONVLOGIC_ISA=baseline")
WITHOUT_OPENMP = ("-Wno-unknown-pragmas", "-Wno-unused-parameter")
INCLUDE = (f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}")

# Runs tests with the module at a path in the place of the installed one.
RUN_TESTS = """
import importlib.util, sys
name = "convlogic_core._native"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.supported_isas() == ["baseline"]
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(command)}\n{(done.stdout + done.stderr)[-6000:]}"
    return done.stdout


def compile_all(
    compiler: tuple[str, ...], kernel_flags: tuple[str, ...], bindings: list[Path], folder: Path, **environment: str
) -> list[str]:
    """The objects of all kernels and the given bindings."""

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        flags = (*(INCLUDE if source in BINDINGS else KERNEL_FLAGS), *kernel_flags)
        command = [*compiler, "-std=c++17", "-fvisibility=hidden", *WARNINGS, *flags]
        run(*command, "-c", str(source), "-o", target, **environment)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, [*bindings, *KERNELS]))


@pytest.mark.parametrize(
    ("system", "platform", "flags"),
    [("linux-gnu", "linux", ("-fopenmp",)), ("macos", "darwin", WITHOUT_OPENMP)],
    ids=["linux", "macos"],
)
def test_compiles_for_arm64(system: str, platform: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    zig = shutil.which("zig")
    if zig is None:
        assert os.environ.get("CI") != "true", "no zig on PATH: continuous integration installs one, see .ci/run"
        pytest.skip("no zig on PATH")
    # Debian's pyconfig.h includes another one from the folder of the processor.
    multiarch = Path(sysconfig.get_path("include")).parent / str(sysconfig.get_config_var("MULTIARCH"))
    (tmp_path / "aarch64-linux-gnu").symlink_to(multiarch)
    compiler = (zig, "c++", "-target", f"aarch64-{system}", "-O0", "-fno-sanitize=undefined", f"-isystem{tmp_path}")
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path), "ZIG_LOCAL_CACHE_DIR": str(tmp_path)}
    bindings = BINDINGS if sys.platform == platform else []  # this Python's headers are those of this system
    compile_all(compiler, ("-DCONVLOGIC_VECTOR_BYTES=16", *flags), bindings, tmp_path, **caches)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="links a module as Linux does")
def test_wide_vectors_without_openmp(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    flags = ("-O1", "-DCONVLOGIC_VECTOR_BYTES=64", *WITHOUT_OPENMP)
    objects = compile_all((compiler, "-fPIC"), flags, BINDINGS, tmp_path)
    module = str(tmp_path / "_native.so")
    run(compiler, "-shared", *objects, "-o", module)
    options = ["-q", "-p", "no:cacheprovider", "-k", "not (opcheck or compiles or python or errors)"]
    core = ("network", "network_step", "native_network", "training_step", "packed")
    tests = ["tests/ops", *(f"tests/core/test_{name}.py" for name in core)]
    output = run(sys.executable, "-c", RUN_TESTS, module, *options, *tests)
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 200 and "skipped" not in output, output
