"""From layers to gates: every window position of a convolution gets gates of its own.

Shape letters: C channels, H X rows and columns, K kernels, L leaves, G gates of a tree, P = pool**2 positions of a
pooled cell, M = H' * X' cells after pooling.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from ..gates import NUM_GATES
from ..layers import ConvLogicLayer, GroupSum, LogicLayer
from ..ops.output_size import tree_output_size

Ints = npt.NDArray[np.int32]
OR = 7


@dataclass(frozen=True)
class Layer:
    """What a circuit keeps of a layer of the network.

    Args:
        name: "conv_1", "pool_1", "dense_1" and so on.
        num_gates: gates of this layer that the circuit holds; they follow those of the layer before.
        raw_histogram: (16,) how many gates of each number the layer has unrolled, before any simplification.
    """

    name: str
    num_gates: int
    raw_histogram: tuple[int, ...]


def unroll(
    model: nn.Module, input_shape: tuple[int, ...], thresholds: npt.NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """The fields of a `Circuit`, but for thresholds. Arguments and errors as in `Circuit.from_model`."""
    modules = _layers(model)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"input_shape={input_shape} must be positive numbers, (C, H, W) or (F,)")
    netlist = _Netlist(prod(input_shape))
    planes = np.arange(1, 1 + prod(input_shape), dtype=np.int32).reshape(input_shape)  # nodes of the present values
    if thresholds is not None:
        planes = planes[_first_planes(thresholds)]
    number = {"conv": 0, "dense": 0}
    for position, module in enumerate(modules):
        where = f"layer {position} ({type(module).__name__})"
        if isinstance(module, nn.Flatten):
            planes = planes.reshape(-1)
        elif isinstance(module, ConvLogicLayer):
            number["conv"] += 1
            if planes.ndim != 3 or planes.shape[0] != module.in_channels:
                raise ValueError(f"{where} expects ({module.in_channels}, H, W), is given {planes.shape}")
            planes = netlist.add_conv(module, planes, str(number["conv"]))
        elif isinstance(module, LogicLayer):
            number["dense"] += 1
            if planes.ndim != 1 or len(planes) != module.in_dim:
                raise ValueError(f"{where} expects ({module.in_dim},), is given {planes.shape}: is a Flatten missing?")
            a, b = (planes[index.cpu().numpy()] for index in (module.indices_0, module.indices_1))
            planes = netlist.add(f"dense_{number['dense']}", a, b, module.gates().cpu().numpy())
    head = modules[-1]
    assert isinstance(head, GroupSum)
    if planes.ndim != 1:
        raise ValueError(f"class sums need (F,) outputs, are given {planes.shape}: is a Flatten missing?")
    if len(planes) % head.k:
        raise ValueError(f"{len(planes)} outputs cannot be divided among {head.k} classes")
    return {
        "input_shape": input_shape,
        **netlist.arrays(),
        "outputs": planes.copy(),
        "inverted": np.zeros(len(planes), np.bool_),
        "num_classes": head.k,
        "tau": float(head.tau),
        "layers": tuple(
            Layer(name, len(gate), tuple(np.bincount(gate, minlength=NUM_GATES).tolist()))
            for name, gate in zip(netlist.names, netlist.gate, strict=True)
        ),
    }


def _first_planes(thresholds: npt.NDArray[np.uint8]) -> list[int]:
    """For each bit plane the first with the same channel and threshold, and so the same bits: quantiles may repeat."""
    keys = [(channel, level) for channel, row in enumerate(thresholds.tolist()) for level in row]
    return [keys.index(key) for key in keys]


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of an `nn.Sequential`, nested ones taken apart, each one that gates can stand for."""
    if not isinstance(model, nn.Sequential):
        inside = [name for name, child in model.named_children() if isinstance(child, nn.Sequential)]
        hint = f": pass its {' or '.join(inside)}" if inside else ""
        raise ValueError(f"a circuit is made from an nn.Sequential, {type(model).__name__} is none{hint}")
    modules = _flat(model)
    for position, module in enumerate(modules):
        where = f"layer {position} ({type(module).__name__})"
        if not isinstance(module, ConvLogicLayer | LogicLayer | nn.Flatten | GroupSum):
            raise ValueError(f"{where} has no discrete form: a circuit is made of logic layers, Flatten and GroupSum")
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
            raise ValueError(f"{where} must flatten an image's whole planes, start_dim=1 and end_dim=-1")
        if isinstance(module, GroupSum) != (position == len(modules) - 1):
            raise ValueError(f"{where}: a GroupSum must be the last layer, and no other may be")
    if not modules:
        raise ValueError("the model has no layers")
    return modules


