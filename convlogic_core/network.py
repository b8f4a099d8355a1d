"""Networks as a whole: the Sequential that `build_model` builds, and the fast ways through it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .native_network import NativeNetwork
from .ops import logic_forest
from .ops.backend import use_native
from .ops.op import traced
from .plain_stack import PlainStack, forest_of
from .premises import premises


class LogicNetwork(nn.Sequential):
    """Layers one after the other; on the CPU they train as a whole where they can, or dense ones run as one forest.

    Parameters, names, outputs and gradients are those of `nn.Sequential`, the last two up to rounding. What does not
    allow for that (hooks, modes, function transforms, values of another kind) goes through the layers. Limits: wiring
    changed through `.data` is not seen, and between a forward and its backward pass only changes of weights are errors.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._fast_ways = _FastWays()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_fast_ways": _FastWays(), **state})  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (B, F) -> (N, num_classes), as the layers say."""
        y: Tensor
        ways = None if traced() else self._fast_ways.of(self, x)
        if ways and ways.network and ways.network.trains_on(x):
            return ways.network.differentiable_scores(x)
        if not ways or not ways.forest or not use_native(ways.stack.implementation, x):
            y = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        conv, dense, head, flattens = ways.stack
        for block in conv:
            x = block(x)
        x = x.flatten(1) if flattens else x
        if x.ndim != 2 or x.shape[1] != dense[0].in_dim:
            raise ValueError(f"the first dense layer expects (batch, {dense[0].in_dim}), got {tuple(x.shape)}")
        coefficients = torch.cat([layer.coefficients() for layer in dense])
        group = len(ways.forest[0]) // head.k
        y = logic_forest(x, *ways.forest, coefficients, group, ways.stack.implementation) / head.tau
        return y


def plain_stack(model: nn.Module) -> PlainStack | None:
    """`PlainStack.of` a Sequential or LogicNetwork; None of any other model, subclasses included."""
    return PlainStack.of(model) if type(model) in (nn.Sequential, LogicNetwork) else None


def native_network(model: nn.Module, input_shape: tuple[int, ...]) -> NativeNetwork | None:
    """`NativeNetwork.of` the model's plain stack; None also where it is none, or its weights are not taken."""
    stack = plain_stack(model)
    network = NativeNetwork.of(stack, input_shape) if stack else None
    return network if network and network.takes_weights() else None


class _Ways(NamedTuple):
    stack: PlainStack
    forest: tuple[Tensor, Tensor] | None
    network: NativeNetwork | None


class _FastWays:
    """Those of a model and a shape of images, found again only when either was changed; a copy finds its own."""

    def __init__(self) -> None:
        self._found: tuple[object, list[Tensor], _Ways | None] = None, [], None

    def __reduce__(self) -> tuple[type["_FastWays"], tuple[()]]:
        return type(self), ()

    def of(self, model: nn.Module, x: Tensor) -> _Ways | None:
        """None where there are none: off the CPU, or where the model is no plain stack."""
        if x.device.type != "cpu":
            return None
        key = premises(model)[1:], x.shape[1:]  # not the model itself, which holds this
        found_for, _, ways = self._found  # other threads find others
        if key != found_for:
            ways = _ways(model, x.shape[1:])
            self._found = key, [*model.buffers()], ways
        return ways


def _ways(model: nn.Module, input_shape: tuple[int, ...]) -> _Ways | None:
    stack = plain_stack(model)
    if not stack:
        return None
    forest = forest_of(stack.dense)
    if forest and len(forest[0]) % stack.head.k:
        forest = None
    return _Ways(stack, forest, NativeNetwork.of(stack, input_shape))
