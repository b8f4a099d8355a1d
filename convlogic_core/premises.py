"""What a prepared training step takes for granted of its model: asked before every step, so it has to be quick."""

from typing import Final

import torch.nn.modules.module as all_modules
from torch import nn

from .ops.backend import version_of

_PLAIN: Final = (int, float, str, tuple, type(None))
# what all modules have, whether they train (steps see to that), and a mode of evaluation
_NO_PREMISE: Final = frozenset((*vars(nn.Module()), "soft_in_eval"))

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS: Final = [getattr(all_modules, f"_global{name}") for name in _HOOKS]


def premises(model: nn.Module) -> list[object]:
    """Equal for as long as nothing but the values of weights has changed.

    That is: modules and their attributes (of those that are not plain the type alone), whether there are hooks,
    whether parameters are trained, and which buffers there are, as wiring is, where they lie, and their versions. It
    holds modules, not buffers: whoever keeps it keeps those, or another may come to lie where one has lain.
    """
    found: list[object] = []
    for module in model.modules():
        attributes = vars(module)
        found += (module, has_hooks(module), *attributes["_modules"].values())  # `modules` names none twice
        found += [
            value if isinstance(value, _PLAIN) else type(value)
            for name, value in attributes.items()
            if name not in _NO_PREMISE
        ]
        for parameter in attributes["_parameters"].values():
            if parameter is not None:
                found.append(parameter.requires_grad)
        for buffer in attributes["_buffers"].values():
            if buffer is not None:
                found += (id(buffer), buffer.data_ptr(), version_of(buffer))
    return found


def is_plain(module: nn.Module) -> bool:
    """Whether `premises` see each change of its attributes, a temperature aside: replaced methods are not plain."""
    return all(
        isinstance(value, _PLAIN) for name, value in vars(module).items() if name not in _NO_PREMISE and name != "tau"
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether Python is to run within this module's forward or backward pass; its children are not asked."""
    attributes = vars(module)
    if any(_GLOBAL_HOOKS):
        return True
    for name in _HOOKS:
        if attributes[name]:
            return True
    for parameter in attributes["_parameters"].values():
        if parameter is not None and (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
            return True
    return False
