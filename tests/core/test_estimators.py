"""Estimators on logits alone and in layers. Shapes: P logits a gate."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convlogic_core import ConvLogicLayer, LogicLayer, set_estimator, soft_evaluation
from convlogic_core.estimators import ESTIMATORS, check_estimator, training_coefficients
from convlogic_core.parametrization import discrete_coefficients, sampling_noise, soft_coefficients

PARAMETRIZATIONS = ["softmax", "iwp"]
NUM_LOGITS = {"softmax": 16, "iwp": 4}


def random_logits(parametrization: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(40, NUM_LOGITS[parametrization], generator=generator, dtype=dtype)


def gradient(coefficients: Tensor, logits: Tensor) -> Tensor:
    """Of a fixed linear function of the coefficients."""
    direction = torch.rand(coefficients.shape, generator=torch.Generator().manual_seed(1), dtype=coefficients.dtype)
    (grad,) = torch.autograd.grad((coefficients * direction).sum(), logits)
    return grad


def network(implementation: str = "python", **arguments: Any) -> nn.Sequential:
    """(N, 2, 6, 6) -> (N, 20)"""
    shared = {"implementation": implementation, "seed": 0, **arguments}
    return nn.Sequential(ConvLogicLayer(2, 3, **shared), nn.Flatten(), LogicLayer(27, 20, **shared))


def bits() -> Tensor:
    return torch.randint(0, 2, (4, 2, 6, 6), generator=torch.Generator().manual_seed(3)).float()


# The coefficients


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_soft_is_the_mixture_and_draws_nothing(parametrization: str) -> None:
    logits = random_logits(parametrization)
    before = torch.get_rng_state()
    assert torch.equal(
        training_coefficients(logits, parametrization, "soft"), soft_coefficients(logits, parametrization)
    )
    training_coefficients(logits, parametrization, "ste")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_ste_is_discrete_forward_and_soft_backward(parametrization: str) -> None:
    logits = random_logits(parametrization).requires_grad_()
    coefficients = training_coefficients(logits, parametrization, "ste")
    assert torch.equal(coefficients, discrete_coefficients(logits, parametrization))
    soft = soft_coefficients(logits, parametrization)
    assert not torch.equal(coefficients, soft)
    assert torch.equal(gradient(coefficients, logits), gradient(soft, logits))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_gumbel_is_straight_through_at_the_noisy_logits(parametrization: str) -> None:
    logits = random_logits(parametrization).requires_grad_()
    torch.manual_seed(5)
    coefficients = training_coefficients(logits, parametrization, "gumbel")
    torch.manual_seed(5)
    noisy = (logits + sampling_noise(logits, parametrization)).detach().requires_grad_()
    assert torch.equal(coefficients, discrete_coefficients(noisy, parametrization))
    assert not torch.equal(coefficients, discrete_coefficients(logits, parametrization))
    assert torch.equal(gradient(coefficients, logits), gradient(soft_coefficients(noisy, parametrization), noisy))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_gumbel_follows_the_global_seed(parametrization: str) -> None:
    logits = random_logits(parametrization)
    torch.manual_seed(5)
    first, second = (training_coefficients(logits, parametrization, "gumbel") for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(training_coefficients(logits, parametrization, "gumbel"), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_gumbel_samples_gates_as_the_mixture_weighs_them(parametrization: str) -> None:
    """The mean of sampled coefficients is the mixture's. They lie in [-2, 2]: standard error at most 2/200."""
    torch.manual_seed(0)
    num_samples = 200**2
    for logits in random_logits(parametrization)[:4]:
        sampled = training_coefficients(logits.expand(num_samples, -1), parametrization, "gumbel")
        expected = soft_coefficients(logits, parametrization)
        torch.testing.assert_close(sampled.mean(0), expected, rtol=0, atol=4 * 2 / 200)


def test_softmax_noise_makes_the_argmax_a_sample_of_the_softmax() -> None:
    torch.manual_seed(0)
    num_samples = 40_000
    logits = random_logits("softmax")[0]
    winners = (logits + sampling_noise(logits.expand(num_samples, -1), "softmax")).argmax(-1)
    frequencies = torch.bincount(winners, minlength=16) / num_samples
    # four standard errors of the likeliest gate
    torch.testing.assert_close(frequencies, logits.softmax(-1), rtol=0, atol=0.01)


