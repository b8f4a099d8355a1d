"""What a training step is, and the plain PyTorch one, which every other way must agree with.

Shapes: N images, C planes, H W image, B batch.
"""

from typing import Protocol

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from .ops.backend import batch_innermost


class TrainingStep(Protocol):
    """A step on rows (B,) int64 of the images, at a learning rate; what it returns is the sum of the losses, ()."""

    def __call__(self, rows: Tensor, lr: float) -> Tensor: ...


class PlainStep:
    """Forward, cross-entropy, backward, optimizer: for any model on any device."""

    def __init__(self, model: nn.Module, optimizer: AdamW, x: Tensor, y: Tensor) -> None:
        self.model, self.optimizer, self.x, self.y = model, optimizer, x, y

    def __call__(self, rows: Tensor, lr: float) -> Tensor:
        (group,) = self.optimizer.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
        return self.run(rows)

    def run(self, rows: Tensor) -> Tensor:
        """A step at the optimizer's own rate."""
        self.model.train()
        # batch-innermost, as the kernels take it forward and backward; transposed while it is bytes
        loss = cross_entropy(self.model(batch_innermost(self.x[rows]).float()), self.y[rows])
        for parameter in self.optimizer.param_groups[0]["params"]:
            parameter.grad = None
        loss.backward()
        self.optimizer.step()
        return loss.detach() * len(rows)
