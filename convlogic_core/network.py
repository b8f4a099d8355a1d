"""Networks as a whole: the Sequential that `build_model` builds, and what a plain stack of layers is made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .layers import ConvLogicLayer, GroupSum, LogicLayer
from .ops import forest_wiring, logic_forest
from .ops.backend import use_native, version_of
from .ops.wiring_checks import check_dense
from .premises import has_hooks


class LogicNetwork(nn.Sequential):
    """Layers one after the other; neighbouring dense layers run as one forest on the CPU where they are one.

    Parameters, names and outputs are those of `nn.Sequential` (the outputs up to rounding).
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._forest = _CachedForest()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (B, F) -> (N, num_classes), as the layers say."""
        y: Tensor
        stack = None if torch.compiler.is_compiling() else plain_stack(self)
        wiring = stack and use_native(stack.implementation, x) and self._forest.of(stack.dense)
        if not stack or not wiring or len(wiring[0]) % stack.head.k:
            y = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        for block in stack.conv:
            x = block(x)
        x = x.flatten(1) if stack.flattens else x
        if x.ndim != 2 or x.shape[1] != stack.dense[0].in_dim:
            raise ValueError(f"the first dense layer expects (batch, {stack.dense[0].in_dim}), got {tuple(x.shape)}")
        coefficients = torch.cat([layer.coefficients() for layer in stack.dense])
        group = len(wiring[0]) // stack.head.k
        y = logic_forest(x, *wiring, coefficients, group, stack.implementation) / stack.head.tau
        return y


class PlainStack(NamedTuple):
    """The layers of a network that holds no others, in order; `Flatten` lies between conv and dense ones."""

    conv: tuple[ConvLogicLayer, ...]
    dense: tuple[LogicLayer, ...]
    head: GroupSum
    flattens: bool

    @property
    def implementation(self) -> str:
        """Of all its layers."""
        return next(iter((*self.conv, *self.dense))).implementation


def plain_stack(model: nn.Module) -> PlainStack | None:
    """The layers of a Sequential of conv blocks, Flatten, dense layers and a GroupSum, either kind possibly missing.

    None where the model is or holds anything else: other modules, subclasses, hooks, another order or implementation.
    """
    modules = list(model.children()) if type(model) in (nn.Sequential, LogicNetwork) else []
    conv = tuple(module for module in modules if type(module) is ConvLogicLayer)
    dense = tuple(module for module in modules if type(module) is LogicLayer)
    flat = [module for module in modules if type(module) is nn.Flatten]
    head = modules[-1] if modules else None
    in_order = [*conv, *flat[:1], *dense, head]
    if (
        type(head) is not GroupSum
        or len(in_order) != len(modules)
        or any(a is not b for a, b in zip(in_order, modules, strict=True))
        or (conv and not flat)
        or any(has_hooks(module) for module in (model, *modules))
        or any((layer.start_dim, layer.end_dim) != (1, -1) for layer in flat)
        or len({layer.implementation for layer in (*conv, *dense)}) != 1
    ):
        return None
    return PlainStack(conv, dense, head, bool(flat))


def forest_of(dense: Sequence[LogicLayer]) -> tuple[Tensor, Tensor] | None:
    """`ops.forest_wiring` of some dense layers; None also where a layer scales gradients on their way."""
    if any(layer.grad_factor != 1.0 for layer in dense):
        return None
    for layer in dense:
        check_dense("LogicLayer", layer.indices_0, layer.indices_1, layer.in_dim)
    return forest_wiring([(layer.indices_0, layer.indices_1) for layer in dense])


class _CachedForest:
    """The forest of a stack, worked out again only when its wiring was changed."""

    def __init__(self) -> None:
        self._key: list[tuple[float, object]] = []
        self._wiring: tuple[Tensor, Tensor] | None = None

    def of(self, dense: Sequence[LogicLayer]) -> tuple[Tensor, Tensor] | None:
        key = [
            (layer.grad_factor, number)
            for layer in dense
            for index in (layer.indices_0, layer.indices_1)
            for number in (index.data_ptr(), version_of(index))
        ]
        if key != self._key:
            self._key, self._wiring = key, forest_of(dense)
        return self._wiring
