"""A convolution whose kernels are binary trees of two-input gates, followed by OR-pooling.

Shape letters: N batch, C channels, H W input size, K kernels, L = 2**depth leaves, G = L - 1 gates, H' W' output size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import max_pool2d, pad

from . import cuda
from .backend import CUDA_DTYPES, batch_innermost, batch_innermost_empty, check_tensors, native, use_native
from .op import Op
from .output_size import tree_output_size
from .wiring_checks import check_selection


def reference_logic_tree(
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    pool: int = 2,
) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `logic_tree`."""
    planes = pad(x.to(coefficients.dtype), (padding[1], padding[1], padding[0], padding[0]))
    height, width = planes.shape[2:]
    rows = torch.arange(0, height - kernel[0] + 1, stride[0], device=x.device)
    columns = torch.arange(0, width - kernel[1] + 1, stride[1], device=x.device)
    windows = rows[:, None] * width + columns  # (H', W') before pooling
    channel, row, column = selection >> 16 & 65535, selection >> 8 & 255, selection & 255
    leaves = (channel * height + row) * width + column
    index = leaves[:, :, None, None] + windows
    values = planes.flatten(1).index_select(1, index.flatten()).unflatten(1, index.shape)  # (N, K, L, H', W')
    for level in coefficients.split(
        [values.shape[2] >> depth for depth in range(1, selection.shape[1].bit_length())], 1
    ):
        a, b = values[:, :, 0::2], values[:, :, 1::2]
        c0, c1, c2, c3 = level[..., None, None].unbind(2)
        values = c0 + c1 * a + c2 * b + c3 * (a * b)
    return max_pool2d(values.squeeze(2), pool).to(x.dtype)


def logic_tree(
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    pool: int = 2,
    implementation: str = "auto",
) -> torch.Tensor:
    """Evaluate K gate trees at every window position, then take the maximum of each pool x pool block.

    Args:
        x: (N, C, H, W), any strides; batch-innermost (N has stride 1) avoids a copy.
        selection: (K, L) int32, channel << 16 | row << 8 | column of each leaf within the window; L = 2, 4, 8 or 16.
        coefficients: (K, G, 4), gates level by level from the leaves, the dtype of x; for a bfloat16 x also float32,
            in which all is computed.
        kernel: height and width of the window.
        stride: vertical and horizontal step of the window.
        padding: rows and columns of zeros added on each side.
        pool: 1 or 2; odd sizes floor, the gradient goes to the first maximum in row-major order.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (N, K, H', W'); batch-innermost from the native kernel.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, the image is smaller than the kernel, or a leaf
            outside its window or the channels of x.
    """
    check_tensors("logic_tree", x, 4, coefficients)
    num_kernels, num_gates, _ = coefficients.shape
    if num_gates not in (1, 3, 7, 15):
        raise ValueError(f"logic_tree needs trees of 1, 3, 7 or 15 gates (depth 1 to 4), got {num_gates}")
    shape = (num_kernels, num_gates + 1)
    if selection.shape != shape or selection.dtype != torch.int32 or selection.device != x.device:
        raise ValueError(
            f"logic_tree needs a selection of shape {shape}, leaves of each kernel, int32, on {x.device}; "
            f"got {tuple(selection.shape)}, {selection.dtype}, on {selection.device}"
        )
    tree_output_size(x.shape[2:], kernel, stride, padding, pool)
    if not use_native(implementation, x, cuda_dtypes=CUDA_DTYPES):
        check_selection("logic_tree", selection, x.shape[1], kernel)
        return reference_logic_tree(x, selection, coefficients, kernel, stride, padding, pool)
    if x.is_cuda:
        coefficients = coefficients.float()
    y: torch.Tensor
    y, _ = _forward(x, selection, coefficients, kernel, stride, padding, pool)
    return y


