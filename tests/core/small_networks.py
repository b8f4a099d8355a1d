"""A small network, its data, and the layers that every faster way must agree with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model
from convlogic_core.network_step import NetworkStep

SPEC = ModelSpec(
    input_shape=(2, 11, 9),
    conv=(
        ConvSpec(4, kernel=3, padding=1, residual_init=False),
        ConvSpec(6, kernel=2, padding=1, tree_depth=2, residual_init=False),
    ),
    dense=(DenseSpec(48, residual_init=False), DenseSpec(24, residual_init=False), DenseSpec(12, residual_init=False)),
    num_classes=3,
    tau=0.5,
)


def data(spec: ModelSpec, num_images: int = 150, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (num_images, *spec.input_shape), generator=generator, dtype=torch.uint8)
    return x, torch.randint(0, spec.num_classes, (num_images,), generator=generator)


def adamw(model: nn.Module, weight_decay: float = 0.01) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=weight_decay, fused=True)


def native_step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[NetworkStep, torch.optim.AdamW]:
    optimizer = adamw(model)
    step = NetworkStep.of(model, optimizer, x, y)
    assert step is not None
    return step, optimizer


def layers_of(spec: ModelSpec, seed: int) -> nn.Sequential:
    """The network of a spec as its layers, one after the other."""
    return nn.Sequential(*build_model(spec, seed).children())


def images(batch: int, seed: int = 1) -> Tensor:
    """Anything between 0 and 1, not bits alone."""
    return torch.rand(batch, *SPEC.input_shape, generator=torch.Generator().manual_seed(seed))


def gradients_of(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return [*torch.autograd.grad(loss(model(x)), [*model.parameters()])]


def some_loss(scores: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, scores.numel()).view_as(scores)
    return (scores * weights).sum() + (scores**2).mean()


def check_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    """Gradients of early layers are small: each tensor is compared on its own scale."""
    for a, b in zip(found, expected, strict=True):
        error, greatest = float((a - b).detach().abs().max()), float(b.detach().abs().max())
        assert greatest > 0, f"no gradient reaches {tuple(b.shape)}"
        assert error <= tolerance * greatest, f"{tuple(b.shape)}: {error} off, the greatest is {greatest}"
