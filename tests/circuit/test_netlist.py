"""Circuits against the networks they stand for: the same sums before and after simplification, exact counts."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convlogic_core import PRESETS, ConvLogicLayer, ConvSpec, DenseSpec, GroupSum, LogicLayer, ModelSpec, build_model
from convlogic_core import raw_gates as raw_gates_of
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.evaluate import reference_sums
from convlogic_core.circuit.unroll import Layer
from convlogic_core.packed import packed_sums
from tests.core.conftest import WITH_EXTENSION
from tests.core.test_model import specs
from tests.core.test_packed import images, network

SMALL = ModelSpec((2, 8, 8), (ConvSpec(3), ConvSpec(4, kernel=2)), (DenseSpec(12), DenseSpec(6)), 3, 2.0)


def assert_same_function(model: nn.Sequential, circuit: Circuit, x: Tensor) -> None:
    with torch.no_grad():
        scores = model(x.float())
    lowest_best = torch.tensor([row.index(max(row)) for row in scores.tolist()], dtype=torch.int64)
    for form in (circuit, circuit.simplify()):
        assert torch.equal(form(x), scores)
        assert torch.equal(form.classes(x), lowest_best)
        assert torch.equal(reference_sums(form, x.flatten(1)), form.sums(x))


@settings(deadline=None, max_examples=40)
@given(spec=specs(), seed=st.integers(0, 1000), num_images=st.sampled_from([1, 63, 64, 65, 130]))
def test_any_network_is_its_circuit(spec: ModelSpec, seed: int, num_images: int) -> None:
    model = network(spec, seed=seed)
    circuit = Circuit.from_model(model, spec.input_shape)
    assert circuit.num_gates == circuit.counts.raw == raw_gates_of(spec)
    assert_same_function(model, circuit, images(num_images, *spec.input_shape))


@pytest.mark.parametrize("num_images", [0, 1, 64, 511, 512, 513, 1100])
def test_numbers_of_images(num_images: int) -> None:
    circuit = Circuit.from_model(network(SMALL), SMALL.input_shape)
    x = images(num_images, 2, 8, 8)
    assert torch.equal(circuit.sums(x), packed_sums(network(SMALL), x))
    assert circuit.simplify().classes(x).shape == (num_images,)


@pytest.mark.parametrize("name", ["mnist_s", "cifar10_s"])
def test_presets_have_their_published_raw_gates(name: str) -> None:
    spec = PRESETS[name]
    k = spec.conv[0].out_channels
    circuit = Circuit.from_model(build_model(spec, seed=1), spec.input_shape)
    assert circuit.num_gates == (12_563 if name.startswith("mnist") else 30_016) * k == raw_gates_of(spec)
    assert [layer.name for layer in circuit.layers[:3]] == ["conv_1", "pool_1", "conv_2"]


@WITH_EXTENSION
def test_every_instruction_set_and_number_of_threads() -> None:
    """More outputs than are counted at a time, in classes that do not end where a count does."""
    from convlogic_core import _native  # type: ignore[attr-defined]

    spec = ModelSpec((1, 12, 12), (ConvSpec(8),), (DenseSpec(7 * 900), DenseSpec(7 * 450)), 7, 1.0)
    model, x = network(spec), images(1500, 1, 12, 12)
    circuit = Circuit.from_model(model, spec.input_shape)
    expected = reference_sums(circuit, x.flatten(1))
    before, threads = _native.isa(), torch.get_num_threads()
    try:
        for isa in _native.supported_isas():
            for num_threads in (1, 2):
                _native.set_isa(isa)
                torch.set_num_threads(num_threads)
                for form in (circuit, circuit.simplify()):
                    assert torch.equal(form.sums(x), expected)
    finally:
        _native.set_isa(before)
        torch.set_num_threads(threads)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing, too, is then the reference's."""
    for module in ("evaluate", "simplify"):
        monkeypatch.setattr(f"convlogic_core.circuit.{module}.native_built", lambda: False)
    monkeypatch.setattr("convlogic_core.ops.packed.use_native", lambda *_: False)
    monkeypatch.setattr("convlogic_core.ops.backend._native", None)
    model = network(SMALL)
    assert_same_function(model, Circuit.from_model(model, SMALL.input_shape), images(70, 2, 8, 8))


def test_only_dense_layers() -> None:
    model = nn.Sequential(LogicLayer(9, 12, seed=1), GroupSum(3)).eval()
    assert_same_function(model, Circuit.from_model(model, (9,)), images(70, 9))


def test_layers_in_a_sequential_within() -> None:
    inner = network(SMALL)
    model = nn.Sequential(nn.Sequential(*list(inner)[:2]), *list(inner)[2:]).eval()
    assert_same_function(model, Circuit.from_model(model, SMALL.input_shape), images(70, 2, 8, 8))


