"""What a circuit costs: comparators by what it reads, layers, histograms; docs/gates.md has a worked example."""

import numpy as np
import pytest
import torch

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.unroll import Layer
from convlogic_core.gates import GATE_A


def byte_reaches(threshold: int) -> int:
    """Gates of byte >= threshold, counted by building it: an AND or OR for each bit above the lowest that is set."""
    kind = [threshold - 1 >> bit & 1 for bit in range(8)]  # byte > threshold - 1
    num_gates, below = 0, False  # whether the bits below decide anything yet
    for bit in kind:
        if below:
            num_gates += 1
        elif not bit:
            below = True  # the bit itself: above an unset bit of threshold - 1, equal or greater needs it set
    return num_gates


@pytest.mark.parametrize("threshold", range(1, 256))
def test_comparators(threshold: int) -> None:
    """Of four pixels one is read, by an output."""
    empty = np.empty(0, np.int32)
    circuit = Circuit(
        (1, 2, 2),
        empty,
        empty,
        np.empty(0, np.uint8),
        np.array([3], np.int32),
        np.zeros(1, np.bool_),
        1,
        1.0,
        (),
        thresholds=np.array([[threshold]], np.uint8),
    )
    counts = circuit.counts
    assert counts.comparator_gates == byte_reaches(threshold)
    assert (counts.raw, counts.core, counts.total, counts.depth) == (0, 0, 7 + byte_reaches(threshold), 0)


def test_every_pixel_and_threshold_that_is_read_has_its_comparator() -> None:
    """Thresholds 64 and 192 cost one gate a pixel, 128 none."""
    spec = ModelSpec((3, 4, 4), (), (DenseSpec(48),), 2, 1.0)
    circuit = Circuit.from_model(
        build_model(spec, 0), spec.input_shape, torch.tensor([[64, 128, 192]], dtype=torch.uint8)
    )
    is_read = np.zeros(49, np.bool_)
    simplified = circuit.simplify()
    for nodes in (simplified.a, simplified.b, simplified.outputs):
        is_read[nodes[nodes <= 48]] = True
    live = is_read[1:].reshape(3, 16).sum(1)
    assert circuit.counts.comparator_gates == live[0] + live[2]


def test_layers_and_histogram() -> None:
    spec = ModelSpec((1, 6, 6), (ConvSpec(2, padding=0, tree_depth=2),), (DenseSpec(8), DenseSpec(4)), 2, 1.0)
    model = build_model(spec, 0)
    for parameter in model.parameters():
        parameter.data.zero_()
        parameter.data[..., GATE_A] = 1
    counts = Circuit.from_model(model, spec.input_shape).counts
    assert [(layer.name, layer.raw) for layer in counts.layers] == [
        ("conv_1", 2 * 4 * 4 * 3),
        ("pool_1", 2 * 4 * 3),
        ("dense_1", 8),
        ("dense_2", 4),
    ]
    assert counts.raw == 2 * 4 * 4 * 3 + 2 * 4 * 3 + 8 + 4
    assert counts.core == sum(layer.core for layer in counts.layers) == counts.layers[1].core  # wires but for the ORs
    assert counts.histogram["a"] == counts.raw - 2 * 4 * 3 == sum(counts.histogram.values())
    assert counts.pass_through == 1.0 and counts.layers[1].pass_through == 0.0


def test_constant_outputs_are_not_added_up() -> None:
    """The total counts the outputs that can change: here node 1 twice, once complemented, and the constants not."""
    outputs, inverted = np.array([0, 1, 0, 1], np.int32), np.array([False, True, True, False])
    empty = np.empty(0, np.int32)
    circuit = Circuit(
        (2,), empty, empty, np.empty(0, np.uint8), outputs, inverted, 2, 1.0, (Layer("dense_1", 0, (0,) * 16),)
    )
    assert (circuit.counts.num_outputs, circuit.counts.total) == (2, 14)
