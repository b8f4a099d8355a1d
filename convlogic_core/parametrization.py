"""From parameters to gates: how logits become the four coefficients of a gate, softly or discretely.

"softmax": 16 logits a gate, a distribution over the gates (Petersen et al. 2022). "iwp": 4 logits a gate, one sigmoid
for each row of its truth table (input-wise parametrisation, arXiv 2510.03250): a quarter of the parameters.
Both are maps from logits (..., P) to coefficients (..., 4); a discrete gate is a gate number.
"""

from typing import Final

import torch
from torch import Generator, Tensor

from .gates import GATE_A, GATE_TABLE, NUM_GATES, coefficients_of, truth_row
from .ops import gate_coefficients

NUM_LOGITS: Final = {"softmax": NUM_GATES, "iwp": 4}
RESIDUAL_LOGIT: Final = {"softmax": 5.0, "iwp": 3.0}


def check_parametrization(parametrization: str) -> str:
    """The name itself.

    Raises:
        ValueError: unknown name.
    """
    if parametrization not in NUM_LOGITS:
        raise ValueError(f"parametrization {parametrization!r} is not one of {', '.join(NUM_LOGITS)}")
    return parametrization


def initial_logits(
    shape: tuple[int, ...], parametrization: str, residual_init: bool, generator: Generator | None
) -> Tensor:
    """Logits (*shape, P): N(0, 1), or with residual_init the gate "a" favoured.

    softmax: 5.0 on gate "a", so p(a) = e^5 / (e^5 + 15) = 0.908. iwp: +-3 along the truth table of "a".
    """
    full_shape = (*shape, NUM_LOGITS[parametrization])
    if not residual_init:
        return torch.randn(full_shape, generator=generator)
    logits = torch.zeros(full_shape)
    strength = RESIDUAL_LOGIT[parametrization]
    if parametrization == "softmax":
        logits[..., GATE_A] = strength
    else:
        logits[...] = strength * (2.0 * torch.tensor(truth_row(GATE_A)) - 1.0)
    return logits


def soft_coefficients(logits: Tensor, parametrization: str, implementation: str = "auto") -> Tensor:
    """Coefficients (..., 4) of the mixture that the logits describe; differentiable. See `ops.gate_coefficients`.

    Raises:
        ValueError: not as many logits a gate as the parametrization has.
    """
    if logits.shape[-1] != NUM_LOGITS[parametrization]:
        raise ValueError(
            f"{parametrization} gates have {NUM_LOGITS[parametrization]} logits, got shape {tuple(logits.shape)}"
        )
    return gate_coefficients(logits, implementation)


def discrete_gates(logits: Tensor, parametrization: str) -> Tensor:
    """Gate numbers (...,) int64: the largest logit (the lowest gate of equal ones), or every bit with logit > 0."""
    if parametrization == "softmax":
        return logits.argmax(-1)  # of equal maxima torch names the first
    bits = (logits > 0).long()
    return bits[..., 0] * 8 + bits[..., 1] * 4 + bits[..., 2] * 2 + bits[..., 3]


def discrete_coefficients(logits: Tensor, parametrization: str) -> Tensor:
    """Coefficients (..., 4) of the discrete gates."""
    gates = discrete_gates(logits, parametrization)
    if logits.is_cuda:  # a copy of the table would wait for the GPU, and cannot be captured in a CUDA graph
        return coefficients_of(gates).to(logits.dtype)
    return GATE_TABLE.to(logits)[gates]


def sampling_noise(logits: Tensor, parametrization: str) -> Tensor:
    """Random noise of the logits' shape: the discrete gate of logits + noise is a sample of their soft mixture.

    softmax: Gumbel noise on every logit, so that P(argmax = g) = softmax(logits)_g. iwp: logistic noise (that of the
    difference of two Gumbels), so that P(bit) = sigmoid(logit). Both by inversion, from torch's global generator.
    """
    # not `exponential_`, eight times slower than `uniform_`; the ends, rare as they are, would be infinite
    eps = torch.finfo(logits.dtype).eps
    uniform = torch.empty_like(logits, requires_grad=False).uniform_().clamp_(eps, 1 - eps)
    if parametrization == "softmax":
        return uniform.log_().neg_().log_().neg_()
    return uniform.logit_()
