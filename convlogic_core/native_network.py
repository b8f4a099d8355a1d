"""On the CPU, a plain stack as one native network: its training step, and its class scores.

Shapes: N images, C planes, H W image, B batch.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from .layer_step import LayerStep
from .network import PlainStack, forest_of, plain_stack
from .ops.backend import native, use_native


class NetworkStep:
    """On the CPU: the whole network in native code, groups of samples going through all layers, AdamW fused.

    Estimator "gumbel", whose noise torch draws, goes through the layers.
    """

    @classmethod
    def of(cls, model: nn.Module, optimizer: AdamW, x: Tensor, y: Tensor) -> "NetworkStep | None":
        """None where the model is no plain stack of conv blocks and a forest, in float32 on the CPU."""
        network = NativeNetwork.of(model, x.shape[1:])
        return cls(network, LayerStep(model, optimizer, x, y)) if network else None

    def __init__(self, network: "NativeNetwork", layers: LayerStep) -> None:
        self._network: NativeNetwork | None = network
        self._layers = layers
        self._steps = 0.0

    def __call__(self, rows: Tensor, lr: float) -> Tensor:
        model = self._layers.model
        if plain_stack(model) is None or not (self._network and self._network.has_wiring_it_was_built_with()):
            self._network = NativeNetwork.of(model, self._layers.x.shape[1:])  # a hook or other wiring came since
        if not self._network or self._network.estimator() == "gumbel":
            return self._layers(rows, lr)
        (group,) = self._layers.optimizer.param_groups
        group["lr"] = lr
        if self._steps != self._optimizer_steps():  # fused optimizers leave no trace in a tensor's version
            self._network.forget_coefficients()
        self._network.compute_coefficients()
        loss = self._network.gradients(self._layers.x, self._layers.y, rows)
        self._network.step(self._layers.optimizer)
        self._steps = self._optimizer_steps()
        return torch.tensor(loss)

    def _optimizer_steps(self) -> float:
        states = self._layers.optimizer.state.values()
        return sum(float(state["step"]) for state in states)


class NativeNetwork:
    """A plain stack as one native network; its parameters stay the layers'."""

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...]) -> "NativeNetwork | None":
        """None where the model cannot be run as a whole on planes of this shape (C, H, W)."""
        stack = plain_stack(model)
        if stack is None or not stack.conv or not stack.dense or len(input_shape) != 3 or len(stack.conv) > 8:
            return None
        layers = (*stack.conv, *stack.dense)
        weights = [layer.weights for layer in layers]
        wiring = forest_of(stack.dense)
        if (
            wiring is None
            or not all(use_native(stack.implementation, weight) and weight.dtype == torch.float32 for weight in weights)
            or not all(weight.is_contiguous() and weight.requires_grad for weight in weights)
            or any(layer.grad_factor != 1.0 for layer in stack.conv)
            or len({layer.parametrization for layer in layers}) > 1
        ):
            return None
        return cls(stack, wiring, input_shape)

    def __init__(self, stack: PlainStack, wiring: tuple[Tensor, Tensor], input_shape: tuple[int, ...]) -> None:
        self._layers = (*stack.conv, *stack.dense)
        self._num_classes = stack.head.k
        self._coefficients_of: tuple[object, ...] = ()
        self._wiring = [
            *(block.selection for block in stack.conv),
            *(indices for layer in stack.dense for indices in (layer.indices_0, layer.indices_1)),
        ]
        self._wiring_versions = [indices._version for indices in self._wiring]
        self._network = native().Network(image=input_shape, num_classes=stack.head.k, tau=stack.head.tau)
        for block in stack.conv:
            self._network.add_conv(
                selection=block.selection.contiguous().data_ptr(),
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

    def has_wiring_it_was_built_with(self) -> bool:
        """Whether no other wiring has been loaded since."""
        return self._wiring_versions == [indices._version for indices in self._wiring]

    def estimator(self) -> str:
        """The layers' own; "gumbel" where they differ, which no native network computes."""
        names = {layer.estimator for layer in self._layers}
        return names.pop() if len(names) == 1 else "gumbel"

    def compute_coefficients(self, soft: bool = False) -> None:
        """Bring the network's coefficients up to date with the logits, where anything else has changed them."""
        discrete = not soft and self.estimator() == "ste"
        if self._coefficients_of != self._state(discrete):
            self._update(discrete)

    def forget_coefficients(self) -> None:
        """Have them computed anew: the logits were changed by something that torch does not count."""
        self._coefficients_of = ()

    def gradients(self, x: Tensor, y: Tensor, rows: Tensor) -> float:
        """The sum of the cross-entropy over some rows; the gradient of its mean stays here for `step`.

        Raises:
            IndexError: a row or a label out of range.
        """
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

    def step(self, optimizer: AdamW) -> None:
        """AdamW on the logits, with the moments in the optimizer's state; then the coefficients of the new logits."""
        (group,) = optimizer.param_groups
        states = []
        for layer in self._layers:
            state = optimizer.state[layer.weights]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(layer.weights)
                state["exp_avg_sq"] = torch.zeros_like(layer.weights)
            state["step"] += 1
            states.append(state)
        self._update(
            self.estimator() == "ste",
            means=[state["exp_avg"].data_ptr() for state in states],
            variances=[state["exp_avg_sq"].data_ptr() for state in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            weight_decay=group["weight_decay"],
            step=int(states[0]["step"]),
        )

    def scores(self, x: Tensor) -> Tensor:
        """Soft class scores (N, num_classes) of planes x (N, C, H, W) uint8."""
        self.compute_coefficients(soft=True)
        x = x.contiguous()
        scores = torch.empty(len(x), self._num_classes)
        self._network.scores(
            images=x.data_ptr(), num_images=len(x), scores=scores.data_ptr(), threads=torch.get_num_threads()
        )
        return scores

    def _state(self, discrete: bool) -> tuple[object, ...]:
        weights = [layer.weights for layer in self._layers]
        return discrete, *((weight.data_ptr(), weight._version) for weight in weights)

    def _update(self, discrete: bool, **step: Any) -> None:
        self._network.update(
            logits=[layer.weights.data_ptr() for layer in self._layers],
            num_logits=self._layers[0].weights.shape[-1],
            discrete=discrete,
            threads=torch.get_num_threads(),
            **(step or _NO_STEP),
        )
        self._coefficients_of = self._state(discrete)


_NO_STEP: Final[dict[str, Any]] = {
    "means": [],
    "variances": [],
    "lr": 0.0,
    "beta1": 0.0,
    "beta2": 0.0,
    "epsilon": 0.0,
    "weight_decay": 0.0,
    "step": 1,
}
