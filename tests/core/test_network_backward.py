"""What becomes of a network, or of what autograd keeps of it, between a forward and its backward pass."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from convlogic_core import build_model, set_estimator
from convlogic_core.network import native_network
from convlogic_core.ops.backend import native_built

from .small_networks import SPEC, check_close, gradients_of, images, layers_of, some_loss

pytestmark = pytest.mark.skipif(not native_built(), reason="native networks need the extension")


def logic_layers(model: nn.Module) -> Iterator[Any]:
    return (layer for layer in model.children() if hasattr(layer, "weights"))


def other_weights(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: (weights.detach() + torch.randn(weights.shape, generator=generator)).requires_grad_()
        for name, weights in model.named_parameters()
    }


def functional(model: nn.Module, x: Tensor) -> list[Tensor]:
    weights = other_weights(model)
    return [*torch.autograd.grad(some_loss(functional_call(model, weights, x)), [*weights.values()])]


def gradient_step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """As MAML, of first order: gradients at weights that are no parameters."""
    weights = dict(model.named_parameters())
    gradients = torch.autograd.grad(some_loss(functional_call(model, weights, x)), [*weights.values()])
    stepped = {name: w - 0.5 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    return [*torch.autograd.grad(some_loss(functional_call(model, stepped, x)), [*weights.values()])]


def after(change: Callable[[nn.Module, Tensor], object]) -> Callable[[nn.Module, Tensor], list[Tensor]]:
    """The gradients of weights that the forward pass saw."""

    def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
        weights, loss = [*model.parameters()], some_loss(model(x))
        change(model, x)
        return [*torch.autograd.grad(loss, weights)]

    return gradients


def replace_weights(model: nn.Module, x: Tensor) -> None:
    for layer in logic_layers(model):
        layer.weights = nn.Parameter(torch.zeros(1))


def negate(model: nn.Module, x: Tensor) -> None:
    for weights in model.parameters():
        weights.data = -weights.data


def discrete_pass(model: nn.Module, x: Tensor) -> None:
    set_estimator(model, "ste")
    model(x[:9])


def softly(model: nn.Module, x: Tensor) -> list[Tensor]:
    """A pass of discrete gates, the layers soft at its backward pass."""
    set_estimator(model, "ste")
    return after(lambda model, x: (model(x[:9]), set_estimator(model, "soft")))(model, x)


def with_hooks(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Callable[..., list[Tensor]]:
    def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
        with saved_tensors_hooks(pack, unpack):
            return gradients_of(model, x, some_loss)

    return gradients


CASES: dict[str, Callable[[nn.Module, Tensor], list[Tensor]]] = {
    "functional_call": functional,
    "a gradient step": gradient_step,
    "other parameters": after(replace_weights),
    "other values": after(negate),
    "another device": after(lambda model, x: model.to("meta")),
    "another estimator": after(lambda model, x: (model(x[:9]), set_estimator(model, "ste"))),
    "a discrete pass": after(discrete_pass),
    "a soft estimator": softly,
    "another temperature": after(lambda model, x: (setattr(model[-1], "tau", 3.0), model(x))),
    "evaluation": after(lambda model, x: (model.eval(), model(x))),
    "saved tensors in another order": with_hooks(
        lambda t: t.detach().clone(memory_format=torch.contiguous_format), lambda t: t
    ),
    "saved tensors transposed": with_hooks(
        lambda t: t.detach().mT.contiguous() if t.ndim > 1 else t, lambda t: t.mT if t.ndim > 1 else t
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_layers(case: str, whole: Mock) -> None:
    x = images(40)
    check_close(CASES[case](build_model(SPEC, 3), x), CASES[case](layers_of(SPEC, 3), x))
    assert whole.called


def shrink(tensor: Tensor) -> None:
    tensor.data = tensor.data[..., :3, :]


UNREADABLE: dict[str, Callable[[Any], object]] = {
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "fewer gates": lambda model: shrink(model[4].weights),
    "fewer logits": lambda model: [setattr(p, "data", p.data[..., :4]) for p in model.parameters()],
    "one number": lambda model: setattr(model[0].weights, "data", torch.zeros(1)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_weights_that_can_no_longer_be_read_are_an_error(case: str, whole: Mock) -> None:
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        scores = model(images(4))
        UNREADABLE[case](model)
        with pytest.raises(
            (ValueError, RuntimeError), match=r"backward pass|takes contiguous weights|invalid gradient"
        ):
            scores.sum().backward()
    assert whole.call_count == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("values", lambda t: t.double()),
        ("values", lambda t: t[..., :-1]),
        ("coefficients", lambda t: t[:-1]),
        ("grad_scores", lambda t: t.double()),
        ("grad_scores", lambda t: t[:, :-1]),
    ],
)
def test_tensors_unlike_those_of_the_forward_pass_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    model, x = build_model(SPEC, 3), images(4)
    network = native_network(model, x.shape[1:])
    assert network is not None
    weights = [*model.parameters()]
    scores, coefficients = network.forward(x.movedim(0, -1).contiguous().movedim(-1, 0), weights)
    given = {"grad_scores": scores, "values": x, "coefficients": coefficients}
    with pytest.raises(ValueError, match=f"takes {name}"):
        network.backward(**(given | {name: change(given[name])}), weights=weights)


def test_a_gradient_that_is_not_contiguous() -> None:
    x = images(40)
    found = (gradients_of(model, x, torch.sum) for model in (build_model(SPEC, 3), layers_of(SPEC, 3)))
    check_close(*found)


def test_gradients_have_no_gradients_as_those_of_the_layers_have_none() -> None:
    for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
        weights = [*model.parameters()]
        gradients = torch.autograd.grad(some_loss(model(images(4))), weights, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            sum((gradient**2).sum() for gradient in gradients).backward()


def test_gradients_twice() -> None:
    x = images(40)

    def twice(model: nn.Module) -> list[Tensor]:
        weights, loss = [*model.parameters()], some_loss(model(x))
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        return [*first, *torch.autograd.grad(loss, weights)]

    check_close(twice(build_model(SPEC, 3)), twice(layers_of(SPEC, 3)))
