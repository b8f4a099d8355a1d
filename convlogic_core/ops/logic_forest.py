"""Trees of two-input gates over features: what a stack of dense layers is whose every output feeds one gate.

With permutation wiring and halving widths, `depth` dense layers are one forest over the inputs of the first; the
values between the layers then stay in registers.
Shape letters: B batch, F features, K trees, L = 2**depth leaves, G = L - 1 gates a tree.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from .backend import batch_innermost, batch_innermost_empty, check_tensors, native, use_native
from .op import Op
from .wiring_checks import check_indices, check_rows, prepared


def reference_logic_forest(
    x: torch.Tensor, leaves: torch.Tensor, gate_rows: torch.Tensor, coefficients: torch.Tensor, group: int = 1
) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `logic_forest`."""
    values: torch.Tensor = x.index_select(1, leaves.flatten()).unflatten(1, leaves.shape)  # (B, K, L)
    level_sizes = [leaves.shape[1] >> level for level in range(1, leaves.shape[1].bit_length())]
    for rows in gate_rows.split(level_sizes, 1):
        a, b = values[:, :, 0::2], values[:, :, 1::2]
        c0, c1, c2, c3 = coefficients[rows].unbind(-1)
        values = c0 + c1 * a + c2 * b + c3 * (a * b)
    y: torch.Tensor = values.squeeze(2).unflatten(1, (-1, group)).sum(2)
    return y


def logic_forest(
    x: torch.Tensor,
    leaves: torch.Tensor,
    gate_rows: torch.Tensor,
    coefficients: torch.Tensor,
    group: int = 1,
    implementation: str = "auto",
) -> torch.Tensor:
    """Evaluate K trees of gates, leaf l of tree k being feature leaves[k, l], and sum the outputs of each group.

    Args:
        x: (B, F), any strides; batch-innermost (strides (1, B)) avoids a copy.
        leaves: (K, L) int64; L = 2, 4, 8 or 16.
        gate_rows: (K, G) int64, the row of coefficients of each gate, level by level from the leaves; every row once.
        coefficients: (K * G, 4), columns c0..c3, the dtype of x.
        group: consecutive trees that are summed, as class sums are; divides K.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (B, K / group); batch-innermost from the native kernel.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, a leaf outside [0, F), or a row that is missing or
            named twice.
    """
    check_tensors("logic_forest", x, 2, coefficients)
    num_gates = gate_rows.shape[-1]
    if num_gates not in (1, 3, 7, 15) or gate_rows.numel() != len(coefficients):
        raise ValueError(
            f"logic_forest needs gate_rows of shape (trees, 1, 3, 7 or 15) with one entry a row of coefficients, "
            f"got {tuple(gate_rows.shape)} for {len(coefficients)} rows"
        )
    shape = (len(gate_rows), num_gates + 1)
    for name, wiring in (("leaves", leaves), ("gate_rows", gate_rows)):
        if wiring.dtype != torch.int64 or wiring.device != x.device or leaves.shape != shape:
            raise ValueError(
                f"logic_forest needs leaves of shape {shape} for these gate_rows, both int64 on {x.device}; "
                f"got {name} of {tuple(wiring.shape)}, {wiring.dtype}, on {wiring.device}"
            )
    if group < 1 or len(leaves) % group:
        raise ValueError(f"logic_forest cannot sum {len(leaves)} trees in groups of {group}: it must divide them")
    if not use_native(implementation, x):
        _check_wiring(x, leaves, gate_rows)
        return reference_logic_forest(x, leaves, gate_rows, coefficients, group)
    y: torch.Tensor = _forward(x, leaves, gate_rows, coefficients, group)
    return y


def _native_wiring(x: torch.Tensor, leaves: torch.Tensor, gate_rows: torch.Tensor) -> Any:
    def prepare() -> Any:
        _check_wiring(x, leaves, gate_rows)
        return new_native_wiring(leaves, gate_rows, x.shape[1])

    return prepared((leaves, gate_rows), ("forest", x.shape[1]), prepare)


def new_native_wiring(leaves: torch.Tensor, gate_rows: torch.Tensor | None, features: int) -> Any:
    """What the native kernels take, which copies; gate_rows None means one row after the other."""
    leaves, gate_rows = leaves.contiguous(), None if gate_rows is None else gate_rows.contiguous()
    return native().ForestWiring(
        leaves=leaves.data_ptr(),
        gate_rows=0 if gate_rows is None else gate_rows.data_ptr(),
        trees=leaves.shape[0],
        gates=leaves.shape[1] - 1,
        features=features,
    )


