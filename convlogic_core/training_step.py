"""One training step: cross-entropy of a batch, gradients, AdamW. On the fastest way that the model and machine allow.

`training_step` chooses: a plain stack on the CPU runs as one native network, on a GPU steps are replayed from a CUDA
graph, and everything else is a plain PyTorch step. All ways keep their state in one `torch.optim.AdamW`, so that a
checkpoint of one continues in another; gradients agree up to rounding.
Shapes: N images, C planes, H W image.
"""

from torch import Tensor, nn
from torch.optim import AdamW

from .graph_step import GraphStep
from .network_step import NetworkStep
from .plain_step import PlainStep, TrainingStep

__all__ = ["PlainStep", "TrainingStep", "training_step"]


def training_step(model: nn.Module, optimizer: AdamW, x: Tensor, y: Tensor) -> TrainingStep:
    """The fastest step for this model.

    Args:
        model: class scores from float planes; trained in place, with the estimator that its layers name.
        optimizer: holds the model's parameters, in their order, in one group.
        x: (N, C, H, W) uint8 planes of zeros and ones, on the model's device.
        y: (N,) int64 classes.
    """
    if x.is_cuda:
        return GraphStep(model, optimizer, x, y)
    return NetworkStep.of(model, optimizer, x, y) or PlainStep(model, optimizer, x, y)
