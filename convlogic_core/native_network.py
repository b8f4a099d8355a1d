"""On the CPU, a plain stack as one native network: class scores, gradients, and the optimizer's part of a step.

Shapes: N images, C planes, H W image, B batch.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import AdamW

from .ops.backend import batch_innermost, is_like, native, native_built, version_of
from .ops.output_size import tree_output_size
from .parametrization import NUM_LOGITS
from .plain_stack import PlainStack, forest_of


class NativeNetwork:
    """A plain stack as one native network, built when first used; parameters stay the layers', wiring is copied."""

    @classmethod
    def of(cls, stack: PlainStack, input_shape: tuple[int, ...]) -> "NativeNetwork | None":
        """None where the stack cannot be run as a whole on planes of this shape (C, H, W).

        It takes conv blocks and dense layers that are one forest. What it asks of weights, which may be replaced, is
        `takes_weights`.
        """
        if (
            not native_built()
            or len(stack.conv) > native().max_convs
            or stack.implementation not in ("auto", "cpu")
            or any(layer.grad_factor != 1.0 for layer in stack.conv)
            or len({layer.parametrization for layer in stack.layers}) > 1
            or not isinstance(stack.head.tau, (int, float))  # a tensor may want a gradient
            or not _fits(stack, input_shape)
        ):
            return None
        wiring = forest_of(stack.dense)
        return cls(stack, wiring, input_shape) if wiring else None

    def __init__(self, stack: PlainStack, wiring: tuple[Tensor, Tensor], input_shape: tuple[int, ...]) -> None:
        self._stack, self._wiring, self._layers = stack, wiring, stack.layers
        self._input_shape = tuple(input_shape)
        self._num_classes = stack.head.k
        num_logits = NUM_LOGITS[self._layers[0].parametrization]
        self._selections = [block.selection.contiguous().detach() for block in stack.conv]
        self._shapes: list[tuple[int, ...]] = [
            (len(selection), selection.shape[1] - 1, num_logits) for selection in self._selections
        ]
        self._shapes += [(len(layer.indices_0), num_logits) for layer in stack.dense]
        self._coefficients_of: tuple[object, ...] = ()
        self._held: list[Tensor] = []

    @cached_property
    def _network(self) -> Any:
        network = native().Network(image=self._input_shape, num_classes=self._num_classes, tau=self._stack.head.tau)
        for block, selection in zip(self._stack.conv, self._selections, strict=True):
            network.add_conv(
                selection=selection.data_ptr(),
                kernels=selection.shape[0],
                gates=selection.shape[1] - 1,
                kernel=block.kernel,
                stride=block.stride,
                padding=block.padding,
                pool=block.pool,
            )
        leaves, gate_rows = (indices.contiguous() for indices in self._wiring)
        network.set_forest(
            leaves=leaves.data_ptr(),
            gate_rows=gate_rows.data_ptr(),
            trees=len(leaves),
            gates=gate_rows.shape[1],
            layer_sizes=[shape[0] for shape in self._shapes[len(self._selections) :]],
        )
        return network

    def takes_weights(self) -> bool:
        """Whether all layers' weights are trainable, and as the kernels read them."""
        weights = self._weights()
        return self._readable(weights) and all(weight.requires_grad for weight in weights)

    def estimator(self) -> str:
        """The layers' own; "gumbel" where they differ, which no native network computes."""
        names = {layer.estimator for layer in self._layers}
        return names.pop() if len(names) == 1 else "gumbel"

    def compute_coefficients(self, soft: bool = False) -> None:
        """Bring the network's coefficients up to date with the logits, where anything else has changed them."""
        discrete = not soft and self.estimator() == "ste"
        if self._coefficients_of != self._state(discrete):
            self._network.compute_coefficients(**self._logits(self._weights()), discrete=discrete)
            self._remember(discrete)

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
            is_like(x, torch.float32, (*x.shape[:1], *self._input_shape))
            and not x.requires_grad
            and len(x) > 0
            and all(layer.training for layer in self._layers)
            and self.estimator() != "gumbel"
            and self.takes_weights()
        )

    def differentiable_scores(self, x: Tensor) -> Tensor:
        """Class scores (B, num_classes) of x (B, C, H, W) in training; gradients go to the layers' weights.

        x and coefficients are kept for the backward pass: activations are computed again, a few samples at a time.
        """
        scores: Tensor = _DifferentiableScores.apply(self, x, *self._weights())
        return scores

    def takes(self, optimizer: AdamW) -> bool:
        """Whether `step` does what this optimizer does: AdamW as it is, on the weights of all layers."""
        if type(optimizer) is not AdamW or len(optimizer.param_groups) != 1:
            return False
        (group,) = optimizer.param_groups
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        if group["amsgrad"] or group["maximize"] or hooks:
            return False
        return [*map(id, group["params"])] == [*map(id, self._weights())] and self.takes_weights()

    def has_moments(self, optimizer: AdamW) -> bool:
        """Whether the optimizer's state is none yet or of the layers' shapes, all of one step."""
        states = [optimizer.state.get(layer.weights) or {} for layer in self._layers]
        if not any(states):
            return True
        return len({float(state.get("step", -1)) for state in states}) == 1 and all(
            self._readable([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")
        )

    def num_steps(self, optimizer: AdamW) -> float:
        """That the optimizer has made on the first layer."""
        return float(optimizer.state[self._layers[0].weights].get("step", 0))

    def step(self, optimizer: AdamW) -> None:
        """AdamW on the logits, with the moments in the optimizer's state; then the coefficients of the new logits.

        The optimizer is one that it `takes`, and it `has_moments`.
        """
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
            **self._logits(self._weights()),
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
        self._remember(discrete)

    def forward(self, values: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class scores (B, num_classes) in training and coefficients (gates, 4), both of which `backward` needs.

        Args:
            values: (B, C, H, W) float32 on the CPU, batch-innermost.
            weights: of all layers.
        """
        scores = torch.empty(len(values), self._num_classes, dtype=torch.float32, device="cpu")
        coefficients = torch.empty(self._network.num_gates, 4, dtype=torch.float32, device="cpu")
        self._network.forward(
            **self._logits(weights),
            discrete=self.estimator() == "ste",
            values=values.data_ptr(),
            size=len(values),
            coefficients=coefficients.data_ptr(),
            scores=scores.data_ptr(),
        )
        return scores, coefficients

    def backward(
        self, grad_scores: Tensor, values: Tensor, coefficients: Tensor, weights: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients of all layers' weights, from that of the scores (B, num_classes) which `forward` gave.

        Raises:
            ValueError: tensors of another kind than those of `forward`.
        """
        size = len(grad_scores)
        _check("values", values, torch.float32, (size, *self._input_shape))
        _check("coefficients", coefficients, torch.float32, (self._network.num_gates, 4))
        _check("grad_scores", grad_scores, torch.float32, (size, self._num_classes))
        # hooks of saved tensors may give them back in another memory format
        values, weights = batch_innermost(values), [weight.contiguous() for weight in weights]
        coefficients, grad_scores = coefficients.contiguous(), grad_scores.contiguous()
        logits = self._logits(weights)
        gradients = [torch.empty_like(weight) for weight in weights]
        self._network.backward(
            **logits,
            values=values.data_ptr(),
            size=size,
            grad_scores=grad_scores.data_ptr(),
            coefficients=coefficients.data_ptr(),
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

    def _weights(self) -> list[Tensor]:
        return [layer.weights for layer in self._layers]

    def _readable(self, tensors: Sequence[Tensor]) -> bool:
        """Whether kernels read these, one a layer, as the logits that they are or as moments of them."""
        return all(
            is_like(tensor, torch.float32, shape) and tensor.is_contiguous()
            for tensor, shape in zip(tensors, self._shapes, strict=True)
        )

    def _state(self, discrete: bool) -> tuple[object, ...]:
        return discrete, *((weight.data_ptr(), version_of(weight)) for weight in self._weights())

    def _remember(self, discrete: bool) -> None:
        self._coefficients_of = self._state(discrete)
        self._held = [weight.detach() for weight in self._weights()]  # or others may come to lie where these have lain

    def _logits(self, weights: Sequence[Tensor]) -> dict[str, Any]:
        """What native calls ask of the weights.

        Raises:
            ValueError: they are not as the kernels read them.
        """
        if not self._readable(weights):
            kinds = ", ".join(f"{tuple(weight.shape)} of {weight.dtype} on {weight.device}" for weight in weights)
            shapes = ", ".join(map(str, self._shapes))
            raise ValueError(
                f"the native network takes contiguous weights {shapes} of torch.float32 on the CPU, got {kinds}"
            )
        return {
            "logits": [weight.data_ptr() for weight in weights],
            "num_logits": self._shapes[0][-1],
            "threads": torch.get_num_threads(),
        }


class _DifferentiableScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: NativeNetwork, x: Tensor, *weights: Tensor) -> Tensor:
        values = batch_innermost(x)
        scores, coefficients = network.forward(values, weights)
        ctx.network = network
        ctx.save_for_backward(values, coefficients, *weights)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        values, coefficients, *weights = ctx.saved_tensors  # an error where weights have changed since
        return None, None, *ctx.network.backward(grad_scores, values, coefficients, weights)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not is_like(tensor, dtype, shape):
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
        selection = block.selection
        if (
            channels != block.in_channels
            or not is_like(selection, torch.int32, selection.shape)
            or selection.ndim != 2
            or selection.shape[1] not in (2, 4, 8, 16)
        ):
            return False
        try:
            size = [*tree_output_size(size, block.kernel, block.stride, block.padding, block.pool)]
        except ValueError:
            return False
        channels = len(selection)
    widths = [channels * math.prod(size), *(len(layer.indices_0) for layer in stack.dense)]
    return (
        all(width == layer.in_dim for width, layer in zip(widths, stack.dense, strict=False))
        and all(below <= 2 * above for below, above in pairwise(widths))
        and widths[-1] % stack.head.k == 0
    )
