"""What abc and yosys prove for all images, not for some: simplification, and that the formats say the same."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthesis import abc_gates, random_network, yosys_cells
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.aiger import aiger
from convlogic_core.circuit.blif import blif
from convlogic_core.circuit.verilog import verilog

from .hardware_tools import abc, random_circuit, tool, yosys

NETS = {
    "random gates": random_circuit(11, (4, 3, 3), 150, 5, 4),
    "more random gates": random_circuit(12, (30,), 400, 20, 2),
    "a dense network": random_network(9),
    "a convolution": random_network(11),
    "two convolutions": random_network(8),
}


def proven(folder: Path, one: Circuit, other: Circuit) -> list[bool]:
    """Whether abc proves two circuits the same, read as BLIF, as AIGER, and one of each."""
    for name, circuit in (("one", one), ("other", other)):
        (folder / f"{name}.blif").write_text(blif(circuit, "always"))
        (folder / f"{name}.aig").write_bytes(aiger(circuit))
    pairs = (("one.blif", "other.blif"), ("one.aig", "other.aig"), ("one.blif", "other.aig"))
    found = []
    for files in pairs:
        said = abc(f"cec {' '.join(str(folder / file) for file in files)}")
        assert ("Networks are equivalent" in said) != ("NOT EQUIVALENT" in said), said
        found.append("Networks are equivalent" in said)
    return found


@pytest.mark.parametrize("kind", NETS)
def test_simplified_is_proven_equal(tmp_path: Path, kind: str) -> None:
    circuit = NETS[kind]
    assert circuit.simplify().num_gates < circuit.num_gates
    assert proven(tmp_path, circuit, circuit.simplify()) == [True] * 3


def test_missing_tools_fail_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool or no-other is not installed"):
        tool("no-such-tool", "no-other")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        tool("no-such-tool", "no-other")


def test_what_differs_is_not_proven(tmp_path: Path) -> None:
    """The last gate, which an output needs, complemented."""
    circuit = NETS["a convolution"].simplify()
    gate = circuit.gate.copy()
    gate[-1] ^= 15
    changed = Circuit(**{**vars_of(circuit), "gate": gate})
    assert proven(tmp_path, circuit, changed) == [False] * 3


def vars_of(circuit: Circuit) -> dict[str, object]:
    return {name: getattr(circuit, name) for name in Circuit.__dataclass_fields__}


def reference_module(circuit: Circuit) -> str:
    """Comparators, class sums and choice of the class around the model `gates`, written as they are defined."""
    num_classes, num_outputs = circuit.num_classes, len(circuit.outputs)
    outputs_a_class = num_outputs // num_classes
    width, index_width = outputs_a_class.bit_length(), max(1, (num_classes - 1).bit_length())
    if circuit.thresholds is None:
        port, bits = f"input [{circuit.num_inputs - 1}:0] bits", ""
    else:
        channels, levels = circuit.thresholds.shape
        _, rows, columns = circuit.input_shape
        port = f"input [{8 * channels * rows * columns - 1}:0] pixels"
        bits = f"wire [{circuit.num_inputs - 1}:0] bits;\n"
        for bit, (c, t, y, x) in enumerate(np.ndindex(channels, levels, rows, columns)):
            pixel = (c * rows + y) * columns + x
            bits += f"assign bits[{bit}] = pixels[{8 * pixel} +: 8] >= 8'd{circuit.thresholds[c, t]};\n"
    return f"""
module reference (
    {port},
    output reg [{index_width - 1}:0] class_index,
    output reg [{num_classes * width - 1}:0] sums
);
{bits}wire [{num_outputs - 1}:0] outputs;
gates gates (.bits(bits), .outputs(outputs));
integer k, o;
reg [{width - 1}:0] sum, highest;
always @* begin
    class_index = 0;
    highest = 0;
    for (k = 0; k < {num_classes}; k = k + 1) begin
        sum = 0;
        for (o = 0; o < {outputs_a_class}; o = o + 1) sum = sum + outputs[{outputs_a_class} * k + o];
        sums[{width} * k +: {width}] = sum;
        if (sum > highest) begin
            highest = sum;
            class_index = k;
        end
    end
end
endmodule
"""


@pytest.mark.parametrize(
    "circuit",
    [
        random_circuit(21, (9,), 40, 5, 3),
        random_circuit(22, (4, 2, 1), 50, 3, 5, [[1, 200], [128, 7]]),
        random_circuit(23, (2, 2, 2), 30, 6, 1, [[0, 255]]),
    ],
    ids=["bits", "bytes of two channels", "one class"],
)
def test_verilog_is_proven_to_be_the_blif(tmp_path: Path, circuit: Circuit) -> None:
    """yosys finds no image for which the module and the BLIF with sums around it differ; it does for another module."""
    (tmp_path / "gates.blif").write_text(blif(circuit, "gates"))
    (tmp_path / "reference.v").write_text(reference_module(circuit))
    text = verilog(circuit.simplify(), "exported")
    (tmp_path / "exported.v").write_text(text)
    prove = (
        "read_blif -wideports gates.blif; read_verilog exported.v reference.v; hierarchy; proc; flatten; opt_clean; "
        "miter -equiv -flatten -make_assert reference exported miter; hierarchy -top miter; "
    )
    yosys(tmp_path, prove + "sat -verify -prove-asserts miter")
    before, _, after = text.rpartition(" + ")
    assert "\nendmodule" in after and "\nmodule" in before
    (tmp_path / "exported.v").write_text(f"{before} | {after}")
    yosys(tmp_path, prove + "sat -falsify -prove-asserts miter")


@pytest.mark.parametrize("pipeline", [None, 2])
def test_yosys_has_nothing_to_warn_of(tmp_path: Path, pipeline: int | None) -> None:
    circuit = random_circuit(24, (6, 3, 2), 150, 7, 4, [[1, 64, 255], [128, 128, 0]])
    (tmp_path / "module.v").write_text(verilog(circuit, "7 nets", pipeline))
    yosys(tmp_path, "read_verilog module.v; hierarchy -check -top circuit_7_nets; proc; check -assert")


def test_what_synthesis_finds() -> None:
    """abc's mapping of the circuit as it is has as many gates as `core` counts; optimised, a few fewer."""
    tool("yosys-abc", "berkeley-abc", "abc")
    for kind in ("a dense network", "two convolutions"):
        core = NETS[kind].counts.core
        as_read, optimised = abc_gates(NETS[kind], timeout_s=60)
        assert 0.95 * core <= as_read <= core
        assert core / 2 < optimised <= as_read


@pytest.mark.parametrize("pipeline", [None, 2])
def test_yosys_synthesises_the_module(pipeline: int | None) -> None:
    tool("yosys")
    circuit = NETS["random gates"].simplify()
    cells = yosys_cells(verilog(circuit, "tiny", pipeline), timeout_s=60)
    registers = sum(num for cell, num in cells.items() if "DFF" in cell)
    print(f"core {circuit.num_gates}, yosys {sum(cells.values())} cells: {cells}")
    assert (registers > 0) == (pipeline is not None)
    assert sum(cells.values()) - registers > 0.8 * circuit.num_gates
