"""On the CPU, a plain stack as one native network: class scores, gradients, and the optimizer's part of a step.

Shapes: N images, C planes, H W image, B batch.
"""

import math
import threading
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import AdamW
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .ops.backend import batch_innermost, native, native_built, use_native, version_of
from .ops.output_size import tree_output_size
from .plain_stack import PlainStack, forest_of


class NativeNetwork:
    """A plain stack as one native network; its parameters stay the layers', its wiring is copied."""

    @classmethod
    def of(cls, stack: PlainStack, input_shape: tuple[int, ...]) -> "NativeNetwork | None":
        """None where the stack cannot be run as a whole on planes of this shape (C, H, W).

        It takes conv blocks and dense layers that are one forest, trainable, float32, on the CPU.
        """
        if not _fits(stack, input_shape) or not native_built() or len(stack.conv) > native().max_convs:
            return None
        weights = [layer.weights for layer in stack.layers]
        wiring = forest_of(stack.dense)
        if (
            wiring is None
            or not all(use_native(stack.implementation, weight) and weight.dtype == torch.float32 for weight in weights)
            or not all(weight.is_contiguous() and weight.requires_grad for weight in weights)
            or any(layer.grad_factor != 1.0 for layer in stack.conv)
            or len({layer.parametrization for layer in stack.layers}) > 1
        ):
            return None
        return cls(stack, wiring, input_shape)

    def __init__(self, stack: PlainStack, wiring: tuple[Tensor, Tensor], input_shape: tuple[int, ...]) -> None:
        self._layers = stack.layers
        self._input_shape = tuple(input_shape)
        self._num_classes = stack.head.k
        self._coefficients_of: tuple[object, ...] = ()
        self._num_computed = 0  # times
        self._lock = threading.Lock()
        self._network = native().Network(image=input_shape, num_classes=stack.head.k, tau=stack.head.tau)
        for block in stack.conv:
            selection = block.selection.contiguous()
            self._network.add_conv(
                selection=selection.data_ptr(),
                kernels=block.out_channels,
                gates=2**block.tree_depth - 1,
                kernel=block.kernel,
                stride=block.stride,
                padding=block.padding,
                pool=block.pool,
            )
        leaves, gate_rows = (indices.contiguous() for indices in wiring)
        self._network.set_forest(
            leaves=leaves.data_ptr(),
            gate_rows=gate_rows.data_ptr(),
            trees=len(leaves),
            gates=gate_rows.shape[1],
            layer_sizes=[layer.out_dim for layer in stack.dense],
        )

    def estimator(self) -> str:
        """The layers' own; "gumbel" where they differ, which no native network computes."""
        names = {layer.estimator for layer in self._layers}
        return names.pop() if len(names) == 1 else "gumbel"

    def compute_coefficients(self, soft: bool = False) -> None:
        """Bring the network's coefficients up to date with the logits, where anything else has changed them."""
        discrete = not soft and self.estimator() == "ste"
        if self._coefficients_of != self._state(discrete):
            self._network.compute_coefficients(**self._logits(), discrete=discrete)
            self._coefficients_of = self._state(discrete)
            self._num_computed += 1

    def forget_coefficients(self) -> None:
        """Have them computed anew: the logits were changed by something that torch does not count."""
        self._coefficients_of = ()

    def gradients(self, x: Tensor, y: Tensor, rows: Tensor) -> float:
        """The sum of the cross-entropy over some rows; the gradient of its mean stays here for `step`.

        Args:
            x: (N, C, H, W) uint8 planes on the CPU.
            y: (N,) int64 classes.
            rows: (B,) int64, B at least 1.

        Raises:
            ValueError: tensors of another kind, or no rows.
            IndexError: a row or a label out of range.
        """
        _check("x", x, torch.uint8, (*x.shape[:1], *self._input_shape))
        _check("y", y, torch.int64, x.shape[:1])
        _check("rows", rows, torch.int64, (max(1, rows.numel()),))
        x, y, rows = x.contiguous(), y.contiguous(), rows.contiguous()
        loss: float = self._network.gradients(
            images=x.data_ptr(),
            num_images=len(x),
            rows=rows.data_ptr(),
            labels=y.data_ptr(),
            size=len(rows),
            threads=torch.get_num_threads(),
        )
        return loss

    def trains_on(self, x: Tensor) -> bool:
        """Whether `differentiable_scores` of x (B, C, H, W) are what the layers compute, and all that they compute."""
        return (
            type(x) is Tensor
            and not is_in_torch_dispatch_mode()
            and (x.dtype, x.device.type, x.requires_grad) == (torch.float32, "cpu", False)
            and len(x) > 0
            and all(layer.training for layer in self._layers)
            and self.estimator() != "gumbel"
        )

    def differentiable_scores(self, x: Tensor) -> Tensor:
        """Class scores (B, num_classes) of x (B, C, H, W) in training; gradients go to the layers' weights.

        Nothing but x is kept for the backward pass: activations are computed again, a few samples at a time.
        """
        scores: Tensor = _DifferentiableScores.apply(self, x, *(layer.weights for layer in self._layers))
        return scores

    def takes(self, optimizer: AdamW) -> bool:
        """Whether `step` does what this optimizer does: AdamW as it is, on the weights of all layers."""
        if type(optimizer) is not AdamW or len(optimizer.param_groups) != 1:
            return False
        (group,) = optimizer.param_groups
        return not (
            group["amsgrad"]
            or group["maximize"]
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
        ) and [id(parameter) for parameter in group["params"]] == [id(layer.weights) for layer in self._layers]

    def has_moments(self, optimizer: AdamW) -> bool:
        """Whether the optimizer's state is none yet or of the layers' shapes, all of one step."""
        states = [optimizer.state.get(layer.weights) or {} for layer in self._layers]
        if not any(states):
            return True
        return len({float(state.get("step", -1)) for state in states}) == 1 and all(
            state[name].shape == layer.weights.shape and state[name].is_contiguous()
            for state, layer in zip(states, self._layers, strict=True)
            for name in ("exp_avg", "exp_avg_sq")
        )

    def num_steps(self, optimizer: AdamW) -> float:
        """That the optimizer has made on the first layer."""
        return float(optimizer.state[self._layers[0].weights].get("step", 0))

    def step(self, optimizer: AdamW) -> None:
        """AdamW on the logits, with the moments in the optimizer's state; then the coefficients of the new logits."""
        (group,) = optimizer.param_groups
        states = []
        for layer in self._layers:
            state = optimizer.state[layer.weights]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(layer.weights)
                state["exp_avg_sq"] = torch.zeros_like(layer.weights)
            states.append(state)
        torch._foreach_add_([state["step"] for state in states], 1)
        discrete = self.estimator() == "ste"
        (beta1, beta2), number = group["betas"], float(states[0]["step"])
        self._network.step(
            **self._logits(),
            discrete=discrete,
            means=[state["exp_avg"].data_ptr() for state in states],
            variances=[state["exp_avg_sq"].data_ptr() for state in states],
            lr=group["lr"] / (1 - beta1**number),
            mean_rate=1 - beta1,
            variance_rate=1 - beta2,
            variance_scale=1 / math.sqrt(1 - beta2**number),
            epsilon=group["eps"],
            decay=group["lr"] * group["weight_decay"],
        )
        self._coefficients_of = self._state(discrete)

    def forward(self, values: Tensor) -> tuple[Tensor, int]:
        """Class scores (B, num_classes) of values (B, C, H, W), batch-innermost float32 on the CPU, for `backward`.

        Coefficients are computed anew, as fused optimizers leave no trace in a tensor's version; the second result
        says which they are.
        """
        scores = torch.empty(len(values), self._num_classes, dtype=torch.float32, device="cpu")
        with self._lock:
            self.forget_coefficients()
            self.compute_coefficients()
            self._network.forward(
                values=values.data_ptr(), size=len(values), scores=scores.data_ptr(), threads=torch.get_num_threads()
            )
            return scores, self._num_computed

    def backward(self, values: Tensor, grad_scores: Tensor, coefficients: int) -> list[Tensor]:
        """The gradients of all layers' logits, from that of the scores (B, num_classes) which `forward` gave."""
        gradients = [torch.empty_like(layer.weights) for layer in self._layers]
        grad_scores = grad_scores.contiguous()
        with self._lock:
            if coefficients != self._num_computed:  # other passes lie between
                self.forget_coefficients()
                self.compute_coefficients()
            self._network.backward(
                **self._logits(),
                values=values.data_ptr(),
                size=len(values),
                grad_scores=grad_scores.data_ptr(),
                gradients=[gradient.data_ptr() for gradient in gradients],
            )
        return gradients

    def scores(self, x: Tensor) -> Tensor:
        """Soft class scores (N, num_classes) of planes x (N, C, H, W) uint8 on the CPU.

        Raises:
            ValueError: x of another kind.
        """
        _check("x", x, torch.uint8, (*x.shape[:1], *self._input_shape))
        self.compute_coefficients(soft=True)
        x = x.contiguous()
        scores = torch.empty(len(x), self._num_classes, dtype=torch.float32, device="cpu")
        self._network.scores(
            images=x.data_ptr(), num_images=len(x), scores=scores.data_ptr(), threads=torch.get_num_threads()
        )
        return scores

    def _state(self, discrete: bool) -> tuple[object, ...]:
        weights = [layer.weights for layer in self._layers]
        return discrete, *((weight.data_ptr(), version_of(weight)) for weight in weights)

    def _logits(self) -> dict[str, Any]:
        return {
            "logits": [layer.weights.data_ptr() for layer in self._layers],
            "num_logits": self._layers[0].weights.shape[-1],
            "threads": torch.get_num_threads(),
        }


