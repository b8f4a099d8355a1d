"""Shapes: N batch, C channels, H W image, K kernels, L leaves, G gates."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer, soft_evaluation
from convlogic_core.gates import GATE_TABLE

PARAMETRIZATIONS = ["softmax", "iwp"]
NUM_LOGITS = {"softmax": 16, "iwp": 4}
quick = settings(deadline=None, max_examples=30)


def conv(**arguments: Any) -> ConvLogicLayer:
    return ConvLogicLayer(**{"in_channels": 2, "out_channels": 3, "implementation": "python", "seed": 0} | arguments)


def dense(**arguments: Any) -> LogicLayer:
    return LogicLayer(**{"in_dim": 27, "out_dim": 20, "implementation": "python", "seed": 0} | arguments)


def network(tree_depth: int = 3, **arguments: Any) -> nn.Sequential:
    """(N, 2, 6, 6) -> (N, 20)"""
    return nn.Sequential(conv(tree_depth=tree_depth, **arguments), nn.Flatten(), dense(**arguments))


def planes(num: int = 4) -> Tensor:
    return torch.rand(num, 2, 6, 6, generator=torch.Generator().manual_seed(3))


def state(layer: nn.Module) -> list[Tensor]:
    return list(layer.state_dict().values())


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("tree_depth", [1, 2, 3, 4])
def test_state_of_a_conv_layer(tree_depth: int, parametrization: str) -> None:
    layer = conv(tree_depth=tree_depth, parametrization=parametrization)
    assert layer.weights.shape == (3, 2**tree_depth - 1, NUM_LOGITS[parametrization])
    assert layer.weights.dtype == torch.float32
    assert layer.selection.shape == (3, 2**tree_depth)
    assert layer.selection.dtype == torch.int32
    assert [name for name, _ in layer.named_parameters()] == ["weights"]
    assert [name for name, _ in layer.named_buffers()] == ["selection"]


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_state_of_a_dense_layer(parametrization: str) -> None:
    layer = dense(parametrization=parametrization)
    assert layer.weights.shape == (20, NUM_LOGITS[parametrization])
    for indices in (layer.indices_0, layer.indices_1):
        assert indices.shape == (20,)
        assert indices.dtype == torch.int64
    assert [name for name, _ in layer.named_parameters()] == ["weights"]
    assert [name for name, _ in layer.named_buffers()] == ["indices_0", "indices_1"]


@pytest.mark.parametrize("build", [conv, dense])
def test_same_seed_same_layer(build: Any) -> None:
    torch.manual_seed(0)
    first = state(build(seed=5))
    again, other = state(build(seed=5)), state(build(seed=6))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("build", [conv, dense])
def test_without_a_seed_torch_manual_seed_decides(build: Any) -> None:
    torch.manual_seed(5)
    first, second = state(build(seed=None)), state(build(seed=None))
    torch.manual_seed(5)
    again = state(build(seed=None))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, second))


@pytest.mark.parametrize("build", [conv, dense])
def test_a_seed_leaves_the_global_generator_alone(build: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_given_selection_is_used_and_copied() -> None:
    given_selection = conv(seed=9).selection.long()
    layer = conv(selection=given_selection)
    assert layer.selection.dtype == torch.int32
    assert torch.equal(layer.selection, given_selection)
    shared = conv(selection=layer.selection)
    shared.selection.zero_()
    assert torch.equal(layer.selection, given_selection)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_train_is_soft_and_eval_is_discrete(parametrization: str, implementation: str) -> None:
    model = network(parametrization=parametrization, implementation=implementation)
    bits = planes().round()
    soft = model.train()(bits)
    assert ((0 < soft) & (soft < 1)).all()
    discrete = model.eval()(bits)
    assert set(discrete.unique().tolist()) == {0.0, 1.0}
    layer = model[2]
    assert torch.equal(layer.coefficients(), GATE_TABLE[layer.gates()])


def test_soft_evaluation_is_the_soft_network(implementation: str) -> None:
    model = network(implementation=implementation).eval()
    with soft_evaluation(model) as same_model:
        assert same_model is model
        assert not any(module.training for module in model.modules())
        soft = model(planes())
    assert torch.equal(soft, model.train()(planes()))
    assert not torch.equal(soft, model.eval()(planes()))


def mixed_modes() -> nn.Sequential:
    model = network().train()
    model[2].eval()
    return model


def test_soft_evaluation_restores_every_mode() -> None:
    model = mixed_modes()
    before = model(planes())
    with soft_evaluation(model):
        assert not torch.equal(model(planes()), before)
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(model(planes()), before)


def test_soft_evaluation_restores_every_mode_after_an_exception() -> None:
    model = mixed_modes()
    before = model(planes())
    with pytest.raises(KeyError, match="from within"), soft_evaluation(model):
        raise KeyError("from within")
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(model(planes()), before)


def test_soft_evaluation_nests() -> None:
    model = network().eval()
    with soft_evaluation(model):
        outer = model(planes())
        with soft_evaluation(model):
            pass
        assert torch.equal(model(planes()), outer)


@quick
@given(
    tree_depth=st.integers(1, 4),
    kernel=st.integers(1, 4),
    padding=st.integers(0, 2),
    stride=st.integers(1, 2),
    pool=st.sampled_from([1, 2]),
    parametrization=st.sampled_from(PARAMETRIZATIONS),
    seed=st.integers(0, 2**32),
)
def test_decided_gates_on_bits_make_soft_and_discrete_equal(
    implementation: str, parametrization: str, seed: int, **shape: int
) -> None:
    layer = conv(**shape, parametrization=parametrization, seed=seed, implementation=implementation)
    with torch.no_grad():
        decided = torch.zeros_like(layer.weights).scatter(-1, layer.weights.argmax(-1, keepdim=True), 1e4)
        layer.weights.copy_(decided if parametrization == "softmax" else layer.weights.sign() * 1e4)
    rows = torch.randint(0, 2, (3, 2, 7, 6), generator=torch.Generator().manual_seed(seed)).float()
    soft = layer.train()(rows).detach()
    assert torch.equal(soft, layer.eval()(rows).detach())
    assert torch.equal(soft, soft.round())


@quick
@given(
    tree_depth=st.integers(1, 4),
    parametrization=st.sampled_from(PARAMETRIZATIONS),
    sharpness=st.sampled_from([0.0, 1.0, 100.0]),
    soft=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_outputs_stay_within_zero_and_one(
    implementation: str, tree_depth: int, parametrization: str, sharpness: float, soft: bool, seed: int
) -> None:
    model = network(tree_depth=tree_depth, parametrization=parametrization, seed=seed, implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharpness)
        x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
        y = model.train(soft)(x)
    assert -1e-5 <= y.min() and y.max() <= 1 + 1e-5


@pytest.mark.parametrize("grad_factor", [2.0, 0.3])
@pytest.mark.parametrize("build", [conv, dense])
def test_grad_factor_scales_the_input_gradient_and_nothing_else(
    build: Any, grad_factor: float, implementation: str
) -> None:
    results = []
    for factor in (1.0, grad_factor):
        layer = build(grad_factor=factor, implementation=implementation)
        x = planes() if build is conv else torch.rand(50, 27, generator=torch.Generator().manual_seed(3))
        x.requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, layer.weights.grad))
    (y, grad_x, grad_weights), (scaled_y, scaled_grad_x, scaled_grad_weights) = results
    assert torch.equal(scaled_y, y)
    assert torch.equal(scaled_grad_weights, grad_weights)
    assert grad_x.any()
    torch.testing.assert_close(scaled_grad_x, grad_x * grad_factor)


def test_equal_logits_choose_the_lowest_gate() -> None:
    layer = dense(in_dim=2, out_dim=3).eval()
    with torch.no_grad():
        layer.weights.zero_()
        layer.weights[1, [6, 9]] = 2.0
        layer.weights[2, 7:] = 1.0
    assert layer.gates().tolist() == [0, 6, 7]


def test_group_sum_adds_neighbours() -> None:
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.25, 0.5, 0.0, 0.0, 1.0, 1.0]])
    assert GroupSum(3)(x).tolist() == [[1.0, 2.0, 0.0], [0.75, 0.0, 2.0]]
    assert GroupSum(2, tau=0.5)(x).tolist() == [[4.0, 2.0], [1.5, 4.0]]


def test_lowest_class_wins_a_tie() -> None:
    votes = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]).float()
    for strided in (votes, votes.t().contiguous().t()):
        assert GroupSum(3, tau=6.5)(strided).argmax(1).tolist() == [0, 1, 0, 2]


CONV_ERRORS = [
    ({"complete": False}, "complete=False .* tree_depth=1 and pool=1"),
    ({"tree_depth": 0}, "tree_depth=0"),
    ({"tree_depth": 5}, "tree_depth=5"),
    ({"pool": 0}, "pool=0"),
    ({"pool": 3}, "pool=3"),
    ({"groups": 0}, "groups=0"),
    ({"groups": 3}, "groups=3 .* in_channels=2 and out_channels=3"),
    ({"in_channels": 0}, "in_channels=0"),
    ({"out_channels": 0}, "out_channels=0"),
    ({"in_channels": 32_769}, "in_channels=32769 exceeds 32768"),
    ({"kernel": 0}, r"kernel=\(0, 0\)"),
    ({"kernel": (3, 256)}, r"kernel=\(3, 256\)"),
    ({"stride": 0}, r"stride=\(0, 0\)"),
    ({"padding": (0, -1)}, r"padding=\(0, -1\)"),
    ({"parametrization": "walsh"}, "parametrization 'walsh'"),
    ({"implementation": "gpu"}, "implementation 'gpu'"),
    ({"selection": torch.zeros(3, 4, dtype=torch.int32)}, r"shape \(3, 4\), expected .*\(3, 8\)"),
    ({"selection": torch.full((3, 8), 2 << 16)}, r"selection\[0, 0\] names channel 2, outside"),
    ({"selection": torch.full((3, 8), -1 << 16)}, r"selection\[0, 0\] names channel -1, outside"),
    ({"selection": torch.full((3, 8), 3 << 8)}, r"selection\[0, 0\] names row 3, outside"),
    ({"selection": torch.full((3, 8), 3)}, r"selection\[0, 0\] names column 3, outside"),
]


@pytest.mark.parametrize(("arguments", "message"), CONV_ERRORS)
def test_conv_layers_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_dim": 41}, r"out_dim=20 .* 41 inputs.* out_dim >= 21"),
        ({"in_dim": 0}, "in_dim=0"),
        ({"in_dim": 1, "out_dim": 0}, "out_dim=0"),
        ({"connections": "local"}, "connections='local'"),
        ({"in_dim": 6, "connections": "unique"}, "15 distinct pairs, fewer than out_dim=20"),
        ({"parametrization": "walsh"}, "parametrization 'walsh'"),
        ({"implementation": "gpu"}, "implementation 'gpu'"),
    ],
)
def test_dense_layers_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense(**arguments)


@pytest.mark.parametrize("build", [conv, dense])
def test_cuda_without_a_device(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match='"cuda" needs a CUDA device'):
        build(implementation="cuda")


@pytest.mark.parametrize("shape", [(4, 3, 6, 6), (4, 1, 6, 6), (2, 6, 6), (4, 72)])
def test_conv_layer_refuses_other_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects \(batch, 2, H, W\), got \(" + str(shape)[1:-1]):
        conv()(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 26), (4, 3, 27), (27,)])
def test_dense_layer_refuses_other_widths(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects \(batch, 27\), got \(" + str(shape)[1:-1]):
        dense()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"kernel": 9}, (6, 6)),
        ({"kernel": (3, 9)}, (6, 6)),
        ({"kernel": 9, "stride": 4}, (6, 6)),
        ({"kernel": 3, "padding": 0}, (3, 6)),  # one row of windows is too few to pool
    ],
)
def test_images_that_are_too_small(arguments: dict[str, Any], size: tuple[int, int], implementation: str) -> None:
    layer = conv(**arguments, implementation=implementation)
    with pytest.raises(ValueError, match=rf"image of {size[0]}x{size[1]} .* too small"):
        layer(torch.zeros(1, 2, *size))


@pytest.mark.parametrize(("k", "tau"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_group_sums_that_cannot_be(k: int, tau: float) -> None:
    with pytest.raises(ValueError, match=f"k={k}, tau={tau}"):
        GroupSum(k, tau)


def test_group_sum_refuses_a_remainder() -> None:
    with pytest.raises(ValueError, match="cannot divide 7 outputs among k=3"):
        GroupSum(3)(torch.zeros(2, 7))
