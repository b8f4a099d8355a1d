"""ModelSpec, the description of a network (frozen, JSON), what follows from it without building, and `build_model`.

Shapes: C channels, H W image, K kernels of a block, G gates of a tree.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, NamedTuple

from torch import nn

from .layers import ConvLogicLayer, GroupSum, LogicLayer, check_conv
from .network import LogicNetwork
from .ops.output_size import window_positions
from .parametrization import check_parametrization
from .wiring import check_connections


class Strict:
    """Base of everything that is read from files: pydantic, where it reads one, refuses unknown fields."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class ConvSpec(Strict):
    """One block: logic convolution, tree and OR-pooling. See `ConvLogicLayer`."""

    out_channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    tree_depth: int = 3
    pool: int = 2
    residual_init: bool = True


@dataclass(frozen=True)
class DenseSpec(Strict):
    """One dense layer. See `LogicLayer`."""

    out_dim: int
    connections: str = "random"
    residual_init: bool = True


@dataclass(frozen=True)
class ModelSpec(Strict):
    """A logic network: blocks, then dense layers, then class sums.

    Args:
        input_shape: (C, H, W) of the binary planes, thermometer thresholds counted in C.
        conv, dense: the layers in order; either may be empty, not both.
        num_classes: must divide the last layer's outputs.
        tau: temperature of the class sums.
        parametrization: "softmax" or "iwp", for every gate.

    Raises:
        ValueError: the layers do not fit together; the message names layer, sizes and way out.
    """

    input_shape: tuple[int, int, int]
    conv: tuple[ConvSpec, ...]
    dense: tuple[DenseSpec, ...]
    num_classes: int
    tau: float
    parametrization: str = "softmax"

    def __post_init__(self) -> None:
        check_parametrization(self.parametrization)
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ValueError(f"tau={self.tau} must be a positive number")
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes} must be at least 1")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise ValueError(f"input_shape={self.input_shape} must be three positive numbers: channels, rows, columns")
        if not (self.conv or self.dense):
            raise ValueError("a model needs at least one conv block or dense layer")
        shape = self.input_shape
        for number, block in enumerate(self.conv, 1):
            shape = conv_shapes(block, shape, f"conv block {number}").pooled
        features = math.prod(shape)
        for number, layer in enumerate(self.dense, 1):
            try:
                check_connections(features, layer.out_dim, layer.connections)
            except ValueError as error:
                raise ValueError(f"dense layer {number}: {error}") from None
            features = layer.out_dim
        if features % self.num_classes:
            raise ValueError(f"the last layer's {features} outputs cannot be divided among {self.num_classes} classes")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return asdict(self)

    @property
    def flat_features(self) -> int:
        """Features that enter the dense layers."""
        shape = self.input_shape
        for block in self.conv:
            shape = conv_shapes(block, shape).pooled
        return math.prod(shape)


class ConvShapes(NamedTuple):
    """(K, H, W) before and after pooling."""

    full: tuple[int, int, int]
    pooled: tuple[int, int, int]