class _DifferentiableScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: NativeNetwork, x: Tensor, *weights: Tensor) -> Tensor:
        values = batch_innermost(x)
        scores, ctx.coefficients = network.forward(values)
        ctx.network = network
        ctx.save_for_backward(values, *weights)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        values, *_ = ctx.saved_tensors  # an error where weights have changed since
        return None, None, *ctx.network.backward(values, grad_scores, ctx.coefficients)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Kernels are given addresses: whatever does not look like this would be read as if it did."""
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"the native network takes {name} {tuple(shape)} of {dtype} on the CPU, "
            f"got {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        )


def _fits(stack: PlainStack, input_shape: tuple[int, ...]) -> bool:
    """Whether the layers take what the ones before them give, from planes of this shape on."""
    if not stack.conv or not stack.dense or len(input_shape) != 3:
        return False
    channels, *size = input_shape
    for block in stack.conv:
        if channels != block.in_channels:
            return False
        try:
            size = [*tree_output_size(size, block.kernel, block.stride, block.padding, block.pool)]
        except ValueError:
            return False
        channels = block.out_channels
    widths = [channels * math.prod(size), *(layer.out_dim for layer in stack.dense)]
    return (
        all(width == layer.in_dim for width, layer in zip(widths, stack.dense, strict=False))
        and all(below <= 2 * above for below, above in pairwise(widths))
        and widths[-1] % stack.head.k == 0
    )
