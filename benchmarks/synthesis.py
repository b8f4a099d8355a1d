"""How many gates synthesis tools find in circuits, beside the project's own count (core: two inputs, inverters free).

    python -m search.train benchmarks/models/digits.yaml
    python -m benchmarks.synthesis runs/digits/seed_N --json benchmarks/results/synthesis.json

abc is given the gates alone, as BLIF: the count of two-input gates with inverters free that it maps them to as they
are, and the one after its optimisation. yosys is given the whole Verilog module, comparators, sums and choice of the
class included, and says how many cells of its own library `synth` needs. Random networks have random gates, not
residual ones, so that there is something to find.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.blif import blif
from convlogic_core.circuit.verilog import verilog
from search.circuit_files import SAVED

from .machine import circumstances

FREE: Final = {"ZERO": "CONST0", "ONE": "CONST1", "WIRE": "A", "INVERTER": "!A"}
GATES: Final = {
    "AND": "A*B",
    "NAND": "!(A*B)",
    "OR": "A+B",
    "NOR": "!(A+B)",
    "AND_NOT": "A*!B",
    "OR_NOT": "A+!B",
    "XOR": "A*!B+!A*B",
    "XNOR": "A*B+!A*!B",
}
OPTIMISE: Final = (
    "ifraig; scorr; dc2; balance; rewrite; refactor; balance; rewrite; rewrite -z; balance; refactor -z; rewrite -z; "
    "balance; dc2; dch; "
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "circuits", nargs="*", type=Path, help="folders of search.train, or files that Circuit.save wrote"
    )
    parser.add_argument("--random", type=int, default=50, metavar="N", help="random networks")
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="seconds for each run of a tool")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    nets = []
    for seed in range(arguments.random):
        circuit = random_network(seed)
        as_read, optimised = abc_gates(circuit, arguments.timeout)
        counts = circuit.counts
        nets.append({"seed": seed, "raw": counts.raw, "core": counts.core, "abc_as_read": as_read, "abc": optimised})
    ratios = [net["abc"] / net["core"] for net in nets if net["core"]]
    report = circumstances(threads=1) | {"yosys": _version(), "timeout_s": arguments.timeout}
    if ratios:
        report["random_networks"] = {
            "n": len(ratios),
            "median_abc_over_core": statistics.median(ratios),
            "min_abc_over_core": min(ratios),
            "networks": nets,
        }
        print(f"abc / core: median {statistics.median(ratios):.3f}, min {min(ratios):.3f}, n={len(ratios)}")
    rows = []
    for path in arguments.circuits:
        rows.append(row := measure(path, arguments.timeout))
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    report["circuits"] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(path: Path, timeout_s: float) -> dict[str, object]:
    """All counts of a circuit in a file or folder; None where the tool ran out of time."""
    circuit = Circuit.load(path / SAVED if path.is_dir() else path)
    name = path.resolve().parent.name if path.is_dir() else path.stem
    row: dict[str, object] = {"circuit": name, "core": circuit.counts.core, "total": circuit.counts.total}
    start = time.perf_counter()
    try:
        as_read, optimised = abc_gates(circuit, timeout_s)
        row |= {"abc_as_read": as_read, "abc": optimised, "abc_over_core": optimised / circuit.counts.core}
    except subprocess.TimeoutExpired:
        row["abc"] = None
    row["abc_s"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    try:
        cells = yosys_cells(verilog(circuit.simplify()), timeout_s)
        num_gates = sum(num for cell, num in cells.items() if cell != "$_NOT_")
        row |= {"yosys_cells": sum(cells.values()), "yosys_without_inverters": num_gates}
    except subprocess.TimeoutExpired:
        row["yosys_cells"] = None
    row["yosys_s"] = round(time.perf_counter() - start, 1)
    return row


def abc_gates(circuit: Circuit, timeout_s: float) -> tuple[int, int]:
    """Two-input gates that abc needs for the simplified circuit: mapped as it is, and at best, optimised or not.

    Raises:
        FileNotFoundError: abc is not installed.
        subprocess.TimeoutExpired: it takes longer.
    """
    program = shutil.which("yosys-abc") or shutil.which("berkeley-abc") or shutil.which("abc")
    if program is None:
        raise FileNotFoundError("abc is not installed: it comes with yosys, or as berkeley-abc")
    with tempfile.TemporaryDirectory() as folder:
        library, model = Path(folder, "gates.genlib"), Path(folder, "circuit.blif")
        library.write_text("".join(_cell(*cell, area=0) for cell in FREE.items()))
        with library.open("a") as file:
            file.writelines(_cell(*cell, area=1) for cell in GATES.items())
        model.write_text(blif(circuit.simplify()))
        script = f"read_genlib {library}; read_blif {model}; strash; "
        found = []
        for optimise in ("", OPTIMISE):
            printed = _run([program, "-q", f"{script}{optimise}amap; print_stats"], timeout_s)
            area = re.search(r"area =\s*([\d.]+)", printed)
            if area is None:
                raise RuntimeError(f"abc printed no area: {printed[-300:]!r}")
            found.append(int(float(area[1])))
    return found[0], min(found)


def _cell(name: str, function: str, area: int) -> str:
    """A cell of abc's genlib format. Pins: phase, load 1 of at most 999, rise and fall delay and their slopes."""
    pins = f" PIN * UNKNOWN 1 999 {area} 0 {area} 0" if "A" in function else ""
    return f"GATE {name} {area} Y={function};{pins}\n"


def yosys_cells(text: str, timeout_s: float) -> dict[str, int]:
    """Cells by type that `synth` makes of a Verilog module.

    Raises:
        FileNotFoundError: yosys is not installed.
        subprocess.TimeoutExpired: it takes longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, report = Path(folder, "module.v"), Path(folder, "stat.json")
        source.write_text(text)
        script = f"read_verilog {source}; synth -flatten -auto-top; tee -q -o {report} stat -json"
        _run(["yosys", "-q", "-p", script], timeout_s)
        (module,) = json.loads(report.read_text())["modules"].values()
    return {str(cell): int(num) for cell, num in module["num_cells_by_type"].items()}


def random_network(seed: int) -> Circuit:
    """A network of a random spec: up to two convolutions, three dense layers and some thousand raw gates (of the seeds
    0 to 49 the median has 6,612, and 1,569 core gates)."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), int(rng.integers(10, 17)), int(rng.integers(10, 17)))
    conv = tuple(
        ConvSpec(
            int(rng.integers(8, 25)),
            tree_depth=int(rng.integers(1, 4)),
            pool=int(rng.integers(1, 3)),
            residual_init=False,
        )
        for _ in range(rng.integers(0, 3))
    )
    num_classes = int(rng.integers(2, 11))
    features = ModelSpec(shape, conv, (), 1, 1.0).flat_features if conv else 4 * int(np.prod(shape))
    dense = []
    for _ in range(rng.integers(1, 4)):
        features = num_classes * -(-features // int(rng.integers(1, 3)) // num_classes)
        dense.append(DenseSpec(features, residual_init=False))
    spec = ModelSpec(shape, conv, tuple(dense), num_classes, 1.0)
    return Circuit.from_model(build_model(spec, seed), shape)


def _run(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def _version() -> str:
    return _run(["yosys", "-V"], timeout_s=60).split(" (")[0].strip()


if __name__ == "__main__":
    main()
