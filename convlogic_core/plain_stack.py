"""What a plain stack of logic layers is made of, and the forest that its dense layers are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .layers import ConvLogicLayer, GroupSum, LogicLayer
from .ops import forest_wiring
from .ops.backend import is_like
from .ops.wiring_checks import check_dense
from .premises import has_hooks, is_plain


class PlainStack(NamedTuple):
    """The layers of a network that holds no others, in order; `Flatten` lies between conv and dense ones."""

    conv: tuple[ConvLogicLayer, ...]
    dense: tuple[LogicLayer, ...]
    head: GroupSum
    flattens: bool

    @classmethod
    def of(cls, model: nn.Module) -> "PlainStack | None":
        """Of conv blocks, Flatten, dense layers and a GroupSum, either kind possibly missing.

        None where the model holds anything else: other modules, one of them twice, subclasses, hooks, methods or values
        of another kind among a layer's attributes, another order or implementation.
        """
        modules: list[Any] = list(model._modules.values())
        conv = tuple(module for module in modules if type(module) is ConvLogicLayer)
        dense = tuple(module for module in modules if type(module) is LogicLayer)
        flat = [module for module in modules if type(module) is nn.Flatten]
        head = modules[-1] if modules else None
        in_order = [*conv, *flat[:1], *dense, head]
        if (
            type(head) is not GroupSum
            or len(in_order) != len(modules)
            or any(a is not b for a, b in zip(in_order, modules, strict=True))
            or len(set(modules)) != len(modules)
            or (conv and not flat)
            or "forward" in vars(model)
            or any(has_hooks(module) for module in (model, *modules))
            or not all(is_plain(module) for module in modules)
            or any((layer.start_dim, layer.end_dim) != (1, -1) for layer in flat)
            or len({layer.implementation for layer in (*conv, *dense)}) != 1
        ):
            return None
        return cls(conv, dense, head, bool(flat))

    @property
    def layers(self) -> tuple[ConvLogicLayer | LogicLayer, ...]:
        """Those of gates."""
        return (*self.conv, *self.dense)

    @property
    def implementation(self) -> str:
        """Of all its layers."""
        return self.layers[0].implementation


def forest_of(dense: Sequence[LogicLayer]) -> tuple[Tensor, Tensor] | None:
    """`ops.forest_wiring` of some dense layers; None also of indices of another kind, or if gradients are scaled."""
    if any(
        layer.grad_factor != 1.0
        or layer.indices_0.ndim != 1
        or not all(
            is_like(indices, torch.int64, layer.indices_0.shape) for indices in (layer.indices_0, layer.indices_1)
        )
        for layer in dense
    ):
        return None
    for layer in dense:
        check_dense("LogicLayer", layer.indices_0, layer.indices_1, layer.in_dim)
    return forest_wiring([(layer.indices_0, layer.indices_1) for layer in dense])
