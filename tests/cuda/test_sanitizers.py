"""The same kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulation import MODULE_VARIABLE, SANITIZE, build

HERE = Path(__file__).parent
TESTS = (
    "test_logic_dense.py::test_parity",
    "test_logic_dense.py::test_unaligned_memory_gives_the_same_bits",
    "test_logic_dense.py::test_one_feature_twice_and_empty_fan_out",
    "test_logic_tree.py::test_parity",
    "test_logic_tree.py::test_parity_over_geometry",
    "test_logic_tree.py::test_backward_in_rounds",
    "test_gate_coefficients.py::test_parity",
    "test_packed.py::test_pack",
    "test_packed.py::test_dense",
    "test_packed.py::test_tree",
    "test_packed.py::test_class_sums",
)


@pytest.mark.skipif(MODULE_VARIABLE in os.environ, reason="this is the process with the sanitizers")
def test_no_report(emulated_module, tmp_path):
    module = build(tmp_path, SANITIZE, bindings=Path(emulated_module.__file__).parent / "bindings.o")
    compiler = os.environ.get("CXX", "g++")
    # libstdc++ as well: where it is not loaded yet, AddressSanitizer cannot pass C++ exceptions on
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = os.environ | {
        MODULE_VARIABLE: str(module),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0,exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-qs", "-x", "-p", "no:cacheprovider", "-k", "not 1000 and not 8-sizes"]
    command = [sys.executable, "-m", "pytest", *options, *(str(HERE / test) for test in TESTS)]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=240)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "Sanitizer" not in output and "runtime error" not in output, output[-6000:]
