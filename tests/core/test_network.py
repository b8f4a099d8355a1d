"""The network of `build_model` in a plain PyTorch loop: as a whole where it can, and always what its layers compute."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convlogic_core import build_model, set_estimator, soft_evaluation
from convlogic_core.ops.backend import native, native_built

from .small_networks import SPEC, adamw, check_close, data, gradients_of, images, layers_of, some_loss

pytestmark = pytest.mark.skipif(not native_built(), reason="native networks need the extension")


@pytest.mark.parametrize("estimator", ["soft", "ste"])
@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
@pytest.mark.parametrize("batch", [1, 31, 32, 33, 100, 300])
def test_scores_and_gradients_are_those_of_the_layers(
    parametrization: str, batch: int, estimator: str, whole: Mock
) -> None:
    spec = replace(SPEC, parametrization=parametrization)
    model, layers = build_model(spec, 3), layers_of(spec, 3)
    for each in (model, layers):
        set_estimator(each, estimator)
    x = images(batch)
    torch.testing.assert_close(model(x), layers(x), rtol=1e-5, atol=1e-5)
    check_close(gradients_of(model, x, some_loss), gradients_of(layers, x, some_loss))
    assert whole.call_count == 2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 70), scale=st.floats(-3, 3))
def test_any_planes_and_gradients(seed: int, batch: int, scale: float) -> None:
    model, layers = build_model(SPEC, 3), layers_of(SPEC, 3)
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(batch, *SPEC.input_shape, generator=generator)
    upstream = torch.randn(batch, SPEC.num_classes, generator=generator)
    found, expected = ([*torch.autograd.grad(m(x), [*m.parameters()], upstream)] for m in (model, layers))
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) <= 1e-3 * float(b.abs().max()) + 1e-7


@pytest.mark.parametrize("isa", native().supported_isas() if native_built() else [])
def test_every_instruction_set_agrees_with_the_layers(isa: str) -> None:
    current = native().isa()
    native().set_isa(isa)
    try:
        check_close(*(gradients_of(m, images(70), some_loss) for m in (build_model(SPEC, 3), layers_of(SPEC, 3))))
    finally:
        native().set_isa(current)


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    before, x = torch.get_num_threads(), images(200)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients_of(build_model(SPEC, 3), x, some_loss))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_plain_loop_trains_the_layers(whole: Mock) -> None:
    """The fused optimizer leaves no trace in the version of a weight: every step has to see the new ones."""
    x, y = data(SPEC)
    model, layers = build_model(SPEC, 3), layers_of(SPEC, 3)
    for each in (model, layers):
        optimizer = adamw(each)
        for number in range(8):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + number)
            optimizer.zero_grad()
            cross_entropy(each(x.float()), y).backward()
            optimizer.step()
    assert whole.call_count == 8
    for a, b in zip(model.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)


def test_passes_that_cross() -> None:
    """Two forward passes of different estimators, then their backward passes in the order of a stack."""
    x, model, layers = images(40), build_model(SPEC, 3), layers_of(SPEC, 3)
    found = []
    for each in (model, layers):
        first = some_loss(each(x))
        set_estimator(each, "ste")
        second = some_loss(each(x[:9]))
        both = [torch.autograd.grad(loss, [*each.parameters()]) for loss in (second, first)]
        found.append([gradient for gradients in both for gradient in gradients])
    check_close(*found)


def test_two_passes_of_one_network_before_their_gradients() -> None:
    x, model, layers = images(40), build_model(SPEC, 3), layers_of(SPEC, 3)
    found = []
    for each in (model, layers):
        first, second = some_loss(each(x)), some_loss(each(x[:9]))
        both = [torch.autograd.grad(loss, [*each.parameters()]) for loss in (first, second)]
        found.append([gradient for gradients in both for gradient in gradients])
    check_close(*found)


def test_weights_changed_between_the_passes_are_an_error() -> None:
    model = build_model(SPEC, 3)
    scores = model(images(4))
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


def freeze(model: nn.Module) -> None:
    next(iter(model.parameters())).requires_grad_(False)


NOT_WHOLE: dict[str, Callable[[nn.Sequential, Tensor], Tensor]] = {
    "evaluation": lambda model, x: model.eval()(x),
    "soft evaluation": lambda model, x: soft(model, x),
    "one layer in evaluation": lambda model, x: (model[0].eval(), model(x))[1],
    "gumbel": lambda model, x: (set_estimator(model, "gumbel"), torch.manual_seed(0), model(x))[2],
    "double": lambda model, x: model.double()(x.double()),
    "an input that needs a gradient": lambda model, x: model(x.requires_grad_()),
    "no image": lambda model, x: model(x[:0]),
    "a frozen layer": lambda model, x: (freeze(model), model(x))[1],
    "the reference": lambda model, x: ([setattr(m, "implementation", "python") for m in model], model(x))[1],
    "a hook": lambda model, x: (model[1].register_forward_hook(lambda *_: None), model(x))[1],
    "another tensor class": lambda model, x: model(x.as_subclass(Subclass)),
}


class Subclass(Tensor):
    pass


def soft(model: nn.Module, x: Tensor) -> Tensor:
    with soft_evaluation(model):
        y: Tensor = model(x)
    return y


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_what_goes_through_the_layers(case: str, whole: Mock) -> None:
    found = NOT_WHOLE[case](build_model(SPEC, 3), images(5))
    assert whole.call_count == 0
    torch.testing.assert_close(found, NOT_WHOLE[case](layers_of(SPEC, 3), images(5)), rtol=1e-5, atol=1e-5)


def test_changes_between_passes_are_seen() -> None:
    x, model, layers = images(5), build_model(SPEC, 3), layers_of(SPEC, 3)
    for change in (
        lambda m: setattr(m[-1], "tau", 0.3),
        lambda m: m.load_state_dict(build_model(SPEC, 4).state_dict()),
        lambda m: m[1].weights.data.neg_(),
        lambda m: setattr(m[3], "weights", nn.Parameter(m[3].weights.detach().clone() * 2)),
        lambda m: m[0].selection.copy_(m[0].selection.flip(0)),
        lambda m: set_estimator(m, "ste"),
    ):
        for each in (model, layers):
            change(each)
        torch.testing.assert_close(model(x), layers(x), rtol=1e-5, atol=1e-5)
        check_close(gradients_of(model, x, some_loss), gradients_of(layers, x, some_loss))


def test_images_that_do_not_fit_are_refused_as_by_the_layers() -> None:
    for x in (torch.zeros(2, 3, 11, 9), torch.zeros(2, 2, 12, 12), torch.zeros(2, 198)):
        messages = []
        for model in (build_model(SPEC, 3), layers_of(SPEC, 3)):
            with pytest.raises(ValueError, match="expects") as error:
                model(x)
            messages.append(str(error.value).split(", got")[0].rpartition("expects")[2])
        assert messages[0] == messages[1]


def test_any_memory_order_and_none_of_the_input_kept_from_change() -> None:
    model, x = build_model(SPEC, 3), images(40)
    expected = gradients_of(model, x, some_loss)
    batch_innermost = x.movedim(0, -1).contiguous().movedim(-1, 0)
    for other in (batch_innermost, x.flip(0).flip(0), torch.cat([x, x], -1)[..., : x.shape[-1]]):
        assert all(torch.equal(a, b) for a, b in zip(gradients_of(model, other, some_loss), expected, strict=True))


def test_without_gradients(whole: Mock) -> None:
    model = build_model(SPEC, 3)
    with torch.no_grad():
        scores = model(images(40))
    assert whole.call_count == 1 and not scores.requires_grad
    torch.testing.assert_close(scores, model(images(40)).detach(), rtol=0, atol=0)


def test_copies_run_on_their_own_weights() -> None:
    model = build_model(SPEC, 3)
    x = images(7)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        with torch.no_grad():
            twin[0].weights.neg_()
        assert not torch.equal(twin(x), expected)
        assert torch.equal(model(x), expected)


def test_threads_may_share_a_network() -> None:
    model = build_model(SPEC, 3)
    batches = [images(40, seed) for seed in range(8)]
    expected = [gradients_of(model, x, some_loss) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda x: gradients_of(model, x, some_loss), batches * 4)]
    for number, gradients in enumerate(found):
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected[number % 8], strict=True))


def test_a_network_is_freed_with_its_last_reference() -> None:
    network = build_model(SPEC, 3)
    network(images(5))
    gone = weakref.ref(network)
    gc.disable()  # what is left to the collector may lie in memory for long
    try:
        del network
        assert gone() is None
    finally:
        gc.enable()


def test_a_seed_draws_the_same_under_any_default_device() -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_model(SPEC, 3).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in build_model(SPEC, 3).state_dict().items()}
