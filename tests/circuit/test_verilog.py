"""The Verilog in an independent simulator, bit for bit against the circuit."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convlogic_core.circuit import Circuit
from convlogic_core.circuit.names import C_KEYWORDS, VERILOG_KEYWORDS, safe_name
from convlogic_core.circuit.verilog import verilog

from .hardware_tools import bits_of, digits_images, digits_network, random_circuit, random_images, simulate

LEVELS = [[1, 64, 255], [128, 128, 0]]
CIRCUITS = {
    "one class": random_circuit(1, (9,), 40, 7, 1),
    "two classes": random_circuit(2, (2, 3, 2), 60, 4, 2),
    "three classes of bytes": random_circuit(3, (6, 2, 2), 90, 9, 3, LEVELS),
    "ten classes of bytes": random_circuit(4, (6, 3, 2), 150, 6, 10, LEVELS),
    "no gates": random_circuit(8, (2, 1, 1), 0, 8, 3, [[7], [128]]),
    "one output a class": random_circuit(7, (1,), 3, 1, 5),
}


def agree(folder: Path, circuit: Circuit, text: str, images: Tensor) -> Tensor:
    """That simulated classes and sums are those of the circuit; gives the sums."""
    sums = circuit.sums(bits_of(circuit, images))
    found_classes, found_sums = simulate(folder, text, images, circuit.num_classes)
    assert found_sums == sums.tolist()
    assert found_classes == [row.index(max(row)) for row in sums.tolist()]
    return sums


@pytest.mark.parametrize("pipeline", [None, 1, 3])
@pytest.mark.parametrize("kind", CIRCUITS)
def test_simulated_module_is_the_circuit(tmp_path: Path, kind: str, pipeline: int | None) -> None:
    circuit = CIRCUITS[kind]
    images = random_images(circuit, 40)
    sums = agree(tmp_path, circuit, verilog(circuit, kind, pipeline), images)
    agree(tmp_path, circuit, verilog(circuit.simplify(), "always", pipeline), images)
    if circuit.num_classes > 1:
        assert ((sums == sums.amax(1, keepdim=True)).sum(1) > 1).any(), "no sums tie: the test is too weak"


@pytest.mark.parametrize("pipeline", [None, 4])
def test_digits(tmp_path: Path, pipeline: int | None) -> None:
    """Real images and random ones, against the discrete model as well."""
    model, circuit = digits_network()
    images = torch.cat([digits_images(200), random_images(circuit, 60)])
    sums = agree(tmp_path, circuit, verilog(circuit.simplify(), "digits", pipeline), images)
    assert torch.equal(model(bits_of(circuit, images).float()), sums / 3.0)
    assert len(set(sums.argmax(1).tolist())) > 3


def test_a_changed_module_is_found_out(tmp_path: Path) -> None:
    """What the tests above rest on."""
    circuit = CIRCUITS["three classes of bytes"]
    text = verilog(circuit)
    for old, new in ((" > ", " >= "), ("8'd64", "8'd65"), (" + ", " | "), (" ^ ", " & ")):
        assert old in text
        with pytest.raises(AssertionError):
            agree(tmp_path, circuit, text.replace(old, new), random_images(circuit, 40))


@pytest.mark.parametrize("pipeline", [1, 2, 5])
def test_latency_is_stated(pipeline: int) -> None:
    circuit = CIRCUITS["ten classes of bytes"].simplify()
    text = verilog(circuit, "x", pipeline)
    levels = -(-circuit.counts.depth // pipeline)
    # comparators and gates; 3 + 2 + 1 outputs, then those sums; 10 classes, 5, 3, 2
    latency = 1 + levels + 2 + 4
    assert f"localparam LATENCY = {latency};" in text
    assert f"LATENCY = {latency} edges later" in text


def test_only_what_is_read_is_compared() -> None:
    circuit = CIRCUITS["ten classes of bytes"].simplify()
    read = {*circuit.a.tolist(), *circuit.b.tolist(), *circuit.outputs.tolist()} & set(range(1, 37))
    assert verilog(circuit).count(">= 8'd") == len(read) < 36


def test_gates_are_told_once() -> None:
    """In the comment at the top: those of the module as it is written and, where they differ, after simplification."""
    circuit = CIRCUITS["three classes of bytes"]
    simplified = circuit.simplify()
    core, depth = simplified.num_gates, circuit.counts.depth
    line = f"// {core:,} two-input gates (core; inverters are free), at most {depth:,} of them in a row.\n"
    assert core < circuit.num_gates == 90
    assert f"// 90 gates, which simplify to\n{line}" in verilog(circuit)
    text = verilog(simplified)
    assert line in text
    assert "simplif" not in text


def test_no_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="pipeline=0 levels of gates: choose at least 1"):
        verilog(CIRCUITS["one class"], pipeline=0)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("mnist_s", "mnist_s"),
        ("", "circuit"),
        ("---", "circuit"),
        ("7 nets", "circuit_7_nets"),
        ("module", "circuit_module"),
        ("restrict", "circuit_restrict"),
        ("Größe 3/b", "Gr_e_3_b"),
        ("_Bool", "Bool"),
        ("a\nb; endmodule", "a_b_endmodule"),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe == safe_name(safe)
    assert re.fullmatch("[A-Za-z][A-Za-z0-9_]*", safe)


def test_no_keyword_is_a_safe_name() -> None:
    keywords = VERILOG_KEYWORDS | C_KEYWORDS
    assert not {safe_name(keyword) for keyword in keywords} & keywords
