import itertools
import math

import pytest
import torch
from torch import Generator, Tensor

from convlogic_core.gates import GATE_A, GATE_TABLE, truth_row
from convlogic_core.parametrization import (
    check_parametrization,
    discrete_coefficients,
    discrete_gates,
    initial_logits,
    soft_coefficients,
)

PARAMETRIZATIONS = ["softmax", "iwp"]
NUM_LOGITS = {"softmax": 16, "iwp": 4}


def random_logits(parametrization: str, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = Generator().manual_seed(0)
    return torch.randn(5, 7, NUM_LOGITS[parametrization], generator=generator, dtype=dtype)


def brute_force_output(logits: list[float], parametrization: str, a: float, b: float) -> float:
    """A gate's relaxed output from its definition, without coefficients."""
    chances = [(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b]
    if parametrization == "iwp":
        return sum(chance / (1 + math.exp(-logit)) for chance, logit in zip(chances, logits, strict=True))
    total = sum(map(math.exp, logits))
    return sum(
        math.exp(logit) / total * sum(chance * bit for chance, bit in zip(chances, truth_row(gate), strict=True))
        for gate, logit in enumerate(logits)
    )


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_soft_coefficients_are_the_mixture(parametrization: str) -> None:
    logits = random_logits(parametrization)
    coefficients = soft_coefficients(logits, parametrization)
    assert coefficients.shape == (5, 7, 4)
    assert coefficients.dtype == torch.float64
    for (i, j), (a, b) in itertools.product(
        itertools.product(range(5), range(7)), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.3, 0.8)]
    ):
        c0, c1, c2, c3 = coefficients[i, j].tolist()
        expected = brute_force_output(logits[i, j].tolist(), parametrization, a, b)
        assert c0 + c1 * a + c2 * b + c3 * a * b == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_soft_coefficients_are_differentiable(parametrization: str) -> None:
    logits = random_logits(parametrization)[0, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: soft_coefficients(logits, parametrization), logits)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_soft_coefficients_keep_the_dtype(parametrization: str) -> None:
    assert soft_coefficients(random_logits(parametrization, torch.float32), parametrization).dtype == torch.float32
    assert soft_coefficients(random_logits(parametrization).bfloat16(), parametrization).dtype == torch.bfloat16


def test_residual_softmax_gives_gate_a_its_published_probability() -> None:
    logits = initial_logits((3, 7), "softmax", residual_init=True, generator=None)
    probabilities = logits.softmax(-1)
    assert probabilities.shape == (3, 7, 16)
    chance = math.exp(5) / (math.exp(5) + 15)
    assert round(chance, 3) == 0.908
    torch.testing.assert_close(probabilities[..., GATE_A], torch.full((3, 7), chance))
    others = probabilities[..., [gate for gate in range(16) if gate != GATE_A]]
    torch.testing.assert_close(others, torch.full((3, 7, 15), (1 - chance) / 15))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_residual_gates_pass_a_on(parametrization: str) -> None:
    logits = initial_logits((9,), parametrization, residual_init=True, generator=None)
    assert (discrete_gates(logits, parametrization) == GATE_A).all()
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        c0, c1, c2, c3 = soft_coefficients(logits, parametrization)[0].tolist()
        assert c0 + c1 * a + c2 * b + c3 * a * b == pytest.approx(a, abs=0.06)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_random_logits_are_standard_normal_and_follow_the_generator(parametrization: str) -> None:
    first, again, other = (
        initial_logits((2000,), parametrization, False, Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (2000, NUM_LOGITS[parametrization])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.mean().item() == pytest.approx(0, abs=0.05)
    assert first.std().item() == pytest.approx(1, abs=0.05)


def test_discrete_softmax_gate_is_the_largest_logit_and_the_lowest_of_equals() -> None:
    for gate in range(16):
        logits = torch.zeros(16)
        logits[gate] = 1e-3
        assert discrete_gates(logits, "softmax") == gate
        logits[gate:] = 1e-3
        assert discrete_gates(logits, "softmax") == gate


@pytest.mark.parametrize("gate", range(16))
def test_discrete_iwp_gate_reads_its_truth_row(gate: int) -> None:
    logits = 0.01 * (2 * torch.tensor(truth_row(gate)) - 1.0)
    assert discrete_gates(logits, "iwp") == gate


def test_discrete_iwp_bit_needs_a_positive_logit() -> None:
    assert discrete_gates(torch.zeros(4), "iwp") == 0


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_discrete_coefficients_are_rows_of_the_table(parametrization: str) -> None:
    logits = random_logits(parametrization)
    gates = discrete_gates(logits, parametrization)
    assert gates.shape == (5, 7)
    assert gates.dtype == torch.int64
    assert torch.equal(discrete_coefficients(logits, parametrization), GATE_TABLE.double()[gates])


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_sharpened_logits_make_soft_coefficients_discrete(parametrization: str) -> None:
    logits = random_logits(parametrization) * 1e6
    torch.testing.assert_close(
        soft_coefficients(logits, parametrization), discrete_coefficients(logits, parametrization), rtol=0, atol=1e-9
    )


def test_unknown_parametrization() -> None:
    assert check_parametrization("iwp") == "iwp"
    with pytest.raises(ValueError, match="'gumbel' is not one of softmax, iwp"):
        check_parametrization("gumbel")