def test_in_training_mode_the_discrete_gates_count() -> None:
    model = network(SMALL)
    circuit = Circuit.from_model(model.train(), SMALL.input_shape)
    assert_same_function(model.eval(), circuit, images(70, 2, 8, 8))


def test_equal_sums_give_the_lowest_class() -> None:
    bits = np.array([1, 2, 3], np.int32)
    empty = np.empty(0, np.int32)
    circuit = Circuit((3,), empty, empty, np.empty(0, np.uint8), bits, np.zeros(3, np.bool_), 3, 1.0, ())
    x = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    assert circuit.classes(x).tolist() == [0, 0, 1, 0, 2]


class Notebook(nn.Module):
    """A model with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network(SMALL)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y


BAD_MODELS = {
    "a module of its own": (Notebook(), r"Notebook is none: pass its network"),
    "a soft layer": (nn.Sequential(LogicLayer(9, 12), nn.Sigmoid(), GroupSum(3)), r"layer 1 \(Sigmoid\) has no discre"),
    "no class sums": (nn.Sequential(LogicLayer(9, 12)), r"layer 0 \(LogicLayer\): a GroupSum must be the last"),
    "class sums within": (nn.Sequential(GroupSum(3), GroupSum(1)), r"layer 0 \(GroupSum\): a GroupSum must be"),
    "another width": (nn.Sequential(LogicLayer(8, 12), GroupSum(3)), r"expects \(8,\), is given \(9,\)"),
    "a Flatten is missing": (nn.Sequential(ConvLogicLayer(9, 2), GroupSum(2)), r"expects \(9, H, W\)"),
    "classes": (nn.Sequential(LogicLayer(9, 12), GroupSum(5)), r"12 outputs cannot be divided among 5 classes"),
    "flattens too little": (nn.Sequential(nn.Flatten(2), GroupSum(3)), r"layer 0 \(Flatten\) must flatten"),
    "nothing": (nn.Sequential(), r"no layers"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_are_no_circuits(name: str) -> None:
    model, message = BAD_MODELS[name]
    with pytest.raises(ValueError, match=message):
        Circuit.from_model(model, (9,))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 127), r"expects \(images, 2, 8, 8\) or \(images, 128\) bits, got \(3, 127\)"),
        (torch.zeros(3, 8, 8, 2), r"bits, got \(3, 8, 8, 2\)"),
        (torch.zeros(3, 2, 64), r"bits, got \(3, 2, 64\)"),
        (torch.zeros(0, 2, 8, 9), r"bits, got \(0, 2, 8, 9\)"),
        (torch.zeros(128), r"bits, got \(128,\)"),
        (torch.full((3, 2, 8, 8), 0.5), r"zeros and ones only"),
        (torch.full((3, 2, 8, 8), 2, dtype=torch.uint8), r"zeros and ones only"),
        (torch.zeros(3, 2, 8, 8, dtype=torch.int64), r"got torch.int64"),
    ],
)
def test_inputs_that_are_no_bits(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Circuit.from_model(network(SMALL), SMALL.input_shape).sums(x)


@pytest.mark.parametrize("thresholds", [None, torch.tensor([[64], [128]], dtype=torch.uint8)])
def test_saved_and_loaded(tmp_path: Path, thresholds: Tensor | None) -> None:
    circuit = Circuit.from_model(network(SMALL), SMALL.input_shape, thresholds).simplify()
    circuit.save(tmp_path / "new" / "x.circuit")
    loaded = Circuit.load(tmp_path / "new" / "x.circuit")
    for name, value in vars(circuit).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(loaded, name)), name
        elif not name.startswith("_"):
            assert value == getattr(loaded, name), name
    assert loaded.counts == circuit.counts
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.circuit"]
    x = images(70, 2, 8, 8)
    assert torch.equal(loaded.sums(x), circuit.sums(x))


def test_a_circuit_has_outputs() -> None:
    empty = np.empty(0, np.int32)
    with pytest.raises(ValueError, match="a circuit needs outputs"):
        Circuit((3,), empty, empty, np.empty(0, np.uint8), empty, np.empty(0, np.bool_), 1, 1.0, ())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Layer("dense_1", -1, (0,) * 16), Layer("dense_2", 1, (0,) * 16)), "must have a number of gates"),
        ((Layer("dense_1", 0, (0,) * 15),), "16 counts"),
        ((Layer("dense_1", 0, (10**30,) + (0,) * 15),), "16 counts"),
        ((Layer("all", 0, (0,) * 16),), "layer 'all' must be called"),
        ((Layer("dense_1", 1, (0,) * 16),), "the layers hold 1 gates of 0"),
    ],
)
def test_layers_that_cannot_be(layers: tuple[Layer, ...], message: str) -> None:
    empty = np.empty(0, np.int32)
    with pytest.raises(ValueError, match=message):
        Circuit((3,), empty, empty, np.empty(0, np.uint8), np.ones(1, np.int32), np.zeros(1, np.bool_), 1, 1.0, layers)


def test_what_a_circuit_is_made_of_stays_the_caller_s() -> None:
    """Arrays can be written on and thresholds changed; the circuit's own view of the arrays cannot."""
    one = np.ones(1, np.int32)
    outputs, gate, levels = np.array([2], np.int32), np.array([3], np.uint8), torch.full((1, 1), 7, dtype=torch.uint8)
    layer = Layer("dense_1", 1, (0,) * 16)
    circuit = Circuit((1, 1, 1), one, one, gate, outputs, np.zeros(1, np.bool_), 1, 1.0, (layer,), levels.numpy())
    levels[:] = 9
    assert circuit.thresholds is not None and circuit.thresholds.tolist() == [[7]]
    for array in (one, outputs, gate):
        array[0] = array[0]
    for array in (*circuit.gates, circuit.thresholds, circuit.is_read):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_depth_of_gates_in_a_row() -> None:
    """More in one layer than any tree that is unrolled has."""
    num = 20_000
    before = np.arange(1, 1 + num, dtype=np.int32)
    layer = Layer("dense_1", num, (0,) * 16)
    gates = (before, before, np.full(num, 14, np.uint8))
    circuit = Circuit((1,), *gates, np.array([1 + num], np.int32), np.zeros(1, np.bool_), 1, 1.0, (layer,))
    assert circuit.node_depths().tolist() == [0, *range(num + 1)]


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "x.circuit"
    Circuit.from_model(network(SMALL), SMALL.input_shape).save(file)
    data = file.read_bytes()
    for size in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"x.circuit is truncated or no circuit file"):
            Circuit.load(file)
    file.write_bytes(data.replace(b"convlogic-circuit", b"convlogic-circus_"))
    with pytest.raises(ValueError, match=r"is no circuit file"):
        Circuit.load(file)
    file.write_bytes(data.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(ValueError, match=r"version 9, this program reads 1"):
        Circuit.load(file)
    file.write_bytes(data.replace(b'\\"tau\\"', b'\\"uat\\"'))
    with pytest.raises(ValueError, match=r"is damaged: KeyError 'tau'"):
        Circuit.load(file)
    with pytest.raises(FileNotFoundError):
        Circuit.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau", "two"),
        ("tau", 10**400),
        ("num_classes", float("nan")),
        ("num_classes", None),
        ("input_shape", [2, "eight", 8]),
        ("layers", [["dense_1", 18]]),
        ("layers", [["dense_1", "eighteen", [0] * 16]]),
    ],
)
def test_damaged_descriptions(tmp_path: Path, field: str, value: Any) -> None:
    """Whatever stands where a number should: the error names the file."""
    file = tmp_path / "x.circuit"
    Circuit.from_model(network(SMALL), SMALL.input_shape).save(file)
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    description = json.loads(metadata["circuit"]) | {field: value}
    metadata["circuit"] = json.dumps(description)
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file, metadata)
    with pytest.raises(ValueError, match=r"x.circuit is damaged: \w+Error "):
        Circuit.load(file)


