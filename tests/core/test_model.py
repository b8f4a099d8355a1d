import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convlogic_core import (
    PRESETS,
    ConvLogicLayer,
    ConvSpec,
    DenseSpec,
    LogicLayer,
    ModelSpec,
    build_model,
    num_parameters,
    raw_gates,
)
from convlogic_core.packed import packed_sums

SMALL = ModelSpec((2, 8, 8), (ConvSpec(3), ConvSpec(4, kernel=2)), (DenseSpec(12), DenseSpec(6)), 3, 2.0)
quick = settings(deadline=None, max_examples=30)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Small networks of every shape; blocks that do not fit the image any more are left out."""
    input_shape = (draw(st.integers(1, 3)), draw(st.integers(2, 11)), draw(st.integers(2, 11)))
    parametrization = draw(st.sampled_from(["softmax", "iwp"]))
    conv: tuple[ConvSpec, ...] = ()
    channels = input_shape[0]
    for _ in range(draw(st.integers(0, 3))):
        out_channels = draw(st.integers(1, 4))
        block = ConvSpec(
            out_channels,
            kernel=draw(st.integers(1, 4)),
            stride=draw(st.integers(1, 2)),
            padding=draw(st.integers(0, 2)),
            groups=draw(st.integers(1, min(channels, out_channels))),
            tree_depth=draw(st.integers(1, 4)),
            pool=draw(st.sampled_from([1, 2])),
            residual_init=draw(st.booleans()),
        )
        try:
            ModelSpec(input_shape, (*conv, block), (), num_classes=1, tau=1.0)
        except ValueError:
            break
        conv, channels = (*conv, block), out_channels
    features = ModelSpec(input_shape, conv, (), 1, 1.0).flat_features if conv else math.prod(input_shape)
    dense: tuple[DenseSpec, ...] = ()
    for _ in range(draw(st.integers(0 if conv else 1, 2))):
        features = draw(st.integers(-(-features // 2), features + 2))
        dense = (*dense, DenseSpec(features, residual_init=draw(st.booleans())))
    num_classes = draw(st.sampled_from([n for n in range(1, features + 1) if features % n == 0]))
    return ModelSpec(input_shape, conv, dense, num_classes, draw(st.floats(0.1, 50)), parametrization)


def gates_of_built(model: nn.Sequential, x: Tensor) -> int:
    """Gates of every layer, counted from the shapes that really come out."""
    total = 0
    for layer in model:
        x = layer(x)
        if isinstance(layer, ConvLogicLayer):
            window = layer.pool * layer.pool
            num_windows = x[0].numel()
            total += num_windows * window * layer.weights.shape[1]
            total += num_windows * (window - 1)
        elif isinstance(layer, LogicLayer):
            total += x[0].numel()
    return total


@pytest.mark.parametrize(("name", "k"), [("mnist_s", 16), ("mnist_m", 64), ("mnist_l", 256)])
def test_presets_have_the_published_gates(name: str, k: int) -> None:
    assert raw_gates(PRESETS[name]) == 12_563 * k


@pytest.mark.parametrize(("name", "k", "tau", "planes"), [("s", 32, 20, 9), ("m", 256, 40, 9), ("b", 512, 280, 93)])
def test_cifar10_presets_are_the_published_ones(name: str, k: int, tau: float, planes: int) -> None:
    spec = PRESETS[f"cifar10_{name}"]
    assert raw_gates(spec) == 30_016 * k
    assert (spec.input_shape, spec.tau, spec.num_classes) == ((planes, 32, 32), tau, 10)
    assert [block.out_channels for block in spec.conv] == [k, 4 * k, 16 * k, 32 * k]
    assert spec.flat_features == 4 * 32 * k
    assert [layer.out_dim for layer in spec.dense] == [1280 * k, 640 * k, 320 * k]


def test_the_large_preset_in_figures() -> None:
    assert raw_gates(PRESETS["mnist_l"]) == 3_216_128
    assert num_parameters(PRESETS["mnist_s"]) == 16 * 16 * (7 * 13 + 1280 + 640 + 320)


@quick
@given(spec=specs(), seed=st.integers(-(2**40), 2**40))
def test_a_valid_spec_builds_runs_and_counts_right(spec: ModelSpec, seed: int) -> None:
    model = build_model(spec, seed, implementation="python")
    x = torch.rand(2, *spec.input_shape)
    assert model(x).shape == (2, spec.num_classes)
    assert raw_gates(spec) == gates_of_built(model, x)
    assert num_parameters(spec) == sum(parameter.numel() for parameter in model.parameters())


@quick
@given(spec=specs())
def test_json_round_trip(spec: ModelSpec) -> None:
    stored = json.loads(json.dumps(spec.to_json()))
    assert stored == json.loads(json.dumps(asdict(spec)))
    again = ModelSpec(
        input_shape=tuple(stored.pop("input_shape")),
        conv=tuple(ConvSpec(**block) for block in stored.pop("conv")),
        dense=tuple(DenseSpec(**layer) for layer in stored.pop("dense")),
        **stored,
    )
    assert again == spec
    assert hash(again) == hash(spec)


def test_specs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SMALL.tau = 1.0  # type: ignore[misc]


def test_a_small_cifar10_network_runs(fastest: str) -> None:
    spec = replace(PRESETS["cifar10_s"], conv=tuple(ConvSpec(k) for k in (2, 8, 32, 64)), dense=(DenseSpec(160),))
    assert build_model(spec, 0, fastest)(torch.rand(3, 9, 32, 32)).shape == (3, 10)


def states(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_build_follows_from_the_seed_alone() -> None:
    spec = replace(
        SMALL,
        conv=tuple(replace(block, residual_init=False) for block in SMALL.conv),
        dense=tuple(replace(layer, residual_init=False) for layer in SMALL.dense),
    )
    torch.manual_seed(1)
    first = states(build_model(spec, 7, "python"))
    again, other = states(build_model(spec, 7, "python")), states(build_model(spec, 8, "python"))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_equal_layers_of_a_network_are_wired_differently() -> None:
    spec = ModelSpec((4, 8, 8), (ConvSpec(4), ConvSpec(4)), (DenseSpec(16), DenseSpec(16)), 2, 1.0)
    model = build_model(spec, 0, "python")
    assert not torch.equal(model[0].selection, model[1].selection)
    assert not torch.equal(model[3].indices_0, model[4].indices_0)


def test_build_passes_every_field_on(fastest: str) -> None:
    block = ConvSpec(4, kernel=2, stride=2, padding=3, groups=2, tree_depth=2, pool=1, residual_init=False)
    spec = ModelSpec((2, 8, 6), (block,), (DenseSpec(90, "unique", residual_init=False),), 5, 2.5, "iwp")
    conv, flatten, dense, group_sum = build_model(spec, 0, fastest)
    assert isinstance(flatten, nn.Flatten)
    assert (conv.in_channels, conv.out_channels, conv.groups, conv.tree_depth, conv.pool) == (2, 4, 2, 2, 1)
    assert (conv.kernel, conv.stride, conv.padding) == ((2, 2), (2, 2), (3, 3))
    assert (dense.in_dim, dense.out_dim, dense.connections) == (spec.flat_features, 90, "unique")
    assert (group_sum.k, group_sum.tau) == (5, 2.5)
    for layer in (conv, dense):
        assert layer.parametrization == "iwp"
        assert layer.implementation == fastest
        assert len(layer.weights.unique()) == layer.weights.numel()  # random, not residual


def test_residual_init_is_the_default() -> None:
    model = build_model(SMALL, 0, "python")
    for layer in (model[0], model[1], model[3], model[4]):
        assert layer.weights.unique().tolist() == [0.0, 5.0]


SPEC_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"parametrization": "walsh"}, "parametrization 'walsh' is not one of softmax, iwp"),
    ({"tau": 0.0}, "tau=0.0 must be a positive"),
    ({"tau": -1.0}, "tau=-1.0"),
    ({"tau": math.nan}, "tau=nan"),
    ({"tau": math.inf}, "tau=inf"),
    ({"num_classes": 0}, "num_classes=0"),
    ({"num_classes": 4}, "6 outputs cannot be divided among 4 classes"),
    ({"dense": (), "num_classes": 5}, "16 outputs cannot be divided among 5 classes"),
    ({"input_shape": (8, 8)}, r"input_shape=\(8, 8\)"),
    ({"input_shape": (0, 8, 8)}, r"input_shape=\(0, 8, 8\)"),
    ({"conv": (), "dense": ()}, "at least one conv block or dense layer"),
    ({"dense": (DenseSpec(7),)}, "dense layer 1: .*16 inputs.* out_dim >= 8"),
    ({"dense": (DenseSpec(13), DenseSpec(6))}, "dense layer 2: .*13 inputs.* out_dim >= 7"),
    ({"dense": (DenseSpec(12, "local"),)}, "dense layer 1: connections='local'"),
    ({"dense": (DenseSpec(121, "unique"),)}, "dense layer 1: .*120 distinct pairs, fewer than out_dim=121"),
    ({"conv": (ConvSpec(3, kernel=11),)}, "conv block 1: a 8x8 image with padding 1 is too small for kernel 11"),
    ({"conv": (ConvSpec(3), ConvSpec(3, kernel=4, padding=0))}, "conv block 2: a 4x4 image .* 2x2 pooling"),
    ({"conv": (ConvSpec(3, stride=0),)}, r"conv block 1: .*stride=\(0, 0\)"),
    ({"conv": (ConvSpec(3, kernel=0),)}, r"conv block 1: kernel=\(0, 0\)"),
    ({"conv": (ConvSpec(3, kernel=1, padding=-1),)}, r"conv block 1: .*padding=\(-1, -1\)"),
    ({"conv": (ConvSpec(3, tree_depth=5),)}, "conv block 1: tree_depth=5"),
    ({"conv": (ConvSpec(3, pool=3),)}, "conv block 1: pool=3"),
    ({"conv": (ConvSpec(3, groups=3),)}, "conv block 1: groups=3 .* in_channels=2 and out_channels=3"),
    ({"conv": (ConvSpec(3), ConvSpec(0))}, "conv block 2: .* in_channels=3 and out_channels=0"),
]


@pytest.mark.parametrize(("change", "message"), SPEC_ERRORS)
def test_specs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        replace(SMALL, **change)
    assert "\n" not in str(error.value)


def test_a_model_built_in_inference_mode_is_evaluated(implementation: str) -> None:
    """Its tensors have no versions: what depends on them is worked out anew each time."""
    spec = ModelSpec((1, 6, 6), (ConvSpec(3),), (DenseSpec(20), DenseSpec(12)), 3, 1.0)
    x = torch.rand(5, 1, 6, 6)
    with torch.inference_mode():
        model = build_model(spec, 1, implementation)
        for seed in (1, 2):
            other = build_model(spec, seed, implementation)
            model.load_state_dict(other.state_dict())
            expected = torch.nn.Sequential(*other)(x)
            torch.testing.assert_close(model(x), expected)
            assert torch.equal(packed_sums(model.eval(), x.round()), packed_sums(other.eval(), x.round()))
            model.train()
