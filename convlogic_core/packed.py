"""Discrete evaluation of a whole network on packed bits, 64 images a word: what measures accuracy every epoch.

Shape letters: N images, C channels, H X image rows and columns, F features, W words.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import ConvLogicLayer, GroupSum, LogicLayer
from .network import plain_stack
from .ops import highest_class, pack_bits, packed_class_sums
from .ops.backend import use_native
from .ops.output_size import tree_output_size
from .ops.packed import dense_words, tree_words
from .ops.packed_native import PackedStack
from .plain_stack import PlainStack

_LAYERWISE_IMAGES = 4096  # at a time where there are no native kernels: bounds the memory


def is_packable(model: nn.Module) -> bool:
    """Whether `packed_predict` takes this model in its present mode."""
    try:
        _discrete_stack(model)
    except ValueError:
        return False
    return True


def packed_predict(model: nn.Module, x: Tensor) -> Tensor:
    """The class of each image, (N,) int64; of equal sums the lowest class. Arguments and errors as in `packed_sums`."""
    return highest_class(packed_sums(model, x))


def packed_sums(model: nn.Module, x: Tensor) -> Tensor:
    """Ones among each class's outputs: divided by tau, exactly the scores that the model itself computes.

    Args:
        model: an `nn.Sequential` of `ConvLogicLayer`s, `Flatten`, `LogicLayer`s and a `GroupSum`, as `build_model`
            makes it, in eval mode and not within `soft_evaluation`. Either kind of layer may be missing.
        x: (N, C, H, X), or (N, ...) of F values an image where there are no convolutions; zeros and ones, uint8, bool
            or floating-point, on the device of the model.

    Returns:
        (N, num_classes) int32.

    Raises:
        ValueError: another kind of model or mode, or x does not fit the model or is not binary.
    """
    conv, dense, head, _ = _discrete_stack(model)
    if conv and (x.ndim != 4 or x.shape[1] != conv[0].in_channels):
        raise ValueError(f"the model expects (batch, {conv[0].in_channels}, H, W), got {tuple(x.shape)}")
    implementation = "python" if any(layer.implementation == "python" for layer in (*conv, *dense)) else "auto"
    if use_native(implementation, x.new_empty(0, dtype=torch.int64), (torch.int64,)):
        return _depth_first(conv, dense, x.shape[1:]).class_sums(pack_bits(x), head.k, len(x))
    parts = x.split(_LAYERWISE_IMAGES)
    return torch.cat([_layer_by_layer(conv, dense, head, part, implementation) for part in parts])


def _discrete_stack(model: nn.Module) -> PlainStack:
    stack = plain_stack(model)
    if stack is None:
        raise ValueError(
            "packed evaluation takes an nn.Sequential of ConvLogicLayers, Flatten, LogicLayers and a GroupSum, "
            f"got {type(model).__name__}({', '.join(type(module).__name__ for module in model.children())}): "
            "call the model"
        )
    if any(layer.training or layer.soft_in_eval for layer in (*stack.conv, *stack.dense)):
        raise ValueError("packed evaluation is of discrete networks: call model.eval() and leave soft_evaluation")
    return stack


def _depth_first(conv: Sequence[ConvLogicLayer], dense: Sequence[LogicLayer], shape: Sequence[int]) -> PackedStack:
    """The native network of all layers."""
    stack = PackedStack(shape)
    for block in conv:
        geometry = (block.kernel, block.stride, block.padding, block.pool)
        size = tree_output_size(stack.shape[1:], *geometry)
        _check_inputs(block, block.in_channels, stack.shape[0])
        stack.add_tree(block.selection, block.gates(), *geometry, size)
    for layer in dense:
        _check_inputs(layer, layer.in_dim, math.prod(stack.shape))
        stack.add_dense(layer.indices_0, layer.indices_1, layer.gates())
    return stack


def _layer_by_layer(
    conv: Sequence[ConvLogicLayer], dense: Sequence[LogicLayer], head: GroupSum, x: Tensor, implementation: str
) -> Tensor:
    words = pack_bits(x, implementation)
    for block in conv:
        _check_inputs(block, block.in_channels, len(words))
        geometry = (block.kernel, block.stride, block.padding, block.pool)
        words = tree_words(words, block.selection, block.gates(), *geometry, implementation)
    words = words.flatten(0, -2)
    for layer in dense:
        _check_inputs(layer, layer.in_dim, len(words))
        words = dense_words(words, layer.indices_0, layer.indices_1, layer.gates(), implementation)
    return packed_class_sums(words, head.k, len(x), implementation)


def _check_inputs(layer: nn.Module, expected: int, given: int) -> None:
    if expected != given:
        raise ValueError(f"a {type(layer).__name__} of {expected} inputs was given {given}: the model does not fit x")