def changed(array: np.ndarray, value: int) -> np.ndarray:
    array = array.copy()
    array.view(np.uint8 if array.itemsize == 1 else array.dtype)[5] = value
    return array


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", 134, "gate 5 is node 134 and reads node 134"),
        ("b", -1, "gate 5 is node 134 and reads node -1"),
        ("gate", 16, "gate number 16 is none of the 16"),
        ("outputs", 10_000, "outputs name nodes outside 0 to"),
        ("inverted", 2, "neither 0 nor 1"),
        ("input_shape", (-2, 8, -8), "input_shape=(-2, 8, -8) must be positive numbers"),
        ("gate", np.array(3, np.uint8), "gate must have one dimension"),
    ],
)
def test_arrays_that_native_code_must_not_see(tmp_path: Path, name: str, value: Any, message: str) -> None:
    circuit = Circuit.from_model(network(SMALL), SMALL.input_shape)
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(circuit, **{name: changed(getattr(circuit, name), value) if isinstance(value, int) else value})
    if not isinstance(value, int):
        return
    circuit.save(tmp_path / "x.circuit")
    tensors = safetensors.numpy.load_file(tmp_path / "x.circuit")
    with safetensors.safe_open(tmp_path / "x.circuit", "numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(tensors | {name: changed(tensors[name], value)}, tmp_path / "y.circuit", metadata)
    with pytest.raises(ValueError, match=f"y.circuit holds no sound circuit: .*{message}"):
        Circuit.load(tmp_path / "y.circuit")