def _check_wiring(x: torch.Tensor, leaves: torch.Tensor, gate_rows: torch.Tensor) -> None:
    check_indices("logic_forest", "leaves", leaves, x.shape[1])
    check_rows("logic_forest", gate_rows)


def forest_wiring(
    connections: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The forest that a stack of dense layers is.

    Args:
        connections: indices_0 and indices_1 of each layer, (O,) int64, the layer next to the input first.

    Returns:
        `leaves` and `gate_rows` for `logic_forest`, where the coefficients are those of the layers one after the other;
        None where the stack is no forest: more than four layers, or an output that does not feed exactly one gate.
    """
    if not 1 <= len(connections) <= 4:
        return None
    for (below, _), layer in pairwise(connections):
        if not torch.equal(torch.cat(layer).sort().values, torch.arange(len(below), device=below.device)):
            return None
    nodes = torch.arange(len(connections[-1][0]), device=connections[-1][0].device)[:, None]  # (K, gates of the level)
    levels: list[torch.Tensor] = []
    first_row = sum(len(layer[0]) for layer in connections)
    for indices_0, indices_1 in reversed(connections):
        first_row -= len(indices_0)
        levels.insert(0, first_row + nodes)
        nodes = torch.stack((indices_0[nodes], indices_1[nodes]), 2).flatten(1)
    return nodes, torch.cat(levels, 1)


def native_forest_forward(x: torch.Tensor, wiring: Any, coefficients: torch.Tensor, group: int = 1) -> torch.Tensor:
    """The native kernel on wiring that was prepared for it, by `new_native_wiring`."""
    x, coefficients = batch_innermost(x), coefficients.contiguous()
    y = batch_innermost_empty(x, wiring.trees // group)
    native().logic_forest_forward(
        x=x.data_ptr(),
        wiring=wiring,
        coefficients=coefficients.data_ptr(),
        y=y.data_ptr(),
        batch=x.shape[0],
        group=group,
        itemsize=x.element_size(),
        threads=torch.get_num_threads(),
    )
    return y


def native_forest_backward(
    grad_y: torch.Tensor, x: torch.Tensor, wiring: Any, coefficients: torch.Tensor, needs_grad_x: bool, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and of the coefficients; the first is empty, (0,), where nobody needs it."""
    grad_y, x, coefficients = batch_innermost(grad_y), batch_innermost(x), coefficients.contiguous()
    grad_x = batch_innermost_empty(x, x.shape[1]) if needs_grad_x else x.new_empty(0)
    grad_coefficients = torch.empty_like(coefficients)
    partials = x.new_empty(native().num_forest_blocks(x.shape[0]), *coefficients.shape)
    native().logic_forest_backward(
        grad_y=grad_y.data_ptr(),
        x=x.data_ptr(),
        wiring=wiring,
        coefficients=coefficients.data_ptr(),
        grad_x=grad_x.data_ptr() if needs_grad_x else 0,
        grad_coefficients=grad_coefficients.data_ptr(),
        partials=partials.data_ptr(),
        batch=x.shape[0],
        group=group,
        itemsize=x.element_size(),
        threads=torch.get_num_threads(),
    )
    return grad_x, grad_coefficients


def _cpu_forward(
    x: torch.Tensor, leaves: torch.Tensor, gate_rows: torch.Tensor, coefficients: torch.Tensor, group: int
) -> torch.Tensor:
    return native_forest_forward(x, _native_wiring(x, leaves, gate_rows), coefficients, group)


def _fake_forward(
    x: torch.Tensor, leaves: torch.Tensor, gate_rows: torch.Tensor, coefficients: torch.Tensor, group: int
) -> torch.Tensor:
    return batch_innermost_empty(x, leaves.shape[0] // group)


def _cpu_backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    leaves: torch.Tensor,
    gate_rows: torch.Tensor,
    coefficients: torch.Tensor,
    needs_grad_x: bool,
    group: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return native_forest_backward(grad_y, x, _native_wiring(x, leaves, gate_rows), coefficients, needs_grad_x, group)


def _fake_backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    leaves: torch.Tensor,
    gate_rows: torch.Tensor,
    coefficients: torch.Tensor,
    needs_grad_x: bool,
    group: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_x = batch_innermost_empty(x, x.shape[1]) if needs_grad_x else x.new_empty(0)
    return grad_x, x.new_empty(coefficients.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs_grad_x = ctx.needs_input_grad[0]
    grad_x, grad_coefficients = _backward(grad_y, *ctx.saved_tensors, needs_grad_x, ctx.group)
    return grad_x if needs_grad_x else None, None, None, grad_coefficients, None


_backward = Op("logic_forest_backward", _cpu_backward, _fake_backward)
_forward = Op("logic_forest", _cpu_forward, _fake_forward, None, _setup_context, _autograd)
