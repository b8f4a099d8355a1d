"""A training step of a plain stack on the CPU: the whole network and AdamW in native code.

Shapes: N images, C planes, H W image, B batch.
"""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from .native_network import NativeNetwork
from .network import native_network
from .plain_step import PlainStep
from .premises import premises


class NetworkStep:
    """On the CPU: the whole network in native code, groups of samples going through all layers, AdamW fused.

    A plain step is made with estimator "gumbel", whose noise torch draws, and of what a model has become that
    `NativeNetwork` does not take, or an optimizer that is no longer plain AdamW on the layers' weights.
    Changes made through `.data` between two steps are not seen.
    """

    @classmethod
    def of(cls, model: nn.Module, optimizer: AdamW, x: Tensor, y: Tensor) -> "NetworkStep | None":
        """None where model, optimizer or data are not what the native network takes; see `native_network`."""
        network = native_network(model, x.shape[1:])
        if not network or not network.takes(optimizer) or x.device.type != "cpu" or y.device.type != "cpu":
            return None
        if x.dtype != torch.uint8 or y.dtype != torch.int64 or y.shape != x.shape[:1]:
            return None
        return cls(network, PlainStep(model, optimizer, x.contiguous(), y.contiguous()))

    def __init__(self, network: NativeNetwork, plain: PlainStep) -> None:
        self._plain = plain
        self._prepare(network)
        self._steps = -1.0

    def _prepare(self, network: NativeNetwork | None) -> None:
        model = self._plain.model
        self._network, self._built_for = network, premises(model)
        self._held = [*model.buffers()]

    def __call__(self, rows: Tensor, lr: float) -> Tensor:
        if self._built_for != premises(self._plain.model):
            self._prepare(native_network(self._plain.model, self._plain.x.shape[1:]))
        network, optimizer = self._network, self._plain.optimizer
        if not network or not network.takes(optimizer) or network.estimator() == "gumbel" or not len(rows):
            return self._plain(rows, lr)
        if self._steps != network.num_steps(optimizer):
            if not network.has_moments(optimizer):
                return self._plain(rows, lr)
            network.forget_coefficients()  # fused optimizers leave no trace in a tensor's version
        if not self._plain.model.training:
            self._plain.model.train()
        (group,) = optimizer.param_groups
        group["lr"] = lr
        network.compute_coefficients()
        loss = network.gradients(self._plain.x, self._plain.y, rows)
        network.step(optimizer)
        self._steps = network.num_steps(optimizer)
        return torch.tensor(loss)
