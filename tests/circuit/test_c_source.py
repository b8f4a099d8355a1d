"""The exported C, compiled without a warning, gives the sums and classes of the circuit."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.c_program import PART_OPERATIONS, Program, schedule
from convlogic_core.circuit.c_source import c_source
from convlogic_core.circuit.evaluate import reference_sums
from convlogic_core.circuit.netlist import Layer
from search.circuit_check import C_FLAGS, CompiledCircuit, compile_c
from tests.circuit.hardware_tools import bits_of, digits_images, digits_network, random_circuit, random_images, tool

RAGGED = (0, 1, 63, 64, 65, 257, 1000)
NATIVE = ("-march=native",)
SCALAR = ("-DWORD_BITS=64", "-DVECTORS=3")


def built(circuit: Circuit, folder: Path, flags: tuple[str, ...] = (), name: str = "net") -> CompiledCircuit:
    tool("cc", "gcc", "clang")
    source = folder / "source.c"
    source.write_text(c_source(circuit, name))
    library, _ = compile_c(source, folder, [*C_FLAGS, *flags])
    return CompiledCircuit(library, name, circuit.num_classes)


def check(circuit: Circuit, compiled: CompiledCircuit, sizes: tuple[int, ...] = (257,)) -> None:
    images = random_images(circuit, max(sizes))
    expected = reference_sums(circuit, bits_of(circuit, images).flatten(1)).numpy()
    for num_images in sizes:
        pixels = images.flatten(1).numpy()[:num_images]
        np.testing.assert_array_equal(compiled.sums(pixels), expected[:num_images])
        np.testing.assert_array_equal(compiled.classify(pixels), expected[:num_images].argmax(1))


@pytest.mark.parametrize("flags", [(), NATIVE, SCALAR], ids=["default", "native", "64 bits"])
def test_any_number_of_images(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Rows of 77 bytes are no multiple of any word; there is more than one part, and there are ties."""
    circuit = random_circuit(0, (1, 7, 11), 1500, 47, 10, [[100]])
    assert len(schedule(circuit.simplify()).part_ends) > 1
    check(circuit, built(circuit, tmp_path, flags), RAGGED)


@pytest.mark.parametrize("flags", [NATIVE, SCALAR], ids=["native", "64 bits"])
@pytest.mark.parametrize(
    ("input_shape", "thresholds"),
    [
        ((6, 5, 9), [[0, 1, 127], [128, 129, 255]]),
        ((2, 1, 3), [[64], [200]]),
        ((3, 2, 2), None),
        ((1,), None),
        ((100,), None),
    ],
)
def test_bytes_and_bits(
    tmp_path: Path, input_shape: tuple[int, ...], thresholds: list[list[int]] | None, flags: tuple[str, ...]
) -> None:
    circuit = random_circuit(1, input_shape, 200, 12, 3, thresholds)
    check(circuit, built(circuit, tmp_path, flags))


@pytest.mark.parametrize(("num_classes", "outputs_a_class"), [(1, 1), (1, 300), (2, 1), (10, 3), (300, 2)])
def test_classes(tmp_path: Path, num_classes: int, outputs_a_class: int) -> None:
    circuit = random_circuit(2, (20,), 500, outputs_a_class, num_classes)
    check(circuit, built(circuit, tmp_path, NATIVE))