def test_iwp_noise_makes_the_sign_a_sample_of_the_sigmoid() -> None:
    torch.manual_seed(0)
    logits = random_logits("iwp")[0]
    bits = logits + sampling_noise(logits.expand(40_000, -1), "iwp") > 0
    torch.testing.assert_close(bits.float().mean(0), logits.sigmoid(), rtol=0, atol=0.01)


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_noise_is_finite_and_keeps_the_dtype(
    parametrization: str, dtype: torch.dtype, end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(parametrization, dtype).requires_grad_()
    assert training_coefficients(logits, parametrization, "gumbel").dtype == dtype
    monkeypatch.setattr(Tensor, "uniform_", lambda noise: noise.fill_(end))
    assert sampling_noise(logits, parametrization).isfinite().all()


@pytest.mark.parametrize("estimator", ["gumbel", "ste"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_nothing_flows_where_nothing_is_asked(parametrization: str, estimator: str) -> None:
    assert not training_coefficients(random_logits(parametrization), parametrization, estimator).requires_grad


def test_unknown_estimators() -> None:
    assert [check_estimator(name) for name in ESTIMATORS] == ["soft", "gumbel", "ste"]
    message = "estimator 'hard' is not one of soft, gumbel, ste"
    with pytest.raises(ValueError, match=message):
        check_estimator("hard")
    with pytest.raises(ValueError, match=message):
        network(estimator="hard")
    model = network()
    with pytest.raises(ValueError, match=message):
        set_estimator(model, "hard")
    model[2].estimator = "hard"
    with pytest.raises(ValueError, match=message):
        model(bits())


# In layers


@pytest.mark.parametrize("estimator", ["gumbel", "ste"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_training_computes_bits_from_bits(parametrization: str, estimator: str, implementation: str) -> None:
    """Through padding and OR-pooling too."""
    model = network(implementation, parametrization=parametrization, estimator=estimator).train()
    y = model(bits())
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(y, model.eval()(bits())) == (estimator == "ste")


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_weights_of_one_layer_get_the_soft_gradient(parametrization: str, implementation: str) -> None:
    """A dense layer is linear in its coefficients, so there the gradients are the same, not merely of one kind."""
    layer = LogicLayer(27, 20, parametrization=parametrization, implementation=implementation, seed=0)
    x = torch.rand(50, 27, generator=torch.Generator().manual_seed(3))
    gradients = []
    for estimator in ("soft", "ste"):
        layer.estimator = estimator
        y = layer(x)
        (grad,) = torch.autograd.grad(y, layer.weights, torch.ones_like(y))
        gradients.append(grad)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("estimator", ["gumbel", "ste"])
def test_every_weight_of_a_network_is_reached(estimator: str, implementation: str) -> None:
    torch.manual_seed(0)
    model = network(implementation, estimator=estimator)
    model(torch.rand(64, 2, 6, 6)).sum().backward()
    for layer in (model[0], model[2]):
        assert layer.weights.grad.isfinite().all()
        assert layer.weights.grad.any(-1).float().mean() > 0.5


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_estimators_switch_at_any_time(parametrization: str) -> None:
    model = network(parametrization=parametrization)
    soft = model(bits())
    set_estimator(model, "ste")
    assert [model[0].estimator, model[2].estimator] == ["ste", "ste"]
    hard = model(bits())
    assert torch.equal(hard, hard.round())
    set_estimator(model, "soft")
    assert torch.equal(model(bits()), soft)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_evaluation_does_not_know_the_estimator(parametrization: str, estimator: str) -> None:
    plain, model = network(parametrization=parametrization), network(parametrization=parametrization)
    set_estimator(model, estimator)
    before = torch.get_rng_state()
    assert torch.equal(model.eval()(bits()), plain.eval()(bits()))
    with soft_evaluation(model):
        soft = model(bits())
    assert torch.equal(soft, plain.train()(bits()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_tells_its_estimator() -> None:
    model = network(estimator="gumbel")
    assert repr(model).count("softmax, gumbel train") == 2
    assert "gumbel" not in repr(model.eval())


def test_an_estimator_is_no_part_of_the_state() -> None:
    model = network(estimator="gumbel")
    assert list(model.state_dict()) == list(network().state_dict())
    assert copy.deepcopy(model)[2].estimator == "gumbel"