def _flat(model: nn.Sequential) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for module in model.children():
        modules += _flat(module) if isinstance(module, nn.Sequential) else [module]
    return modules


class _Netlist:
    """Gates as they are added, layer by layer."""

    def __init__(self, num_inputs: int) -> None:
        self.names: list[str] = []
        self.a: list[Ints] = []
        self.b: list[Ints] = []
        self.gate: list[npt.NDArray[np.uint8]] = []
        self._next = 1 + num_inputs

    def add(self, name: str, a: Ints, b: Ints, gate: npt.NDArray[Any]) -> Ints:
        """Gates of any shape -> their nodes in that shape."""
        nodes = self._next + np.arange(a.size, dtype=np.int32).reshape(a.shape)
        self._next += a.size
        self.names.append(name)
        self.a.append(a.reshape(-1).astype(np.int32, copy=False))
        self.b.append(b.reshape(-1).astype(np.int32, copy=False))
        self.gate.append(np.broadcast_to(gate, a.shape).reshape(-1).astype(np.uint8, copy=False))
        return nodes

    def add_conv(self, block: ConvLogicLayer, planes: Ints, number: str) -> Ints:
        """(C, H, X) nodes -> (K, H', X') nodes of the pooled cells."""
        pool, num_leaves = block.pool, block.selection.shape[1]
        size = tree_output_size(planes.shape[1:], block.kernel, block.stride, block.padding, pool)
        padded = np.pad(planes, ((0, 0), *((p, p) for p in block.padding)))  # with node 0, constant false
        selection = block.selection.cpu().numpy()
        channel, row, column = selection >> 16 & 65535, selection >> 8 & 255, selection & 255
        top, left = (
            (np.arange(n)[:, None] * pool + np.arange(pool)) * stride
            for n, stride in zip(size, block.stride, strict=True)
        )  # (H', pool), (X', pool)
        windows = top[:, None, :, None] * padded.shape[2] + left[None, :, None, :]
        windows = windows.reshape(-1, pool * pool).astype(np.int32)  # (M, P)
        leaves = ((channel * padded.shape[1] + row) * padded.shape[2] + column).astype(np.int32)
        values = padded.reshape(-1)[leaves[:, None, None, :] + windows[None, :, :, None]]  # (K, M, P, L)
        num_kernels, num_cells, num_positions = values.shape[:3]
        gates = block.gates().cpu().numpy()[:, None, None, :]  # (K, 1, 1, G)
        a, b = (np.empty((num_kernels, num_cells, num_positions, num_leaves - 1), np.int32) for _ in range(2))
        nodes = self._next + np.arange(a.size, dtype=np.int32).reshape(a.shape)
        start = 0
        while values.shape[3] > 1:  # a level of the trees at a time
            level = slice(start, start + values.shape[3] // 2)
            a[..., level], b[..., level] = values[..., 0::2], values[..., 1::2]
            values, start = nodes[..., level], level.stop
        self.add(f"conv_{number}", a, b, gates)
        cells = values[..., 0]  # (K, M, P)
        if pool == 2:
            cells = self._add_pool(cells, number)
        nodes_of_cells: Ints = cells.reshape(num_kernels, *size)
        return nodes_of_cells

    def _add_pool(self, cells: Ints, number: str) -> Ints:
        """(K, M, 4) -> (K, M, 1): two ORs, and the OR of these."""
        nodes = self._next + np.arange(cells.size // 4 * 3, dtype=np.int32).reshape(*cells.shape[:2], 3)
        a = np.concatenate((cells[..., 0::2], nodes[..., 0:1]), -1)
        b = np.concatenate((cells[..., 1::2], nodes[..., 1:2]), -1)
        self.add(f"pool_{number}", a, b, np.array(OR))
        return nodes[..., 2:]

    def arrays(self) -> dict[str, Any]:
        """All gates, in order."""
        return {
            "a": np.concatenate([np.empty(0, np.int32), *self.a]),
            "b": np.concatenate([np.empty(0, np.int32), *self.b]),
            "gate": np.concatenate([np.empty(0, np.uint8), *self.gate]),
        }
