"""A step of the native network computes what a step through the layers computes."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model, set_estimator
from convlogic_core.ops.backend import native, native_built
from convlogic_core.training_step import PlainStep

from .small_networks import SPEC, adamw, data, layers_of, native_step

pytestmark = pytest.mark.skipif(not native_built(), reason="native steps need the extension")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check_same_gradients(
    spec: ModelSpec, batch: int, estimator: str = "soft", tolerance: float = 1e-4, reaches_all: bool = True
) -> None:
    """The first moment after one step is a tenth of the gradient, the second a thousandth of its square.

    Gradients of early layers are small: each tensor is compared on its own scale.
    """
    x, y = data(spec)
    rows = torch.randint(0, len(x), (batch,), generator=torch.Generator().manual_seed(2))
    of_layers, of_network = layers_of(spec, 3), build_model(spec, 3)
    for model in (of_layers, of_network):
        set_estimator(model, estimator)
    expected, expected_loss = adamw(of_layers), torch.zeros(())
    expected_loss = PlainStep(of_layers, expected, x, y)(rows, 0.05)
    step, optimizer = native_step(of_network, x, y)
    loss = step(rows, 0.05)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-5)
    for a, b in zip(of_layers.parameters(), of_network.parameters(), strict=True):
        for moment, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            of_a, of_b = expected.state[a][moment], optimizer.state[b][moment]
            greatest = float(of_a.abs().max())
            assert greatest > 0 or not reaches_all, f"no gradient reaches {tuple(a.shape)}"
            error = float((of_b - of_a).abs().max())
            assert error <= power * tolerance * greatest, (
                f"{moment} {tuple(a.shape)}: {error} off, the greatest is {greatest}"
            )


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
@example(1, 6, 11, [(1, 1, 1, 0, 3, False), (5, 1, 1, 0, 1, False)], 1, "softmax")
@example(1, 6, 6, [(1, 1, 1, 1, 1, False), (4, 1, 1, 2, 1, False)], 1, "softmax")
@example(1, 10, 13, [(1, 1, 1, 0, 1, False), (5, 1, 1, 0, 1, False)], 1, "iwp")
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
        # scores up to 4: a greater one is less exact, and the softmax's gradient in its tail by as much relatively
        spec = ModelSpec((channels, height, width), conv, dense, 2, dense[-1].out_dim / 8, parametrization)
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
    of_layers, of_network = layers_of(SPEC, 3), build_model(SPEC, 3)
    layers, (network, _) = PlainStep(of_layers, adamw(of_layers), x, y), native_step(of_network, x, y)
    rows = torch.arange(len(x))
    for number in range(10):
        a, b = layers(rows, 0.05 / (1 + number)), network(rows, 0.05 / (1 + number))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    for a, b in zip(of_layers.parameters(), of_network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)


def test_wiring_that_is_not_contiguous() -> None:
    selection = build_model(SPEC, 3)[0].selection.T.contiguous().T
    model = build_model(SPEC, 3)
    model[0].selection = selection
    x, y = data(SPEC)
    step, _ = native_step(model, x, y)
    expected = layers_of(SPEC, 3)
    torch.testing.assert_close(
        step(torch.arange(9), 0.1), PlainStep(expected, adamw(expected), x, y)(torch.arange(9), 0.1)
    )


@pytest.mark.parametrize(("rows", "label", "message"), [([0, 150], 0, "row 150"), ([0], 3, "label 3"), ([-1], 0, "-1")])
def test_rows_and_labels_outside_the_data_are_refused(rows: list[int], label: int, message: str) -> None:
    x, y = data(SPEC)
    y[0] = label
    step, _ = native_step(build_model(SPEC, 3), x, y)
    with pytest.raises(IndexError, match=message):
        step(torch.tensor(rows), 0.1)
