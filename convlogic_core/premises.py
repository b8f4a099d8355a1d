"""What a prepared training step takes for granted of its model: asked before every step, so it has to be quick."""

from typing import Final

from torch import nn

from .ops.backend import version_of

_PLAIN: Final = frozenset((bool, int, float, str, tuple, type(None)))
# what all modules have, whether they train (steps see to that), and a mode of evaluation
_NO_PREMISE: Final = frozenset((*vars(nn.Module()), "soft_in_eval"))

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def premises(model: nn.Module) -> list[object]:
    """Equal for as long as nothing but the values of weights has changed.

    That is: modules and their plain attributes, whether there are hooks, where parameters and buffers lie and whether
    they are trained, and the versions of buffers, as wiring is. It holds modules, not tensors: whoever keeps it keeps
    those, or another may come to lie where one has lain.
    """
    found: list[object] = []
    for module in model.modules():
        attributes = vars(module)
        found += (module, has_hooks(module))
        found += [value for name, value in attributes.items() if name not in _NO_PREMISE and type(value) in _PLAIN]
        for parameter in attributes["_parameters"].values():
            if parameter is not None:
                found += (parameter.data_ptr(), parameter.requires_grad)
        for buffer in attributes["_buffers"].values():
            if buffer is not None:
                found += (buffer.data_ptr(), version_of(buffer))
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether Python is to run within this module's forward or backward pass; its children are not asked."""
    attributes = vars(module)
    for name in _HOOKS:
        if attributes[name]:
            return True
    for parameter in attributes["_parameters"].values():
        if parameter is not None and (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
            return True
    return False
