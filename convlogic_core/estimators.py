"""Estimators: which coefficients a gate computes with in training, and which gradient its logits then get.

"soft": the mixture itself (Petersen et al. 2022). "ste": forward the discrete gate, backward as if it had been the
mixture (straight-through, Bengio et al. 2013, arXiv 1308.3432); at the end of a training it is a hard finish.
"gumbel": the same on logits with fresh noise, so that forward a gate is sampled from its mixture; temperature 1. This
is the straight-through Gumbel-softmax of Jang et al. 2017 (arXiv 1611.01144, section 2.2): hard in the forward pass, as
in the logic networks of "Mind the Gap" (Yousefi et al. 2025, arXiv 2506.07500).
"""

from typing import Any, Final

import torch
from torch import Tensor

from .parametrization import discrete_coefficients, sampling_noise, soft_coefficients

ESTIMATORS: Final = ("soft", "gumbel", "ste")


def check_estimator(estimator: str) -> str:
    """The name itself.

    Raises:
        ValueError: unknown name.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    return estimator


def training_coefficients(logits: Tensor, parametrization: str, estimator: str, implementation: str = "auto") -> Tensor:
    """Coefficients (..., 4) of one training step for logits (..., P); differentiable.

    "gumbel" draws one sample a gate, shared by the batch, from torch's global generator of the logits' device: like
    dropout, it follows `torch.manual_seed`, and a CUDA graph replays it with new noise.

    Raises:
        ValueError: unknown estimator.
    """
    if check_estimator(estimator) == "soft":
        return soft_coefficients(logits, parametrization, implementation)
    if estimator == "gumbel":
        logits = logits + sampling_noise(logits, parametrization)
    discrete = discrete_coefficients(logits.detach(), parametrization)
    soft = soft_coefficients(logits, parametrization, implementation)
    coefficients: Tensor = _StraightThrough.apply(discrete, soft)
    return coefficients


class _StraightThrough(torch.autograd.Function):
    """The discrete values, bit for bit (soft + (discrete - soft) would round); the gradient goes to the soft ones."""

    @staticmethod
    def forward(ctx: Any, discrete: Tensor, soft: Tensor) -> Tensor:
        return discrete.view_as(discrete)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
