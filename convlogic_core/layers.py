"""The layers of logic networks, drop-in for the field's code (difflogic, lkorinek/convlogic).

In training mode a layer computes as its estimator says (soft, unless told otherwise), in eval mode it is discrete;
`soft_evaluation` evaluates softly.
Shapes: B/N batch, C input channels, H W image, K output channels (kernels), L = 2**tree_depth leaves, G = L - 1 gates,
P logits a gate (16, or 4 for "iwp").
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from . import parametrization as gates_of
from .estimators import check_estimator, training_coefficients
from .ops import logic_dense, logic_tree
from .ops.backend import check_implementation
from .ops.wiring_checks import check_dense, check_selection
from .wiring import dense_connections, tree_selection


class _ScaledGradient(torch.autograd.Function):
    """x itself, bit for bit (a sum of detached parts would round); the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _LogicModule(nn.Module):
    """What dense and convolutional logic share: logits, their discretization, and gradient scaling.

    `estimator` may be set at any time, see `set_estimator`.
    """

    weights: nn.Parameter

    def __init__(self, implementation: str | None, grad_factor: float, parametrization: str, estimator: str) -> None:
        super().__init__()
        self.implementation = check_implementation(implementation)
        self.grad_factor = grad_factor
        self.parametrization = gates_of.check_parametrization(parametrization)
        self.estimator = check_estimator(estimator)
        self.soft_in_eval = False

    def coefficients(self) -> Tensor:
        """(..., 4) coefficients of this layer's gates: the estimator's in training, discrete in eval mode."""
        if self.training:
            return training_coefficients(self.weights, self.parametrization, self.estimator, self.implementation)
        if self.soft_in_eval:
            return gates_of.soft_coefficients(self.weights, self.parametrization, self.implementation)
        return gates_of.discrete_coefficients(self.weights, self.parametrization)

    def gates(self) -> Tensor:
        """(...,) int64 numbers of the discrete gates."""
        return gates_of.discrete_gates(self.weights, self.parametrization)

    def _mode(self) -> str:
        return f"{self.parametrization}, {self.estimator + ' train' if self.training else 'eval'}"

    def _scale_gradient(self, x: Tensor) -> Tensor:
        if self.grad_factor == 1.0 or not x.requires_grad:
            return x
        scaled: Tensor = _ScaledGradient.apply(x, self.grad_factor)
        return scaled

    # lkorinek/convlogic's CUDA layers also save their fan-out lists, which follow from the wiring.
    _derived_buffers = ("given_x_indices_of_y_start", "given_x_indices_of_y")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._derived_buffers:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        try:  # equal shapes do not make equal layers: a kernel=5 wiring reaches beyond a kernel=3 window
            self._check_wiring()
        except ValueError as error:
            error_messages: list[str] = args[-1]
            error_messages.append(f"{prefix.removesuffix('.')}: {error}")

    @abstractmethod
    def _check_wiring(self) -> None:
        """Raise a ValueError where the wiring names an input that this layer does not have."""


@contextmanager
def soft_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model, in eval mode, computes the soft network of the same weights, whatever its estimator.

    Modes are restored on exit. Usage: `with torch.no_grad(), soft_evaluation(model): y = model(x)`.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = [(module, module.soft_in_eval) for module in model.modules() if isinstance(module, _LogicModule)]
    try:
        model.eval()
        for layer, _ in layers:
            layer.soft_in_eval = True
        yield model
    finally:
        for layer, soft_in_eval in layers:
            layer.soft_in_eval = soft_in_eval
        for module, training in modes:
            module.training = training


def set_estimator(model: nn.Module, estimator: str) -> None:
    """From its next forward pass every logic layer of the model trains with this estimator (see `estimators`).

    Raises:
        ValueError: unknown name.
    """
    check_estimator(estimator)
    for module in model.modules():
        if isinstance(module, _LogicModule):
            module.estimator = estimator


