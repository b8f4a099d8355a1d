"""Whole layers against loops written from the definition, every gate by its own formula.

Shapes: N batch, C channels, H W image, K kernels, L = 2**tree_depth leaves, G = L - 1 gates.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convlogic_core import ConvLogicLayer, LogicLayer, soft_evaluation

Floats = NDArray[np.float64]
RELAXED_GATES: list[Callable[[Floats, Floats], Floats]] = [
    lambda a, b: 0 * a,
    lambda a, b: a * b,
    lambda a, b: a * (1 - b),
    lambda a, b: a,
    lambda a, b: (1 - a) * b,
    lambda a, b: b,
    lambda a, b: a * (1 - b) + (1 - a) * b,
    lambda a, b: 1 - (1 - a) * (1 - b),
    lambda a, b: (1 - a) * (1 - b),
    lambda a, b: a * b + (1 - a) * (1 - b),
    lambda a, b: 1 - b,
    lambda a, b: 1 - (1 - a) * b,
    lambda a, b: 1 - a,
    lambda a, b: 1 - a * (1 - b),
    lambda a, b: 1 - a * b,
    lambda a, b: 0 * a + 1,
]


def gate_weights(logits: Floats, soft: bool) -> Floats:
    """From logits (..., P) to what each relaxed gate, or each row of the truth table, counts."""
    if logits.shape[-1] == 4:
        return 1 / (1 + np.exp(-logits)) if soft else (logits > 0).astype(float)
    if soft:
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.eye(16)[logits.argmax(-1)]


def gate_output(weights: Floats, a: Floats, b: Floats) -> Floats:
    """One gate on two batches of inputs, (N,) each."""
    if len(weights) == 4:
        return weights @ np.stack([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b])
    return sum((weights[g] * RELAXED_GATES[g](a, b) for g in np.flatnonzero(weights)), np.zeros(len(a)))


def tree_output(weights: Floats, leaves: list[Floats]) -> Floats:
    """A tree of G gates, stored level by level from the leaves."""
    gate = 0
    while len(leaves) > 1:
        next_level = []
        for pair in range(len(leaves) // 2):
            next_level.append(gate_output(weights[gate], leaves[2 * pair], leaves[2 * pair + 1]))
            gate += 1
        leaves = next_level
    assert gate == len(weights)
    return leaves[0]


def slow_conv(layer: ConvLogicLayer, images: Floats, soft: bool) -> Floats:
    num, _, height, width = images.shape
    weights, selection = gate_weights(layer.weights.detach().numpy(), soft), layer.selection.numpy()
    full_height = (height + 2 * layer.padding[0] - layer.kernel[0]) // layer.stride[0] + 1
    full_width = (width + 2 * layer.padding[1] - layer.kernel[1]) // layer.stride[1] + 1
    full = np.zeros((num, layer.out_channels, full_height, full_width))
    for kernel, y, x in np.ndindex(*full.shape[1:]):
        leaves = []
        for packed in selection[kernel]:
            channel, row, column = int(packed) // 65536, int(packed) // 256 % 256, int(packed) % 256
            at_y = y * layer.stride[0] + row - layer.padding[0]
            at_x = x * layer.stride[1] + column - layer.padding[1]
            inside = 0 <= at_y < height and 0 <= at_x < width
            leaves.append(images[:, channel, at_y, at_x] if inside else np.zeros(num))
        full[:, kernel, y, x] = tree_output(weights[kernel], leaves)
    pooled = np.zeros((num, layer.out_channels, full_height // layer.pool, full_width // layer.pool))
    for y, x in np.ndindex(*pooled.shape[2:]):
        block = full[:, :, y * layer.pool : (y + 1) * layer.pool, x * layer.pool : (x + 1) * layer.pool]
        pooled[:, :, y, x] = block.max((2, 3))
    return pooled


CONV_CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no padding": {"padding": 0},
    "wide padding": {"padding": 2},
    "stride 2": {"stride": 2, "padding": 2},
    "oblong": {"kernel": (2, 4), "stride": (2, 1), "padding": (0, 2)},
    "one pixel": {"kernel": 1, "padding": 0},
    "groups": {"in_channels": 4, "out_channels": 6, "groups": 2},
    "uneven groups": {"in_channels": 5, "out_channels": 4, "groups": 3},
    "no pooling": {"pool": 1},
    "depth 1": {"tree_depth": 1},
    "depth 2": {"tree_depth": 2},
    "depth 4": {"tree_depth": 4, "kernel": 5, "padding": 2},
}


# 6x6 pools evenly under most of these; of 7x5 the last row and column are floored away.
@pytest.mark.parametrize(("parametrization", "size"), [("softmax", (7, 5)), ("iwp", (6, 6))], ids=["softmax", "iwp"])
@pytest.mark.parametrize("case", CONV_CASES)
def test_conv_layer_equals_the_loops(
    case: str, parametrization: str, size: tuple[int, int], implementation: str
) -> None:
    arguments = {"in_channels": 2, "out_channels": 3, **CONV_CASES[case]}
    layer = ConvLogicLayer(**arguments, parametrization=parametrization, implementation=implementation, seed=1).double()
    images = torch.rand(3, layer.in_channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), soft_evaluation(layer):
        soft = layer(images)
    torch.testing.assert_close(soft, torch.from_numpy(slow_conv(layer, images.numpy(), soft=True)))
    bits = images.round()
    discrete = layer.eval()(bits)
    assert torch.equal(discrete, torch.from_numpy(slow_conv(layer, bits.numpy(), soft=False)))


def test_floored_sizes_are_those_of_max_pool2d() -> None:
    layer = ConvLogicLayer(1, 1, implementation="python", seed=0)
    assert layer(torch.rand(1, 1, 7, 5)).shape == (1, 1, 3, 2)


@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
@pytest.mark.parametrize("connections", ["random", "unique"])
def test_dense_layer_equals_the_loops(connections: str, parametrization: str, implementation: str) -> None:
    layer = LogicLayer(
        9, 14, connections=connections, parametrization=parametrization, implementation=implementation, seed=1
    ).double()
    x = torch.rand(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for inputs, soft in ((x, True), (x.round(), False)):
        weights = gate_weights(layer.weights.detach().numpy(), soft)
        expected = np.stack(
            [
                gate_output(weights[gate], inputs[:, a].numpy(), inputs[:, b].numpy())
                for gate, (a, b) in enumerate(zip(layer.indices_0.tolist(), layer.indices_1.tolist(), strict=True))
            ],
            axis=1,
        )
        torch.testing.assert_close(layer.train(soft)(inputs).detach(), torch.from_numpy(expected))


def test_leaf_order_is_that_of_the_selection() -> None:
    """(p and not q) or (r and not s) with p, q, r, s the corners of a 2x2 window, by hand."""
    selection = torch.tensor([[0 << 8 | 0, 0 << 8 | 1, 1 << 8 | 0, 1 << 8 | 1]], dtype=torch.int32)
    layer = ConvLogicLayer(
        1, 1, kernel=2, padding=0, selection=selection, tree_depth=2, pool=1, implementation="python", seed=0
    ).eval()
    with torch.no_grad():
        layer.weights.zero_()
        for gate, number in enumerate((2, 2, 7)):
            layer.weights[0, gate, number] = 1
    for pixels in range(16):
        p, q, r, s = ((pixels >> shift) & 1 for shift in (3, 2, 1, 0))
        image = torch.tensor([[[[p, q], [r, s]]]], dtype=torch.float32)
        assert layer(image).item() == float((p and not q) or (r and not s))
