"""From the logits of gates to their four coefficients: the soft mixture, y = c0 + c1*a + c2*b + c3*a*b.

Shape letters: P logits a gate, 16 (softmax over the gates) or 4 (a sigmoid for each row of the truth table).
"""

from typing import Any

import torch

from ..gates import NUM_GATES, coefficients_of, coefficients_of_row
from . import cuda
from .backend import native, use_native
from .op import Op


def reference_gate_coefficients(logits: torch.Tensor) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `gate_coefficients`."""
    if logits.shape[-1] == NUM_GATES:
        # made where the logits lie: a copy of GATE_TABLE to a GPU cannot be captured in a CUDA graph
        table = coefficients_of(torch.arange(NUM_GATES, device=logits.device))
        return logits.softmax(-1) @ table.to(logits.dtype)
    return torch.stack(coefficients_of_row(*logits.sigmoid().unbind(-1)), -1)


def gate_coefficients(logits: torch.Tensor, implementation: str = "auto") -> torch.Tensor:
    """The coefficients of soft gates; differentiable.

    Args:
        logits: (..., P), floating-point.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (..., 4), contiguous.

    Raises:
        ValueError: neither 16 nor 4 logits a gate.
    """
    if logits.ndim < 1 or logits.shape[-1] not in (16, 4) or not logits.is_floating_point():
        raise ValueError(
            f"gate_coefficients needs floating-point logits (..., 16) or (..., 4), got {logits.dtype} "
            f"{tuple(logits.shape)}"
        )
    if not use_native(implementation, logits, cuda_dtypes=(torch.float32,)):
        return reference_gate_coefficients(logits)
    coefficients: torch.Tensor = _forward(logits)
    return coefficients


def _cpu_forward(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.contiguous()
    coefficients = logits.new_empty((*logits.shape[:-1], 4))
    native().gate_coefficients_forward(logits=logits.data_ptr(), coefficients=coefficients.data_ptr(), **_sizes(logits))
    return coefficients


def _fake_forward(logits: torch.Tensor) -> torch.Tensor:
    return logits.new_empty((*logits.shape[:-1], 4))


def _cpu_backward(grad_coefficients: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    _check_unchanged(grad_coefficients, logits)
    grad_coefficients, logits = grad_coefficients.contiguous(), logits.contiguous()
    grad_logits = torch.empty_like(logits)
    native().gate_coefficients_backward(
        logits=logits.data_ptr(),
        grad_coefficients=grad_coefficients.data_ptr(),
        grad_logits=grad_logits.data_ptr(),
        **_sizes(logits),
    )
    return grad_logits


def _cuda_backward(grad_coefficients: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    _check_unchanged(grad_coefficients, logits)
    return cuda.cuda_coefficients_backward(grad_coefficients, logits)


def _check_unchanged(grad_coefficients: torch.Tensor, logits: torch.Tensor) -> None:
    """`module.half()` and `.data` change saved logits and leave no trace in their version."""
    fits = logits.shape[-1:] in ((16,), (4,)) and grad_coefficients.shape == (*logits.shape[:-1], 4)
    if not fits or grad_coefficients.dtype != logits.dtype:
        raise ValueError(
            f"gate_coefficients was given logits of {tuple(grad_coefficients.shape[:-1])} gates, "
            f"{grad_coefficients.dtype}; at its backward pass they are {tuple(logits.shape)} of {logits.dtype}"
        )


def _fake_backward(grad_coefficients: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _sizes(logits: torch.Tensor) -> dict[str, int]:
    num_logits = logits.shape[-1]
    return {
        "gates": logits.numel() // num_logits,
        "num_logits": num_logits,
        "itemsize": logits.element_size(),
        "threads": torch.get_num_threads(),
    }


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad_coefficients: torch.Tensor) -> torch.Tensor:
    grad_logits: torch.Tensor = _backward(grad_coefficients, *ctx.saved_tensors)
    return grad_logits


_backward = Op("gate_coefficients_backward", _cpu_backward, _fake_backward, _cuda_backward)
_forward = Op(
    "gate_coefficients", _cpu_forward, _fake_forward, cuda.cuda_coefficients_forward, _setup_context, _autograd
)