class LogicLayer(_LogicModule):
    """Dense logic: every output is one gate of two inputs, wired at random. (B, in_dim) -> (B, out_dim).

    Source: Petersen et al. 2022, "Deep Differentiable Logic Gate Networks".

    Args:
        in_dim, out_dim: features in and out; 2*out_dim >= in_dim, so that every input can be used.
        grad_factor: the gradient towards the input is multiplied by this (2.0 helps nets deeper than six layers).
        implementation: None/"auto", "cuda", "cpu" or "python", see `convlogic_core.ops`.
        connections: "random" (a permutation, every input used) or "unique" (no pair of inputs twice).
        residual_init: start near the gate "a" instead of at random.
        parametrization: "softmax" or "iwp".
        estimator: "soft", "gumbel" or "ste", what training computes; a plain attribute, to be switched at any time.
        seed: of wiring and weights; None draws from torch's global generator.

    State: parameter `weights` (out_dim, P), buffers `indices_0`, `indices_1` (out_dim,) int64.

    Raises:
        ValueError: sizes, wiring or names that cannot be.
    """

    indices_0: Tensor
    indices_1: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grad_factor: float = 1.0,
        implementation: str | None = None,
        connections: str = "random",
        residual_init: bool = False,
        parametrization: str = "softmax",
        estimator: str = "soft",
        seed: int | None = None,
    ) -> None:
        super().__init__(implementation, grad_factor, parametrization, estimator)
        if in_dim < 1 or out_dim < 1:
            raise ValueError(f"LogicLayer needs at least one input and one output, got in_dim={in_dim}, {out_dim=}")
        self.in_dim, self.out_dim, self.connections = in_dim, out_dim, connections
        device = torch.get_default_device()
        with torch.device("cpu"):  # a seed draws the same for every device
            generator = _generator(seed)
            logits = gates_of.initial_logits((out_dim,), parametrization, residual_init, generator)
            a, b = dense_connections(in_dim, out_dim, connections, generator)
        self.weights = nn.Parameter(logits.to(device))
        self.register_buffer("indices_0", a.to(device))
        self.register_buffer("indices_1", b.to(device))

    def _check_wiring(self) -> None:
        check_dense("LogicLayer", self.indices_0, self.indices_1, self.in_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (B, out_dim), batch-innermost where the native op ran."""
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise ValueError(f"LogicLayer expects (batch, {self.in_dim}), got {tuple(x.shape)}")
        x = self._scale_gradient(x)
        return logic_dense(x, self.indices_0, self.indices_1, self.coefficients(), self.implementation)

    def extra_repr(self) -> str:
        return f"{self.in_dim}, {self.out_dim}, {self._mode()}"


class ConvLogicLayer(_LogicModule):
    """Convolutional logic: a binary tree of gates slides over the image, then OR-pooling.

    (N, C, H, W) -> (N, K, H', W').

    H' = floor(((H + 2*padding - kernel) // stride + 1) / pool), W' alike. Source: Petersen et al. 2024,
    "Convolutional Differentiable Logic Gate Networks", arXiv 2411.04732, section 3.

    Args:
        in_channels, out_channels: C and K.
        stride, padding, kernel: an int or (rows, columns); zero padding; kernel at most 255.
        groups: a kernel of output group g reads only channels of input group g.
        selection: (K, L) int32 wiring, channel<<16 | row<<8 | column; None draws it.
        residual_init: start near the gate "a" instead of at random.
        implementation: None/"auto", "cuda", "cpu" or "python", see `convlogic_core.ops`.
        grad_factor: the gradient towards the input is multiplied by this.
        complete: the whole tree. The original's complete=False (leaf gates alone) is refused: use tree_depth and pool.
        tree_depth: 1 to 4; the tree reads 2**tree_depth leaves.
        pool: side and stride of the max pooling (OR on bits); 1 is none. Odd sizes floor.
        parametrization: "softmax" or "iwp".
        estimator: "soft", "gumbel" or "ste", what training computes; a plain attribute, to be switched at any time.
        seed: of wiring and weights; None draws from torch's global generator.

    State: parameter `weights` (K, G, P), gates level by level from the leaves; buffer `selection` (K, L) int32.

    Raises:
        ValueError: sizes, wiring or names that cannot be.
    """

    selection: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        kernel: int | tuple[int, int] = 3,
        groups: int = 1,
        selection: Tensor | None = None,
        residual_init: bool = False,
        implementation: str | None = None,
        grad_factor: float = 1.0,
        complete: bool = True,
        tree_depth: int = 3,
        pool: int = 2,
        parametrization: str = "softmax",
        estimator: str = "soft",
        seed: int | None = None,
    ) -> None:
        super().__init__(implementation, grad_factor, parametrization, estimator)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.padding, self.kernel = _pair(stride), _pair(padding), _pair(kernel)
        self.tree_depth, self.pool = tree_depth, pool
        if not complete:
            raise ValueError("complete=False (leaf gates alone) does not exist here: use tree_depth=1 and pool=1")
        check_conv(in_channels, out_channels, groups, self.kernel, self.stride, self.padding, tree_depth, pool)
        shape, device = (out_channels, 2**tree_depth - 1), torch.get_default_device()
        with torch.device("cpu"):  # a seed draws the same for every device
            generator = _generator(seed)
            logits = gates_of.initial_logits(shape, parametrization, residual_init, generator)
            if selection is None:
                selection = tree_selection(in_channels, out_channels, self.kernel, groups, tree_depth, generator)
            else:
                self._check_selection(selection)
        self.weights = nn.Parameter(logits.to(device))
        self.register_buffer("selection", selection.to(device, torch.int32, copy=True))

    def _check_wiring(self) -> None:
        self._check_selection(self.selection)

    def _check_selection(self, selection: Tensor) -> None:
        num_leaves = 2**self.tree_depth
        if selection.shape != (self.out_channels, num_leaves):
            raise ValueError(
                f"selection has shape {tuple(selection.shape)}, expected (out_channels, 2**tree_depth) = "
                f"({self.out_channels}, {num_leaves})"
            )
        check_selection("ConvLogicLayer", selection, self.in_channels, self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H', W'), batch-innermost where the native op ran."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"ConvLogicLayer expects (batch, {self.in_channels}, H, W), got {tuple(x.shape)}")
        x = self._scale_gradient(x)
        return logic_tree(
            x,
            self.selection,
            self.coefficients(),
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            pool=self.pool,
            implementation=self.implementation,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel={self.kernel}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, tree_depth={self.tree_depth}, pool={self.pool}, "
            f"{self._mode()}"
        )


class GroupSum(nn.Module):
    """Class scores: (B, n) -> (B, k), sums of n/k consecutive outputs divided by tau.

    On bits the sums are integers and often equal: the lowest class wins a tie.

    Args:
        k: number of classes; must divide n.
        tau: softmax temperature. About c*sqrt(n/k) with c in 0.2 to 2.
    """

    def __init__(self, k: int, tau: float = 1.0) -> None:
        super().__init__()
        if k < 1 or not tau > 0:
            raise ValueError(f"GroupSum needs k >= 1 and tau > 0, got k={k}, tau={tau}")
        self.k, self.tau = k, tau

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.k:
            raise ValueError(f"GroupSum cannot divide {x.shape[-1]} outputs among k={self.k} classes")
        # over the leading dimension: batch-innermost outputs are then summed in the order they lie in memory
        sums: Tensor = x.movedim(-1, 0).unflatten(0, (self.k, -1)).sum(1)
        return sums.movedim(0, -1) / self.tau

    def extra_repr(self) -> str:
        return f"k={self.k}, tau={self.tau}"


def check_conv(
    in_channels: int,
    out_channels: int,
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    tree_depth: int,
    pool: int,
    name: str = "ConvLogicLayer",
) -> None:
    """Refuse what no convolution here can be, whatever the image.

    Raises:
        ValueError: a value out of its range; the message begins with `name`.
    """
    if tree_depth not in (1, 2, 3, 4):
        raise ValueError(f"{name}: tree_depth={tree_depth} is not 1, 2, 3 or 4")
    if pool not in (1, 2):
        raise ValueError(f"{name}: pool={pool} is neither 1 (none) nor 2")
    if not 1 <= groups <= min(in_channels, out_channels):
        raise ValueError(
            f"{name}: groups={groups} must be between 1 and the fewer of "
            f"in_channels={in_channels} and out_channels={out_channels}"
        )
    if in_channels > 1 << 15:
        raise ValueError(f"{name}: in_channels={in_channels} exceeds {1 << 15}, the most a selection can name")
    if min(kernel) < 1 or max(kernel) > 255 or min(stride) < 1 or min(padding) < 0:
        raise ValueError(
            f"{name}: kernel={kernel} must be 1 to 255, stride={stride} at least 1, padding={padding} at least 0"
        )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _generator(seed: int | None) -> Generator | None:
    return None if seed is None else Generator().manual_seed(seed)
