"""Quantile thresholds may repeat: planes of the same bits are one to the circuit, in counts and in every export."""

import json
from pathlib import Path

import torch
from torch import nn

from convlogic_core import ConvSpec, DenseSpec, GroupSum, LogicLayer, ModelSpec, build_model
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.aiger import aiger
from convlogic_core.circuit.blif import blif
from convlogic_core.circuit.json_netlist import json_netlist
from convlogic_core.circuit.verilog import verilog
from convlogic_core.encoding import thermometer_thresholds
from convlogic_core.gates import GATE_NAMES

from .hardware_tools import bits_of, random_images
from .test_aiger import evaluated
from .test_blif import value
from .test_c_source import built, check
from .test_json_netlist import sums_of
from .test_verilog import agree

SPEC = ModelSpec(
    (6, 6, 6), (ConvSpec(16, tree_depth=2, residual_init=False),), (DenseSpec(72, residual_init=False),), 3, 1.0
)
LEVELS = torch.tensor([[100, 100, 200], [100, 128, 128]], dtype=torch.uint8)


def test_gates_of_equal_planes_cost_nothing() -> None:
    """Two channels of one pixel, each with 192 twice; the same threshold of another channel differs."""
    layer = LogicLayer(4, 4)
    gates = ["a and b", "a xor b", "a and b", "a nand b"]  # a wire, false, the one gate, its complement
    layer.indices_0.copy_(torch.tensor([0, 2, 0, 1]))
    layer.indices_1.copy_(torch.tensor([1, 3, 2, 3]))
    layer.weights.data.zero_()
    layer.weights.data[range(4), [GATE_NAMES.index(gate) for gate in gates]] = 1
    model = nn.Sequential(nn.Flatten(), layer, GroupSum(2)).eval()
    thresholds = torch.full((2, 2), 192, dtype=torch.uint8)
    circuit = Circuit.from_model(model, (4, 1, 1), thresholds)
    counts = circuit.counts
    assert (counts.raw, counts.core, counts.comparator_gates, counts.total) == (4, 1, 2, 1 + 3 * 7 + 2)
    assert Circuit.from_model(model, (4, 1, 1)).counts.core == 4
    images = torch.tensor([[a, b] for a in (0, 191, 192) for b in (191, 192, 255)], dtype=torch.uint8).view(9, 2, 1, 1)
    x = bits_of(circuit, images)
    assert torch.equal(circuit(x), model(x.float()))


def test_exports_are_the_model(tmp_path: Path) -> None:
    """Images of bytes; BLIF and AIGER take what thresholds make of them."""
    model = build_model(SPEC, 3).eval()
    circuit = Circuit.from_model(model, SPEC.input_shape, LEVELS)
    planes_read = circuit.is_read[1:217].reshape(6, 36).any(1)
    assert planes_read.tolist() == [True, False, True, True, True, False]
    images = random_images(circuit, 40)
    bits = bits_of(circuit, images)
    expected = model(bits.float()).int().tolist()
    for form in (circuit, circuit.simplify()):
        assert form.sums(bits).tolist() == expected
        assert agree(tmp_path, form, verilog(form), images).tolist() == expected
        flat = bits.flatten(1).tolist()
        assert [sums_of(json.loads(json_netlist(form)), image) for image in flat] == expected
        outputs = evaluated(aiger(form), flat)
        assert torch.tensor(outputs).view(40, 3, 24).sum(2).tolist() == expected
    text = blif(form)
    for image, outputs_of_image in list(zip(flat, outputs, strict=True))[:4]:
        known = {f"bits[{i}]": bit for i, bit in enumerate(image)}
        assert [value(text, f"outputs[{o}]", known) for o in range(72)] == outputs_of_image
    check(circuit, built(circuit, tmp_path))


def test_quantiles_do_repeat() -> None:
    images = torch.tensor([0, 0, 7, 7, 7, 200], dtype=torch.uint8).view(1, 1, 2, 3)
    assert thermometer_thresholds(images, 3, "quantile").tolist() == [[7, 7, 7]]