def _cpu_forward(
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled output, and which position of its pool block each value came from (empty without pooling)."""
    check_selection("logic_tree", selection, x.shape[1], (kernel[0], kernel[1]))
    x, selection, coefficients = batch_innermost(x), selection.contiguous(), coefficients.contiguous()
    y, winner = _empty_outputs(x, coefficients, kernel, stride, padding, pool)
    native().logic_tree_forward(
        x=x.data_ptr(),
        selection=selection.data_ptr(),
        coefficients=coefficients.data_ptr(),
        y=y.data_ptr(),
        winner=winner.data_ptr(),
        **_geometry(x, coefficients, kernel, stride, padding, pool),
    )
    return y, winner


def _cuda_forward(
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    y, winner = _empty_outputs(x, coefficients, kernel, stride, padding, pool)
    cuda.tree_forward(x, selection, coefficients, y, winner, kernel, stride, padding, pool)
    return y, winner


def _fake_forward(
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_outputs(x, coefficients, kernel, stride, padding, pool)


def _empty_outputs(
    x: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = batch_innermost_empty(x, coefficients.shape[0], *tree_output_size(x.shape[2:], kernel, stride, padding, pool))
    return y, torch.empty_like(y, dtype=torch.uint8) if pool > 1 else x.new_empty(0, dtype=torch.uint8)


def _geometry(
    x: torch.Tensor,
    coefficients: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> dict[str, Any]:
    """The sizes that the native kernels take, by name."""
    return {
        "batch": x.shape[0],
        "channels": x.shape[1],
        "image": (x.shape[2], x.shape[3]),
        "kernels": coefficients.shape[0],
        "gates": coefficients.shape[1],
        "kernel": tuple(kernel),
        "stride": tuple(stride),
        "padding": tuple(padding),
        "pool": pool,
        "itemsize": x.element_size(),
        "threads": torch.get_num_threads(),
    }


def _cpu_backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    winner: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and of the coefficients; the first is empty, (0,), where nobody needs it."""
    # hooks of saved tensors may give them back in another memory format
    grad_y, x, winner = batch_innermost(grad_y), batch_innermost(x), batch_innermost(winner)
    selection, coefficients = selection.contiguous(), coefficients.contiguous()
    grad_x = batch_innermost_empty(x, *x.shape[1:]) if needs_grad_x else x.new_empty(0)
    grad_coefficients = torch.empty_like(coefficients)
    partials = x.new_empty(native().num_tree_blocks(x.shape[0]), *coefficients.shape)
    native().logic_tree_backward(
        grad_y=grad_y.data_ptr(),
        x=x.data_ptr(),
        selection=selection.data_ptr(),
        coefficients=coefficients.data_ptr(),
        winner=winner.data_ptr(),
        grad_x=grad_x.data_ptr() if needs_grad_x else 0,
        grad_coefficients=grad_coefficients.data_ptr(),
        partials=partials.data_ptr(),
        **_geometry(x, coefficients, kernel, stride, padding, pool),
    )
    return grad_x, grad_coefficients


def _fake_backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    selection: torch.Tensor,
    coefficients: torch.Tensor,
    winner: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_x = batch_innermost_empty(x, *x.shape[1:]) if needs_grad_x else x.new_empty(0)
    return grad_x, coefficients.new_empty(coefficients.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, selection, coefficients, *ctx.geometry = inputs
    _, winner = output
    ctx.mark_non_differentiable(winner)
    ctx.set_materialize_grads(False)  # no zeros for the winners
    ctx.save_for_backward(x, selection, coefficients, winner)


def _autograd(ctx: Any, grad_y: torch.Tensor | None, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 7
    needs_grad_x = ctx.needs_input_grad[0]
    grad_x, grad_coefficients = _backward(grad_y, *ctx.saved_tensors, *ctx.geometry, needs_grad_x)
    return grad_x if needs_grad_x else None, None, grad_coefficients, None, None, None, None


_backward = Op("logic_tree_backward", _cpu_backward, _fake_backward, cuda.tree_backward)
_forward = Op("logic_tree", _cpu_forward, _fake_forward, _cuda_forward, _setup_context, _autograd)
