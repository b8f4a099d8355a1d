"""Exported circuits run by independent tools: C by the system's compiler, Verilog by Icarus Verilog.

Shapes: N images, P bytes of an image (or bits, where the circuit has no thresholds), K classes.
"""

import ctypes
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from convlogic_core.circuit import Circuit
from convlogic_core.circuit.names import safe_name

from .errors import Failure

C_FLAGS: Final = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
Pixels = npt.NDArray[np.uint8]


class Results(NamedTuple):
    """sums (N, K) and classes (N,), integers; -1 where a tool gave none."""

    sums: npt.NDArray[Any]
    classes: npt.NDArray[Any]


class CompiledCircuit:
    """A circuit's C in a shared library.

    Args:
        library: built from what `c_source` wrote.
        name: of the circuit there.
        num_classes: K.
    """

    def __init__(self, library: Path, name: str, num_classes: int) -> None:
        loaded = ctypes.CDLL(str(library.resolve()))
        self.num_classes = num_classes
        self._sums, self._classify = (getattr(loaded, f"{safe_name(name)}_{what}") for what in ("sums", "classify"))

    def sums(self, pixels: Pixels) -> npt.NDArray[np.int32]:
        """(N, P) bytes -> (N, K)."""
        sums = np.empty((len(pixels), self.num_classes), np.int32)
        self._call(self._sums, pixels, sums)
        return sums

    def classify(self, pixels: Pixels) -> npt.NDArray[np.uint16]:
        """(N, P) bytes -> (N,)."""
        classes = np.empty(len(pixels), np.uint16)
        self._call(self._classify, pixels, classes)
        return classes

    def _call(self, function: Any, pixels: Pixels, results: npt.NDArray[Any]) -> None:
        pixels = np.ascontiguousarray(pixels)
        pointers = ctypes.c_void_p(pixels.ctypes.data), ctypes.c_void_p(results.ctypes.data)
        if function(pointers[0], ctypes.c_size_t(len(pixels)), pointers[1]):
            raise Failure(f"the circuit's C found no memory for {len(pixels):,} images")


def compile_c(source: Path, folder: Path, flags: Sequence[str] = C_FLAGS) -> tuple[Path, float]:
    """Build a C file as a shared library in `folder`; the library, and the seconds it took.

    Raises:
        Failure: there is no C compiler, or it refuses the file.
    """
    compiler = c_compiler()
    library = folder / f"{safe_name(source.stem)}.so"
    start = time.perf_counter()
    _run(compiler, *flags, "-shared", "-fPIC", "-x", "c", str(source.resolve()), "-o", str(library))
    return library, time.perf_counter() - start


def c_compiler() -> str:
    """The C compiler there is: the one that CC names, or the system's.

    Raises:
        Failure: there is none.
    """
    return _tool("a C compiler", os.environ.get("CC") or "cc", "gcc", "clang")


def run_c(source: Path, name: str, circuit: Circuit, pixels: Pixels, folder: Path) -> Results:
    """What the C file gives for (N, P) bytes. Raises: as `compile_c`."""
    library, _ = compile_c(source, folder)
    compiled = CompiledCircuit(library, name, circuit.num_classes)
    return Results(compiled.sums(pixels), compiled.classify(pixels))


def run_verilog(source: Path, name: str, circuit: Circuit, pixels: Pixels, folder: Path) -> Results:
    """What the Verilog module, combinational or pipelined, gives for (N, P) bytes.

    Raises:
        Failure: Icarus Verilog is not installed, or refuses the file.
    """
    compiler, simulator = (_tool("Icarus Verilog", tool) for tool in ("iverilog", "vvp"))
    module = safe_name(name)
    latency = re.search(r"^localparam LATENCY = (\d+);$", source.read_text(encoding="utf-8"), re.MULTILINE)
    width = (len(circuit.outputs) // circuit.num_classes).bit_length()
    if circuit.thresholds is None:
        port, port_bits, rows = "bits", pixels.shape[1], np.packbits(pixels, axis=1, bitorder="little")
    else:
        port, port_bits, rows = "pixels", 8 * pixels.shape[1], pixels
    digits = -(-port_bits // 4)
    (folder / "images.hex").write_text("".join(f"{row[::-1].tobytes().hex()[-digits:]}\n" for row in rows))
    bench = TESTBENCH.format(
        module=module,
        port=port,
        port_high=port_bits - 1,
        class_high=max(1, (circuit.num_classes - 1).bit_length()) - 1,
        sums_high=width * circuit.num_classes - 1,
        num_images=len(pixels),
        latency=latency[1] if latency else 0,
        clock=".clk(clk), " if latency else "",
    )
    (folder / "testbench.v").write_text(bench)
    program, top = folder / "testbench.vvp", f"{module}_testbench"
    _run(compiler, "-g2001", "-o", str(program), "-s", top, str(folder / "testbench.v"), str(source.resolve()))
    lines = _run(simulator, "-n", str(program.resolve()), folder=folder).split("\n")
    numbers = [[_number(digits) for digits in line.split()] for line in lines if line.strip()]
    classes, packed = [row[0] for row in numbers], [row[1] for row in numbers]
    sums = [
        [total >> width * k & (1 << width) - 1 if total >= 0 else -1 for k in range(circuit.num_classes)]
        for total in packed
    ]
    return Results(np.array(sums), np.array(classes))


TESTBENCH: Final = """\
module {module}_testbench;
    reg clk = 0;
    reg [{port_high}:0] images [0:{num_images} - 1];
    reg [{port_high}:0] image;
    wire [{class_high}:0] class_index;
    wire [{sums_high}:0] sums;
    integer i;
    {module} circuit({clock}.{port}(image), .class_index(class_index), .sums(sums));
    initial begin
        $readmemh("images.hex", images);
        for (i = 0; i < {num_images} + {latency}; i = i + 1) begin
            image = images[i < {num_images} ? i : 0];
            #1 if (i >= {latency}) $display("%h %h", class_index, sums);
            clk = 1;
            #1 clk = 0;
        end
        $finish;
    end
endmodule
"""


def _number(digits: str) -> int:
    """-1 where a bit is unknown."""
    try:
        return int(digits, 16)
    except ValueError:
        return -1


def _tool(what: str, *names: str) -> str:
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    package = {"Icarus Verilog": "iverilog"}.get(what, "gcc")
    raise Failure(
        f"verification needs {what}, and {' or '.join(names)} is not installed: install it (Debian: apt-get install "
        f"{package}) or leave --verify out"
    )


def _run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        problem = next((line for line in lines if "error" in line), lines[0])
        raise Failure(f"{Path(command[0]).name} failed: {problem}")
    return done.stdout
