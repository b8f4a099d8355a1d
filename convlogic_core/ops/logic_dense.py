"""A layer of two-input gates over features: y[b, o] = c0 + c1*a + c2*b + c3*a*b.

Shape letters: B batch, F input features, O gates.
"""

from typing import Any

import torch

from . import cuda
from .backend import CUDA_DTYPES, batch_innermost_empty, check_tensors, use_native
from .logic_forest import native_forest_backward, native_forest_forward, new_native_wiring
from .op import Op
from .wiring_checks import check_dense, prepared


def reference_logic_dense(
    x: torch.Tensor, indices_0: torch.Tensor, indices_1: torch.Tensor, coefficients: torch.Tensor
) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `logic_dense`."""
    values = x.to(coefficients.dtype)
    a, b = values.index_select(1, indices_0), values.index_select(1, indices_1)
    c0, c1, c2, c3 = coefficients.unbind(-1)
    return (c0 + c1 * a + c2 * b + c3 * (a * b)).to(x.dtype)


def logic_dense(
    x: torch.Tensor,
    indices_0: torch.Tensor,
    indices_1: torch.Tensor,
    coefficients: torch.Tensor,
    implementation: str = "auto",
) -> torch.Tensor:
    """Evaluate O gates, gate o on the features indices_0[o] and indices_1[o].

    Args:
        x: (B, F), any strides; batch-innermost (strides (1, B)) avoids a copy.
        indices_0: (O,) int64, the feature that is a.
        indices_1: (O,) int64, the feature that is b.
        coefficients: (O, 4), columns c0..c3, the dtype of x; for a bfloat16 x also float32, in which all is computed.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (B, O); batch-innermost from the native kernel.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or an index outside [0, F).
    """
    check_tensors("logic_dense", x, 2, coefficients)
    num_gates = coefficients.shape[0]
    for indices in (indices_0, indices_1):
        if indices.shape != (num_gates,) or indices.dtype != torch.int64 or indices.device != x.device:
            raise ValueError(
                f"logic_dense needs indices of shape ({num_gates},), one a row of coefficients, int64, on {x.device}; "
                f"got {tuple(indices.shape)}, {indices.dtype}, on {indices.device}"
            )
    if not use_native(implementation, x, cuda_dtypes=CUDA_DTYPES):
        check_dense("logic_dense", indices_0, indices_1, x.shape[1])
        return reference_logic_dense(x, indices_0, indices_1, coefficients)
    if x.is_cuda:
        coefficients = coefficients.float()
    y: torch.Tensor = _forward(x, indices_0, indices_1, coefficients)
    return y


def _cpu_forward(
    x: torch.Tensor, indices_0: torch.Tensor, indices_1: torch.Tensor, coefficients: torch.Tensor
) -> torch.Tensor:
    return native_forest_forward(x, _native_wiring(x, indices_0, indices_1), coefficients)


def _native_wiring(x: torch.Tensor, indices_0: torch.Tensor, indices_1: torch.Tensor) -> Any:
    def prepare() -> Any:
        check_dense("logic_dense", indices_0, indices_1, x.shape[1])
        return new_native_wiring(torch.stack((indices_0, indices_1), 1), None, x.shape[1])

    return prepared((indices_0, indices_1), ("dense", x.shape[1]), prepare)


def _fake_forward(
    x: torch.Tensor, indices_0: torch.Tensor, indices_1: torch.Tensor, coefficients: torch.Tensor
) -> torch.Tensor:
    return batch_innermost_empty(x, coefficients.shape[0])


def _cpu_backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    indices_0: torch.Tensor,
    indices_1: torch.Tensor,
    coefficients: torch.Tensor,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and of the coefficients; the first is empty, (0,), where nobody needs it."""
    return native_forest_backward(grad_y, x, _native_wiring(x, indices_0, indices_1), coefficients, needs_grad_x)


def _fake_backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    indices_0: torch.Tensor,
    indices_1: torch.Tensor,
    coefficients: torch.Tensor,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_x = batch_innermost_empty(x, x.shape[1]) if needs_grad_x else x.new_empty(0)
    return grad_x, coefficients.new_empty(coefficients.shape)


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs_grad_x = ctx.needs_input_grad[0]
    grad_x, grad_coefficients = _backward(grad_y, *ctx.saved_tensors, needs_grad_x)
    return grad_x if needs_grad_x else None, None, None, grad_coefficients


_backward = Op("logic_dense_backward", _cpu_backward, _fake_backward, cuda.dense_backward)
_forward = Op("logic_dense", _cpu_forward, _fake_forward, cuda.dense_forward, _setup_context, _autograd)