@pytest.mark.parametrize("flags", [NATIVE, SCALAR], ids=["native", "64 bits"])
def test_digits(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Hundreds of real images and of random ones, bit for bit against the discrete model; many sums tie."""
    model, circuit = digits_network()
    images = torch.cat([digits_images(700), random_images(circuit, 500)])
    scores = model(bits_of(circuit, images).float())
    compiled = built(circuit, tmp_path, flags)
    pixels = images.flatten(1).numpy()
    assert torch.equal(torch.from_numpy(compiled.sums(pixels)) / circuit.tau, scores)
    lowest_best = [row.index(max(row)) for row in scores.tolist()]
    assert compiled.classify(pixels).tolist() == lowest_best == circuit.classes(bits_of(circuit, images)).tolist()
    ties = (scores == scores.amax(1, keepdim=True)).sum(1) > 1
    assert ties.sum() > 200 and len(set(lowest_best)) > 5


def test_names_that_the_file_itself_uses(tmp_path: Path) -> None:
    """No identifier of its own ends like the two public functions, so whatever comes before is free."""
    circuit = random_circuit(4, (3,), 10, 2, 2)
    own = set(re.findall(r"[A-Za-z_]\w*", c_source(circuit, "net"))) - {"net_sums", "net_classify"}
    assert {"run", "PUBLIC", "sums", "find_highest"} <= own
    assert not [name for name in own if name.endswith(("_sums", "_classify"))]
    for name in ("run", "PUBLIC"):
        (tmp_path / name).mkdir()  # a library is loaded once from a path
        check(circuit, built(circuit, tmp_path / name, name=name))


def test_layers_numbered_high_are_written_no_slower(tmp_path: Path) -> None:
    """A file may say so; the second convolution comes first, as it does under its usual number."""
    conv = tuple(ConvSpec(4, kernel=3, tree_depth=2, residual_init=False) for _ in range(3))
    model = build_model(ModelSpec((1, 16, 16), conv, (DenseSpec(16),), 2, 1.0), seed=4)
    circuit = Circuit.from_model(model, (1, 16, 16))
    numbers = {"1": "1", "2": "7", "3": "999999999"}
    layers = (replace(layer, name=f"{layer.name[:-1]}{numbers[layer.name[-1]]}") for layer in circuit.layers)
    assert c_source(replace(circuit, layers=tuple(layers))) == c_source(circuit)


def test_an_image_larger_than_a_stack(tmp_path: Path) -> None:
    circuit = random_circuit(5, (1, 1200, 1200), 4, 2, 2)
    check(circuit, built(circuit, tmp_path, NATIVE), sizes=(2,))


def test_outputs_that_are_constants_inputs_complements_and_the_same(tmp_path: Path) -> None:
    nodes = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3] + [0] * 12 + [1, 2, 3] * 4 + [4] * 12 + [4] * 11 + [1]
    inverted = [0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1] + [1] * 12 + [1, 1, 1, 0, 0, 1] * 2 + [1] * 12 + [0] * 12
    circuit = Circuit(
        (3,),
        np.array([1], np.int32),
        np.array([2], np.int32),
        np.array([6], np.uint8),
        np.array(nodes, np.int32),
        np.array(inverted, np.bool_),
        5,
        1.0,
        (Layer("dense_1", 1, (0,) * 16),),
    )
    check(circuit, built(circuit, tmp_path))


def test_a_convolutional_model(tmp_path: Path) -> None:
    """The circuit before simplification is exported as the same function."""
    conv = tuple(ConvSpec(channels, kernel=3, tree_depth=2) for channels in (4, 6))
    model = build_model(ModelSpec((2, 12, 13), conv, (DenseSpec(120), DenseSpec(60)), 10, 3.0), seed=4)
    circuit = Circuit.from_model(model, (2, 12, 13), torch.tensor([[90, 160]], dtype=torch.uint8))
    compiled = built(circuit, tmp_path, NATIVE)
    check(circuit, compiled)
    check(circuit.simplify(), compiled)


@pytest.mark.parametrize("name", ["3 int-main.v", "int", "", "naïve */"])
def test_any_name(tmp_path: Path, name: str) -> None:
    circuit = random_circuit(3, (5,), 20, 4, 2)
    check(circuit, built(circuit, tmp_path, name=name))


def test_too_many_classes() -> None:
    circuit = random_circuit(4, (5,), 20, 1, 4)
    circuit = replace(circuit, outputs=np.zeros(65537, np.int32), inverted=np.zeros(65537, np.bool_), num_classes=65537)
    with pytest.raises(ValueError, match=r"C has room for 65,536 classes in a uint16_t, the circuit has 65,537"):
        c_source(circuit)


def check_program(circuit: Circuit) -> Program:
    """Runs the program on one image, part by part, with nothing but the places between parts; all of it is used."""
    program = schedule(circuit)
    bits = np.random.default_rng(1).integers(0, 2, circuit.num_inputs).tolist()
    kept: list[int] = [0] * program.num_places
    start = 0
    for end in program.part_ends:
        values = dict(enumerate([0, *bits]))
        for node, gate, a, b in program.operations[start:end]:
            x, y = (values[n] if n in values else kept[program.places[n]] for n in (a, b))
            values[node] = gate >> (3 - 2 * x - y) & 1
            if node in program.places:
                kept[program.places[node]] = values[node]
        start = end
    width = program.sum_bits
    sums = [sum(kept[k * width + i] << i for i in range(width)) for k in range(circuit.num_classes)]
    assert sums == circuit.sums(torch.tensor([bits], dtype=torch.uint8))[0].tolist()
    bits_of_sums = {node for node, place in program.places.items() if place < width * circuit.num_classes}
    read = {node for _, _, *read in program.operations for node in read} | bits_of_sums
    assert not [operation for operation in program.operations if operation.node not in read]
    return program


def test_the_order_is_one_that_can_run_and_places_are_not_taken_while_in_use() -> None:
    program = check_program(random_circuit(5, (40,), 4 * PART_OPERATIONS, 200, 7).simplify())
    assert program.num_places < len(program.operations) / 2


@pytest.mark.parametrize("seed", range(12))
def test_a_node_and_its_complement_are_a_one(seed: int) -> None:
    """Few nodes, counted often, so that complements cancel and what led to them alone is not needed."""
    rng = np.random.default_rng(seed)
    conv = tuple(ConvSpec(4, kernel=3, tree_depth=2, residual_init=False) for _ in range(seed % 3))
    model = build_model(ModelSpec((1, 12, 12), conv, (DenseSpec(72, residual_init=False),), 3, 1.0), seed)
    circuit = Circuit.from_model(model, (1, 12, 12)).simplify()
    last = np.flatnonzero(circuit.is_read)[-12:].astype(np.int32)
    outputs, inverted = rng.choice(last, 18), rng.integers(0, 2, 18).astype(np.bool_)
    outputs[1], inverted[1] = outputs[0], not inverted[0]
    check_program(replace(circuit, outputs=outputs, inverted=inverted).simplify())


def test_what_complements_leave_unused_is_not_written(tmp_path: Path) -> None:
    """Of a convolution, compiled without a warning."""
    model = build_model(ModelSpec((1, 6, 6), (ConvSpec(4, residual_init=False),), (DenseSpec(36),), 2, 1.0), seed=1)
    circuit = Circuit.from_model(model, (1, 6, 6)).simplify()
    deepest = int(circuit.node_depths().argmax())
    outputs, inverted = np.array([deepest, deepest, 1, 2], np.int32), np.array([False, True, False, False])
    circuit = replace(circuit, outputs=outputs, inverted=inverted)
    check(circuit, built(circuit, tmp_path))
