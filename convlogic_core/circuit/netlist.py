"""Circuit: gates as flat integer arrays, in topological order.

Shape letters: N images, F input bits of an image, G gates, O outputs (those that the class sums count), K classes.
Nodes are numbered: 0 is constant false, 1 to F are the input bits, F + 1 + g is gate g.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ..gates import NUM_GATES
from ..ops import highest_class
from .counts import CircuitCounts, count
from .evaluate import Evaluator
from .simplify import Gates, simplify_gates
from .storage import read_circuit, write_circuit
from .unroll import Layer, unroll

Nodes = npt.NDArray[np.int32]
Scalar = TypeVar("Scalar", bound=np.generic)
MAX_NODES: Final = 2**30  # a node and its complement share 31 bits
MAX_PASSES: Final = 16  # over a layer at once; beyond, gate by gate is faster


@dataclass(frozen=True, eq=False)
class Circuit:
    """A discretized network: gates, and how many of each class's outputs are one.

    Arrays are seen read-only from here and not copied, thresholds are copied.

    Args:
        input_shape: (C, H, W) or (F,) of an image's bits; bit i of the flattened image is node i + 1.
        a, b: (G,) int32, the nodes that a gate reads; both lie before its own.
        gate: (G,) uint8, numbers of gates as in `gates`.
        outputs: (O,) int32, the nodes that the class sums count, class by class.
        inverted: (O,) bool, whether an output is the complement of its node.
        num_classes: K, divides O.
        tau: what class sums are divided by to give logits.
        layers: in order, see `Layer`.
        thresholds: (channels, T) uint8 with C = channels * T where bit = byte >= threshold, as `encoding` encodes;
            None where an image's bits are all there is.

    Raises:
        ValueError: arrays that do not fit together, or a gate that reads a node not before its own.
    """

    input_shape: tuple[int, ...]
    a: Nodes
    b: Nodes
    gate: npt.NDArray[np.uint8]
    outputs: Nodes
    inverted: npt.NDArray[np.bool_]
    num_classes: int
    tau: float
    layers: tuple[Layer, ...]
    thresholds: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if not self.input_shape or min(self.input_shape) < 1:
            raise ValueError(f"input_shape={self.input_shape} must be positive numbers, (C, H, W) or (F,)")
        for name, array in self.gates._asdict().items():
            if array.ndim != 1:
                raise ValueError(f"{name} must have one dimension, got {array.shape}")
        num_gates, first = len(self.gate), self.num_inputs + 1
        own = np.arange(first, first + num_gates)
        for name, array, size, dtype in (
            ("a", self.a, num_gates, np.int32),
            ("b", self.b, num_gates, np.int32),
            ("gate", self.gate, num_gates, np.uint8),
            ("outputs", self.outputs, len(self.outputs), np.int32),
            ("inverted", self.inverted, len(self.outputs), np.bool_),
        ):
            if array.shape != (size,) or array.dtype != dtype:
                raise ValueError(f"{name} must be ({size},) {np.dtype(dtype)}, got {array.shape} {array.dtype}")
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous")
            object.__setattr__(self, name, _read_only(array.view()))
        if first + num_gates > MAX_NODES:
            raise ValueError(f"{num_gates:,} gates exceed the {MAX_NODES:,} nodes that a circuit may have")
        for array in (self.a, self.b):
            wrong = np.flatnonzero((array < 0) | (array >= own))
            if len(wrong):
                g = int(wrong[0])
                raise ValueError(f"gate {g} is node {g + first} and reads node {array[g]}: it must be one before")
        if num_gates and self.gate.max() >= NUM_GATES:
            raise ValueError(f"gate number {self.gate.max()} is none of the {NUM_GATES} gates, 0 to {NUM_GATES - 1}")
        if not len(self.outputs):
            raise ValueError("a circuit needs outputs for its class sums to count")
        if not 0 <= self.outputs.min() <= self.outputs.max() < first + num_gates:
            raise ValueError(f"outputs name nodes outside 0 to {first + num_gates - 1}")
        if self.inverted.view(np.uint8).max() > 1:
            raise ValueError("inverted holds bytes that are neither 0 nor 1")
        if self.num_classes < 1 or len(self.outputs) % self.num_classes:
            raise ValueError(f"{len(self.outputs)} outputs cannot be divided among {self.num_classes} classes")
        if not (np.isfinite(self.tau) and self.tau > 0):
            raise ValueError(f"tau={self.tau} must be a positive number")
        if sum(layer.num_gates for layer in self.layers) != num_gates:
            raise ValueError(f"the layers hold {sum(layer.num_gates for layer in self.layers)} gates of {num_gates}")
        for layer in self.layers:
            if not re.fullmatch(r"(conv|pool|dense)_[1-9]\d{0,8}", layer.name):
                raise ValueError(f"layer {layer.name!r} must be called conv_N, pool_N or dense_N")
            numbers = (layer.num_gates, *layer.raw_histogram)
            if len(numbers) != 1 + NUM_GATES or not 0 <= min(numbers) <= max(numbers) < 2**53:
                raise ValueError(f"layer {layer.name} must have a number of gates and {NUM_GATES} counts of raw ones")
        if self.thresholds is not None:
            check_thresholds(self.thresholds, self.input_shape)
            object.__setattr__(self, "thresholds", _read_only(self.thresholds.copy()))

    @staticmethod
    def from_model(model: nn.Module, input_shape: tuple[int, ...], thresholds: Tensor | None = None) -> "Circuit":
        """The netlist of a model's discrete network, every convolution unrolled.

        Args:
            model: an `nn.Sequential` of `ConvLogicLayer`s, `Flatten`, `LogicLayer`s and a `GroupSum`, in any mode.
            input_shape: (C, H, W) of one image's bits, or (F,) where there are no convolutions.
            thresholds: (channels, T) uint8, those that `encoding.thermometer_encode` made the bits with. Of planes that
                a channel's repeated threshold makes the same, the first alone is read.

        Raises:
            ValueError: a layer that has no gates, named, or layers or thresholds that do not fit together.
        """
        input_shape = tuple(input_shape)
        levels = None if thresholds is None else thresholds.cpu().numpy()
        if levels is not None:
            check_thresholds(levels, input_shape)
        return Circuit(**unroll(model, input_shape, levels), thresholds=levels)

    @property
    def num_inputs(self) -> int:
        """F, bits of an image."""
        return prod(self.input_shape)

    @property
    def num_gates(self) -> int:
        """G, gates that this circuit holds."""
        return len(self.gate)

    @property
    def gates(self) -> Gates:
        """The arrays alone."""
        return Gates(self.a, self.b, self.gate, self.outputs, self.inverted)

    def simplify(self) -> "Circuit":
        """The same function with the fewest gates that local rules reach; see `simplify`."""
        return self._simplified

    @cached_property
    def _simplified(self) -> "Circuit":
        layer = np.repeat(np.arange(len(self.layers)), [layer.num_gates for layer in self.layers])
        gates, kept = simplify_gates(self.num_inputs, self.gates)
        held = np.bincount(layer[kept], minlength=len(self.layers))
        layers = tuple(replace(layer, num_gates=int(num)) for layer, num in zip(self.layers, held, strict=True))
        return replace(self, **gates._asdict(), layers=layers)

    @cached_property
    def counts(self) -> CircuitCounts:
        """Gates in the field's three conventions; those after simplification are of `simplify()`."""
        return count(self, self.simplify())

    def __call__(self, x: Tensor) -> Tensor:
        """(N, *input_shape) bits -> (N, K) float32 logits, those of the model in eval mode. Errors as in `sums`."""
        return self.sums(x) / self.tau

    def classes(self, x: Tensor) -> Tensor:
        """(N, *input_shape) bits -> (N,) int64; of equal sums the lowest class. Errors as in `sums`."""
        return highest_class(self.sums(x))

    def sums(self, x: Tensor) -> Tensor:
        """Ones among each class's outputs, 64 images a word.

        Args:
            x: (N, *input_shape) or (N, F); zeros and ones, uint8, bool or floating-point.

        Returns:
            (N, K) int32 on x's device; it is the CPU that computes them.

        Raises:
            ValueError: x does not fit the circuit or is not binary.
        """
        if x.shape[1:] not in (self.input_shape, (self.num_inputs,)):  # another order of as many bits is no image
            raise ValueError(
                f"the circuit expects (images, {', '.join(map(str, self.input_shape))}) or (images, {self.num_inputs}) "
                f"bits, got {tuple(x.shape)}"
            )
        return self._evaluator.sums(x.flatten(1).cpu()).to(x.device)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self)

    @cached_property
    def is_read(self) -> npt.NDArray[np.bool_]:
        """(1 + F + G,) whether a gate or a class sum reads the node."""
        is_read = np.zeros(1 + self.num_inputs + self.num_gates, np.bool_)
        for nodes in (self.a, self.b, self.outputs):
            is_read[nodes] = True
        return _read_only(is_read)

    def node_depths(self) -> npt.NDArray[np.int32]:
        """(1 + F + G,) gates on the longest path to each node."""
        first = 1 + self.num_inputs
        depths = np.zeros(first + self.num_gates, np.int32)
        start = 0
        for layer in self.layers:
            own = slice(start, start + layer.num_gates)
            a, b, here = self.a[own], self.b[own], depths[first + own.start : first + own.stop]
            for _ in range(MAX_PASSES):  # as often as the layer's trees are deep
                new = np.maximum(depths[a], depths[b]) + 1
                if np.array_equal(new, here):
                    break
                here[:] = new
            else:  # a layer of no network that is unrolled, but a file may hold one
                for node, reads in enumerate(zip(a.tolist(), b.tolist(), strict=True), first + own.start):
                    depths[node] = max(depths[read] for read in reads) + 1
            start = own.stop
        return depths

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all."""
        write_circuit(self, Path(path))

    @staticmethod
    def load(path: Path | str) -> "Circuit":
        """Read what `save` wrote.

        Raises:
            ValueError: not a circuit file, truncated or damaged; says which file and what.
            OSError: it cannot be read.
        """
        fields: dict[str, Any] = read_circuit(Path(path))
        layers = tuple(Layer(name, num, tuple(raw)) for name, num, raw in fields.pop("layers"))
        try:
            return Circuit(**fields, layers=layers)
        except ValueError as error:
            raise ValueError(f"{path} holds no sound circuit: {error}") from error


def check_thresholds(thresholds: npt.NDArray[Any], input_shape: tuple[int, ...]) -> None:
    """That they are what makes an image's bytes the bits of that shape.

    Raises:
        ValueError: they are not.
    """
    if (
        thresholds.ndim != 2
        or thresholds.dtype != np.uint8
        or len(input_shape) != 3
        or thresholds.size != input_shape[0]
    ):
        raise ValueError(
            f"thresholds {thresholds.shape} {thresholds.dtype} do not fit inputs {input_shape}: they must be "
            "(channels, T) uint8, one for each input channel"
        )


def _read_only(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    array.flags.writeable = False
    return array