def conv_shapes(block: ConvSpec, input_shape: tuple[int, int, int], name: str = "conv block") -> ConvShapes:
    """Output shapes of a block on a (C, H, W) input.

    Raises:
        ValueError: the block cannot be built on C channels, or the image is smaller than the kernel or than the
            pooling window.
    """
    channels, rows, columns = input_shape
    check_conv(
        channels,
        block.out_channels,
        block.groups,
        (block.kernel, block.kernel),
        (block.stride, block.stride),
        (block.padding, block.padding),
        block.tree_depth,
        block.pool,
        name,
    )
    height, width = window_positions((rows, columns), *((n, n) for n in (block.kernel, block.stride, block.padding)))
    if min(height, width) < block.pool:
        raise ValueError(
            f"{name}: a {rows}x{columns} image with padding {block.padding} is too small for kernel {block.kernel} and "
            f"{block.pool}x{block.pool} pooling; use a smaller kernel, more padding or fewer blocks"
        )
    pooled = (block.out_channels, height // block.pool, width // block.pool)
    return ConvShapes((block.out_channels, height, width), pooled)


def raw_gates(spec: ModelSpec) -> int:
    """Gates of the unrolled network before any simplification, pooling ORs included; class sums are not gates.

    Positions that pooling floors away are never computed and not counted. MNIST presets: 12,563 * k,
    CIFAR-10 presets: 30,016 * k.
    """
    total = 0
    shape = spec.input_shape
    for block in spec.conv:
        shape = conv_shapes(block, shape).pooled
        window = block.pool**2
        gates_a_window = window * (2**block.tree_depth - 1) + (window - 1)
        total += math.prod(shape) * gates_a_window
    return total + sum(layer.out_dim for layer in spec.dense)


def num_parameters(spec: ModelSpec) -> int:
    """Trainable logits."""
    gates: int = sum(block.out_channels * (2**block.tree_depth - 1) for block in spec.conv)
    gates += sum(layer.out_dim for layer in spec.dense)
    return gates * (16 if spec.parametrization == "softmax" else 4)


def build_model(spec: ModelSpec, seed: int, implementation: str | None = None) -> LogicNetwork:
    """The network of a spec; wiring and initial weights follow from the seed alone.

    (N, C, H, W) float in [0, 1] -> (N, num_classes) class scores.
    """
    modules: list[nn.Module] = []
    channels = spec.input_shape[0]
    for block in spec.conv:
        modules.append(
            ConvLogicLayer(
                channels,
                block.out_channels,
                stride=block.stride,
                padding=block.padding,
                kernel=block.kernel,
                groups=block.groups,
                residual_init=block.residual_init,
                implementation=implementation,
                tree_depth=block.tree_depth,
                pool=block.pool,
                parametrization=spec.parametrization,
                seed=_layer_seed(seed, len(modules)),
            )
        )
        channels = block.out_channels
    modules.append(nn.Flatten())
    features = spec.flat_features
    for layer in spec.dense:
        modules.append(
            LogicLayer(
                features,
                layer.out_dim,
                implementation=implementation,
                connections=layer.connections,
                residual_init=layer.residual_init,
                parametrization=spec.parametrization,
                seed=_layer_seed(seed, len(modules)),
            )
        )
        features = layer.out_dim
    modules.append(GroupSum(spec.num_classes, spec.tau))
    return LogicNetwork(*modules)


def _layer_seed(seed: int, position: int) -> int:
    return (seed * 1_000_003 + position) % 2**63


def _mnist_preset(k: int, tau: float) -> ModelSpec:
    return ModelSpec(
        input_shape=(1, 28, 28),
        conv=(ConvSpec(k, kernel=5, padding=0), ConvSpec(3 * k), ConvSpec(9 * k)),
        dense=(DenseSpec(1280 * k), DenseSpec(640 * k), DenseSpec(320 * k)),
        num_classes=10,
        tau=tau,
    )


def _cifar10_preset(k: int, tau: float, num_thresholds: int) -> ModelSpec:
    return ModelSpec(
        input_shape=(3 * num_thresholds, 32, 32),
        conv=(ConvSpec(k), ConvSpec(4 * k), ConvSpec(16 * k), ConvSpec(32 * k)),
        dense=(DenseSpec(1280 * k), DenseSpec(640 * k), DenseSpec(320 * k)),
        num_classes=10,
        tau=tau,
    )


# Petersen et al. 2024, arXiv 2411.04732, as lkorinek/convlogic publishes them.
PRESETS: Final[dict[str, ModelSpec]] = {
    "mnist_s": _mnist_preset(16, 6.5),
    "mnist_m": _mnist_preset(64, 28.0),
    "mnist_l": _mnist_preset(256, 35.0),
    "cifar10_s": _cifar10_preset(32, 20.0, num_thresholds=3),
    "cifar10_m": _cifar10_preset(256, 40.0, num_thresholds=3),
    "cifar10_b": _cifar10_preset(512, 280.0, num_thresholds=31),
}
