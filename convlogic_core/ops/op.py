"""An op and its gradient: registered with torch, whose dispatcher takes 30 us of Python a call, and called directly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Op:
    """Where something follows operations (see `traced`, or tensors of another kind) torch's dispatcher is asked.

    Args:
        name: of the op in torch.ops.convlogic; its schema is read from the annotations of `cpu`.
        cpu, cuda: the kernels.
        fake: gives empty outputs.
        setup_context, gradient: as of an autograd function; without them the op is not differentiable.
    """

    def __init__(
        self,
        name: str,
        cpu: Callable[..., Any],
        fake: Callable[..., Any],
        cuda: Callable[..., Any] | None = None,
        setup_context: Callable[..., None] | None = None,
        gradient: Callable[..., Any] | None = None,
    ) -> None:
        op = torch.library.custom_op(f"convlogic::{name}", cpu, mutates_args=(), device_types="cpu")
        op.register_fake(fake)
        if cuda:
            op.register_kernel("cuda")(cuda)
        if gradient:
            op.register_autograd(gradient, setup_context=setup_context)
        self._dispatched = getattr(torch.ops.convlogic, name).default
        self._kernels = {"cpu": cpu, "cuda": cuda}
        self._direct = _function(self._run, setup_context, gradient) if gradient and setup_context else self._run

    def __call__(self, *inputs: Any) -> Any:
        foreign = any(isinstance(value, Tensor) and type(value) not in (Tensor, Parameter) for value in inputs)
        return self._dispatched(*inputs) if foreign or traced() else self._direct(*inputs)

    def _run(self, *inputs: Any) -> Any:
        kernel = self._kernels[inputs[0].device.type]
        assert kernel is not None
        return kernel(*inputs)


def _function(
    run: Callable[..., Any], setup_context: Callable[..., None], gradient: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(ctx: Any, *inputs: Any) -> Any:  # were setup_context a method, torch would bind inputs by name
        output = run(*inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(gradient))}
    direct: Any = type("Direct", (torch.autograd.Function,), methods)
    apply: Callable[..., Any] = direct.apply
    return apply


def traced() -> bool:
    """Whether something follows each operation: a compiler, a tracer, a mode, a function transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    )
