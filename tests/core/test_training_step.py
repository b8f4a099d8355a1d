"""Every way to make a step computes what the layers compute."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convlogic_core import (
    ConvLogicLayer,
    ConvSpec,
    DenseSpec,
    GroupSum,
    LogicLayer,
    ModelSpec,
    build_model,
    set_estimator,
    soft_evaluation,
)
from convlogic_core.native_network import NativeNetwork, NetworkStep
from convlogic_core.ops.backend import native, native_built
from convlogic_core.training_step import PlainStep, training_step

pytestmark = pytest.mark.skipif(not native_built(), reason="native steps need the extension")
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


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


def check_same_gradients(
    spec: ModelSpec, batch: int, estimator: str = "soft", tolerance: float = 1e-4, reaches_all: bool = True
) -> None:
    """The first moment after one step is a tenth of the gradient, the second a thousandth of its square.

    Gradients of early layers are small: each tensor is compared on its own scale.
    """
    x, y = data(spec)
    rows = torch.randint(0, len(x), (batch,), generator=torch.Generator().manual_seed(2))
    of_layers, of_network = build_model(spec, 3), build_model(spec, 3)
    for model in (of_layers, of_network):
        set_estimator(model, estimator)
    expected, expected_loss = adamw(of_layers), torch.zeros(())
    expected_loss = PlainStep(of_layers, expected, x, y)(rows, 0.05)
    step, optimizer = native_step(of_network, x, y)
    loss = step(rows, 0.05)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for a, b in zip(of_layers.parameters(), of_network.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            of_a, of_b = expected.state[a][moment], optimizer.state[b][moment]
            greatest = float(of_a.abs().max())
            assert greatest > 0 or not reaches_all, f"no gradient reaches {tuple(a.shape)}"
            error = float((of_b - of_a).abs().max())
            assert error <= tolerance * greatest, f"{moment} {tuple(a.shape)}: {error} off, the greatest is {greatest}"


@pytest.mark.parametrize("estimator", ["soft", "ste"])
@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
@pytest.mark.parametrize("batch", [1, 31, 32, 100, 600])
def test_gradients_are_those_of_the_layers(parametrization: str, batch: int, estimator: str) -> None:
    check_same_gradients(replace(SPEC, parametrization=parametrization), batch, estimator)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 3),
    height=st.integers(6, 13),
    width=st.integers(6, 13),
    blocks=st.lists(
        st.tuples(
            st.integers(1, 5), st.integers(1, 4), st.integers(1, 2), st.integers(0, 2), st.integers(1, 4), st.booleans()
        ),
        min_size=1,
        max_size=3,
    ),
    num_dense=st.integers(1, 4),
    parametrization=st.sampled_from(["softmax", "iwp"]),
)
def test_gradients_agree_for_any_plain_stack(
    channels: int,
    height: int,
    width: int,
    blocks: list[tuple[int, int, int, int, int, bool]],
    num_dense: int,
    parametrization: str,
) -> None:
    conv = tuple(
        ConvSpec(k, kernel, stride, padding, tree_depth=depth, pool=1 + pooled, residual_init=False)
        for k, kernel, stride, padding, depth, pooled in blocks
    )
    try:
        flat = ModelSpec((channels, height, width), conv, (), 1, 1.0).flat_features
        widest = -(-flat // 2**num_dense) * 2 ** (num_dense - 1)
        dense = tuple(DenseSpec(2 * widest >> i, residual_init=False) for i in range(num_dense))
        spec = ModelSpec((channels, height, width), conv, dense, 2, 1.5, parametrization)
    except ValueError:
        assume(False)
    # stacks in which terms of the gradients cancel are less exact; all leaves of a block may lie in the padding
    check_same_gradients(spec, 40, tolerance=1e-3, reaches_all=False)


@pytest.mark.parametrize("isa", native().supported_isas() if native_built() else [])
def test_every_instruction_set_agrees_with_the_layers(isa: str) -> None:
    current = native().isa()
    native().set_isa(isa)
    try:
        check_same_gradients(SPEC, 100)
        check_same_gradients(replace(SPEC, parametrization="iwp"), 100)
    finally:
        native().set_isa(current)


@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
def test_weights_do_not_depend_on_the_number_of_threads(parametrization: str) -> None:
    spec = replace(SPEC, parametrization=parametrization)
    x, y = data(spec)
    trained = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        model = build_model(spec, 3)
        step, _ = native_step(model, x, y)
        generator = torch.Generator().manual_seed(5)
        for _ in range(200):
            step(torch.randint(0, len(x), (100,), generator=generator), 0.01)
        trained.append(model.state_dict())
    for other in trained[1:]:
        assert all(torch.equal(trained[0][name], other[name]) for name in other)


def test_training_agrees_with_the_layers_over_steps() -> None:
    x, y = data(SPEC)
    of_layers, of_network = build_model(SPEC, 3), build_model(SPEC, 3)
    layers, (network, _) = PlainStep(of_layers, adamw(of_layers), x, y), native_step(of_network, x, y)
    rows = torch.arange(len(x))
    for number in range(10):
        a, b = layers(rows, 0.05 / (1 + number)), network(rows, 0.05 / (1 + number))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    for a, b in zip(of_layers.parameters(), of_network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)


def test_steps_may_change_between_network_and_layers() -> None:
    x, y = data(SPEC)
    rows = torch.arange(60)
    model, expected = build_model(SPEC, 3), build_model(SPEC, 3)
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
        twin = build_model(SPEC, 3)
        twin.load_state_dict(model.state_dict())
        set_estimator(twin, model[0].estimator)
        torch.testing.assert_close(step(rows, 0.1), PlainStep(twin, adamw(twin), x, y)(rows, 0.1), rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_the_soft_model() -> None:
    x, _ = data(SPEC, 77)
    model = build_model(SPEC, 3).eval()
    set_estimator(model, "ste")
    network = NativeNetwork.of(model, x.shape[1:])
    assert network is not None
    with torch.no_grad(), soft_evaluation(model):
        torch.testing.assert_close(network.scores(x), model(x.float()), rtol=1e-5, atol=1e-5)


def test_gumbel_goes_through_the_layers() -> None:
    x, y = data(SPEC)
    model, twin = build_model(SPEC, 3), build_model(SPEC, 3)
    step, _ = native_step(model, x, y)
    for each in (model, twin):
        set_estimator(each, "gumbel")
    torch.manual_seed(0)
    loss = step(torch.arange(20), 0.1)
    torch.manual_seed(0)
    assert torch.equal(loss, PlainStep(twin, adamw(twin), x, y)(torch.arange(20), 0.1))


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


@pytest.mark.parametrize(("rows", "label", "message"), [([0, 150], 0, "row 150"), ([0], 3, "label 3"), ([-1], 0, "-1")])
def test_rows_and_labels_outside_the_data_are_refused(rows: list[int], label: int, message: str) -> None:
    x, y = data(SPEC)
    y[0] = label
    step, _ = native_step(build_model(SPEC, 3), x, y)
    with pytest.raises(IndexError, match=message):
        step(torch.tensor(rows), 0.1)


def test_what_was_changed_between_steps_is_seen() -> None:
    x, y = data(SPEC)
    rows = torch.arange(len(x))
    model = build_model(SPEC, 3)
    step, _ = native_step(model, x, y)
    step(rows, 0.01)
    head = model[-1]
    assert isinstance(head, GroupSum)
    head.tau = 0.3
    twin = build_model(replace(SPEC, tau=0.3), 3)
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
    for kind in (NetworkStep.of, PlainStep):
        model = build_model(SPEC, 3)
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


LATER: dict[str, tuple[bool, Callable[[Any, torch.optim.AdamW], object]]] = {
    "nothing": (False, lambda model, optimizer: None),
    "a larger window": (False, lambda model, optimizer: vars(model[0]).update(kernel=(5, 3), padding=(2, 1))),
    "tau": (False, lambda model, optimizer: setattr(model[-1], "tau", 0.3)),
    "implementation": (True, lambda model, optimizer: [setattr(layer, "implementation", "python") for layer in model]),
    "grad_factor": (True, lambda model, optimizer: setattr(model[1], "grad_factor", 2.0)),
    "a frozen layer": (True, lambda model, optimizer: model[0].weights.requires_grad_(False)),
    "a hook of weights": (True, lambda model, optimizer: model[0].weights.register_hook(lambda grad: 2 * grad)),
    "amsgrad": (True, lambda model, optimizer: make_amsgrad(optimizer)),
    "maximize": (True, lambda model, optimizer: optimizer.param_groups[0].update(maximize=True)),
    "an optimizer's hook": (True, lambda model, optimizer: optimizer.register_step_pre_hook(lambda *_: None)),
    "fewer parameters": (True, lambda model, optimizer: optimizer.param_groups[0]["params"].pop()),
}


def make_amsgrad(optimizer: torch.optim.AdamW) -> None:
    optimizer.param_groups[0]["amsgrad"] = True
    for state in optimizer.state.values():
        state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()


@pytest.mark.parametrize("change", LATER)
def test_what_model_and_optimizer_become_between_steps_is_seen(change: str) -> None:
    expected, make = LATER[change]
    assert goes_through_the_layers(make) is expected


def test_another_kind_of_optimizer_goes_through_the_layers() -> None:
    class Halved(torch.optim.AdamW):
        pass

    x, y = data(SPEC)
    model = build_model(SPEC, 3)
    assert NetworkStep.of(model, Halved(model.parameters()), x, y) is None


def test_wiring_that_is_not_contiguous() -> None:
    selection = build_model(SPEC, 3)[0].selection.T.contiguous().T
    model = build_model(SPEC, 3)
    model[0].selection = selection
    x, y = data(SPEC)
    step, _ = native_step(model, x, y)
    expected = build_model(SPEC, 3)
    torch.testing.assert_close(
        step(torch.arange(9), 0.1), PlainStep(expected, adamw(expected), x, y)(torch.arange(9), 0.1)
    )


def test_other_optimizers_and_data_go_through_the_layers() -> None:
    x, y = data(SPEC)
    model = build_model(SPEC, 3)
    other = torch.optim.AdamW(model.parameters(), amsgrad=True)
    assert NetworkStep.of(model, other, x, y) is None
    assert NetworkStep.of(model, adamw(model), x.float(), y) is None
    assert NetworkStep.of(model, adamw(model), x, y.int()) is None
    assert NetworkStep.of(model, adamw(model), x, y[:-1]) is None
    assert NativeNetwork.of(model, (3, 11, 9)) is None
    assert NativeNetwork.of(model, (2, 12, 12)) is None
    tall = nn.Sequential(
        ConvLogicLayer(2, 4, kernel=6, stride=2, padding=0, pool=1), nn.Flatten(), LogicLayer(4, 6), GroupSum(3)
    )
    assert NativeNetwork.of(tall, (2, 5, 5)) is None  # the kernel is larger than the image


WRONG = [
    ("rows", torch.arange(0)),
    ("rows", torch.arange(3).int()),
    ("rows", torch.arange(4).reshape(2, 2)),
    ("y", torch.zeros(150, dtype=torch.int32)),
    ("y", torch.zeros(149, dtype=torch.int64)),
    ("x", torch.zeros(150, 2, 11, 9)),
    ("x", torch.zeros(150, 2, 9, 11, dtype=torch.uint8)),
    ("x", torch.zeros(150, 198, dtype=torch.uint8)),
    ("x", torch.zeros(150, 2, 11, 9, dtype=torch.uint8, device="meta")),
]


@pytest.mark.parametrize(("name", "tensor"), WRONG)
def test_other_tensors_are_refused(name: str, tensor: Tensor) -> None:
    x, y = data(SPEC)
    network = NativeNetwork.of(build_model(SPEC, 3), x.shape[1:])
    assert network is not None
    with pytest.raises(ValueError, match=rf"^the native network takes {name} \(.* on the CPU, got "):
        network.gradients(**({"x": x, "y": y, "rows": torch.arange(9)} | {name: tensor}))
    if name == "x":
        with pytest.raises(ValueError, match="takes x"):
            network.scores(tensor)


def test_tensors_that_are_not_contiguous() -> None:
    x, y = data(SPEC)
    network = NativeNetwork.of(build_model(SPEC, 3), x.shape[1:])
    assert network is not None
    network.compute_coefficients()
    rows = torch.arange(40)
    expected = network.gradients(x, y, rows)
    apart = x.movedim(0, -1).contiguous().movedim(-1, 0), y.repeat_interleave(2)[::2], rows.repeat_interleave(2)[::2]
    assert network.gradients(*apart) == expected


def test_a_step_needs_gradients() -> None:
    x, _ = data(SPEC)
    model = build_model(SPEC, 3)
    network = NativeNetwork.of(model, x.shape[1:])
    assert network is not None
    with pytest.raises(RuntimeError, match="a step needs gradients before it"):
        network.step(adamw(model))
