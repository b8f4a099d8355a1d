"""Which way a step takes, for what model, optimizer and data are and for what they become between two steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer, build_model, set_estimator
from convlogic_core.network_step import NetworkStep
from convlogic_core.ops.backend import native_built
from convlogic_core.training_step import PlainStep, training_step

from .small_networks import SPEC, adamw, data, layers_of, native_step

pytestmark = pytest.mark.skipif(not native_built(), reason="native steps need the extension")


def stack(**dense: object) -> nn.Sequential:
    return nn.Sequential(
        ConvLogicLayer(2, 4, seed=1), nn.Flatten(), LogicLayer(80, 60, seed=2, **dense), GroupSum(3, 2.0)
    )


def test_other_models_go_through_the_layers() -> None:
    x, y = torch.zeros(4, 2, 11, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)

    def kind(model: nn.Module) -> type:
        return type(training_step(model, adamw(model), x, y))

    assert kind(stack()) is NetworkStep
    assert kind(stack(implementation="python")) is PlainStep
    assert kind(stack(grad_factor=2.0)) is PlainStep
    assert kind(stack().double()) is PlainStep
    assert kind(nn.Sequential(*stack(), nn.Identity())) is PlainStep
    hooked = stack()
    hooked[0].register_forward_hook(lambda *_: None)
    assert kind(hooked) is PlainStep
    frozen = stack()
    frozen[0].weights.requires_grad_(False)
    assert kind(frozen) is PlainStep
    wide = nn.Sequential(ConvLogicLayer(2, 4), nn.Flatten(), LogicLayer(80, 60), LogicLayer(60, 60), GroupSum(3, 2.0))
    assert kind(wide) is PlainStep  # outputs that feed two gates are no forest


def test_other_optimizers_and_data_go_through_the_layers() -> None:
    x, y = data(SPEC)
    model = build_model(SPEC, 3)
    other = torch.optim.AdamW(model.parameters(), amsgrad=True)
    assert NetworkStep.of(model, other, x, y) is None
    assert NetworkStep.of(model, adamw(model), x.float(), y) is None
    assert NetworkStep.of(model, adamw(model), x, y.int()) is None
    assert NetworkStep.of(model, adamw(model), x, y[:-1]) is None


def test_another_kind_of_optimizer_goes_through_the_layers() -> None:
    class Halved(torch.optim.AdamW):
        pass

    x, y = data(SPEC)
    model = build_model(SPEC, 3)
    assert NetworkStep.of(model, Halved(model.parameters()), x, y) is None


def test_gumbel_goes_through_the_layers() -> None:
    x, y = data(SPEC)
    model, twin = build_model(SPEC, 3), layers_of(SPEC, 3)
    step, _ = native_step(model, x, y)
    for each in (model, twin):
        set_estimator(each, "gumbel")
    torch.manual_seed(0)
    loss = step(torch.arange(20), 0.1)
    torch.manual_seed(0)
    assert torch.equal(loss, PlainStep(twin, adamw(twin), x, y)(torch.arange(20), 0.1))


def test_steps_may_change_between_network_and_layers() -> None:
    x, y = data(SPEC)
    rows = torch.arange(60)
    model, expected = build_model(SPEC, 3), layers_of(SPEC, 3)
    step, optimizer = native_step(model, x, y)
    other = PlainStep(expected, adamw(expected), x, y)
    for way in (step, PlainStep(model, optimizer, x, y), step):
        torch.testing.assert_close(way(rows, 0.02), other(rows, 0.02), rtol=1e-4, atol=1e-4)
    assert all(int(optimizer.state[p]["step"]) == 3 for p in model.parameters())


def test_a_new_estimator_or_new_weights_are_seen() -> None:
    x, y = data(SPEC)
    rows = torch.arange(len(x))
    model = build_model(SPEC, 3)
    step, _ = native_step(model, x, y)
    step(rows, 0.1)
    for change in (
        lambda: set_estimator(model, "ste"),
        lambda: model.load_state_dict(build_model(SPEC, 4).state_dict()),
    ):
        change()
        twin = layers_of(SPEC, 3)
        twin.load_state_dict(model.state_dict())
        set_estimator(twin, model[0].estimator)
        torch.testing.assert_close(step(rows, 0.1), PlainStep(twin, adamw(twin), x, y)(rows, 0.1), rtol=1e-4, atol=1e-4)


def test_what_was_changed_between_steps_is_seen() -> None:
    x, y = data(SPEC)
    rows = torch.arange(len(x))
    model = build_model(SPEC, 3)
    step, _ = native_step(model, x, y)
    step(rows, 0.01)
    head = model[-1]
    assert isinstance(head, GroupSum)
    head.tau = 0.3
    twin = layers_of(replace(SPEC, tau=0.3), 3)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(step(rows, 0.01), PlainStep(twin, adamw(twin), x, y)(rows, 0.01), rtol=1e-4, atol=1e-4)
    frozen = next(iter(model.parameters())).requires_grad_(False)
    before = frozen.clone()
    step(rows, 0.01)
    assert torch.equal(frozen, before)


def test_a_hook_registered_later_runs() -> None:
    x, y = data(SPEC)
    model = build_model(SPEC, 3)
    step, _ = native_step(model, x, y)
    step(torch.arange(9), 0.01)
    calls: list[int] = []
    model[1].register_full_backward_hook(lambda *_: calls.append(1))
    step(torch.arange(9), 0.01)
    assert calls == [1]


def goes_through_the_layers(change: Callable[[nn.Sequential, torch.optim.AdamW], object]) -> bool:
    """Whether the step after this change of model and optimizer does, in which case it must be that of the layers."""
    x, y = data(SPEC)
    rows = torch.arange(60)
    results, ran = [], []
    for kind, build in ((NetworkStep.of, build_model), (PlainStep, layers_of)):
        model = build(SPEC, 3)
        optimizer = adamw(model)
        step = kind(model, optimizer, x, y)
        assert step is not None
        step(rows, 0.01)
        change(model, optimizer)
        with pytest.MonkeyPatch.context() as patch:
            run = Mock(side_effect=PlainStep(model, optimizer, x, y).run)
            patch.setattr(PlainStep, "run", run)
            loss = step(rows, 0.01)
        results.append([loss, *(parameter.detach() for parameter in model.parameters())])
        ran.append(run.called)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    return ran[0]


def make_amsgrad(optimizer: torch.optim.AdamW) -> None:
    optimizer.param_groups[0]["amsgrad"] = True
    for state in optimizer.state.values():
        state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()


def transposed(layer: Any) -> torch.Tensor:
    weights: torch.Tensor = layer.weights.detach().mT.contiguous().mT
    return weights


LATER: dict[str, tuple[bool, Callable[[Any, torch.optim.AdamW], object]]] = {
    "nothing": (False, lambda model, optimizer: None),
    "a larger window": (False, lambda model, optimizer: vars(model[0]).update(kernel=(5, 3), padding=(2, 1))),
    "tau": (False, lambda model, optimizer: setattr(model[-1], "tau", 0.3)),
    "implementation": (True, lambda model, optimizer: [setattr(layer, "implementation", "python") for layer in model]),
    "grad_factor": (True, lambda model, optimizer: setattr(model[1], "grad_factor", 2.0)),
    "another forward of all": (True, lambda model, optimizer: setattr(model, "forward", model.forward)),
    "another forward": (True, lambda model, optimizer: setattr(model[0], "forward", model[0].forward)),
    "weights elsewhere": (False, lambda model, optimizer: setattr(model[0].weights, "data", -model[0].weights.data)),
    "transposed weights": (True, lambda model, optimizer: setattr(model[4].weights, "data", transposed(model[4]))),
    "numpy's tau": (False, lambda model, optimizer: setattr(model[-1], "tau", np.float64(0.3))),
    "a tensor tau": (True, lambda model, optimizer: setattr(model[-1], "tau", torch.tensor(0.3))),
    "a frozen layer": (True, lambda model, optimizer: model[0].weights.requires_grad_(False)),
    "a hook of weights": (True, lambda model, optimizer: model[0].weights.register_hook(lambda grad: 2 * grad)),
    "amsgrad": (True, lambda model, optimizer: make_amsgrad(optimizer)),
    "maximize": (True, lambda model, optimizer: optimizer.param_groups[0].update(maximize=True)),
    "an optimizer's hook": (True, lambda model, optimizer: optimizer.register_step_pre_hook(lambda *_: None)),
    "fewer parameters": (True, lambda model, optimizer: optimizer.param_groups[0]["params"].pop()),
}


@pytest.mark.parametrize("change", LATER)
def test_what_model_and_optimizer_become_between_steps_is_seen(change: str) -> None:
    expected, make = LATER[change]
    assert goes_through_the_layers(make) is expected


@pytest.mark.parametrize("kind", [NetworkStep.of, PlainStep])
def test_weights_cut_short_between_steps_are_an_error(kind: Callable[..., Any]) -> None:
    x, y = data(SPEC)
    model = build_model(SPEC, 3)
    step = kind(model, adamw(model), x, y)
    step(torch.arange(9), 0.01)
    model[4].weights.data = model[4].weights.data[:3]
    with pytest.raises(ValueError, match="logic_forest needs gate_rows"):
        step(torch.arange(9), 0.01)
