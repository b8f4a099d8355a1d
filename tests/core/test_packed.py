"""Packed evaluation of whole networks: exactly the scores of the layers, for every network that build_model makes."""

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
    GroupSum,
    LogicLayer,
    ModelSpec,
    build_model,
    soft_evaluation,
)
from convlogic_core.packed import is_packable, packed_predict, packed_sums
from tests.core.conftest import WITH_EXTENSION
from tests.core.test_model import specs

SMALL = ModelSpec((2, 8, 8), (ConvSpec(3), ConvSpec(4, kernel=2)), (DenseSpec(12), DenseSpec(6)), 3, 2.0)
NUM_IMAGES = [0, 1, 63, 64, 65, 130, 1100]


def network(spec: ModelSpec, implementation: str = "auto", seed: int = 3) -> nn.Sequential:
    """With random weights, so that all gates occur."""
    model = build_model(spec, seed, implementation).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def images(num_images: int, *shape: int) -> Tensor:
    return torch.randint(0, 2, (num_images, *shape), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def assert_exact(model: nn.Sequential, x: Tensor) -> None:
    with torch.no_grad():
        scores = model(x.float())
    sums = packed_sums(model, x)
    head = model[-1]
    assert isinstance(head, GroupSum)
    assert sums.dtype == torch.int32
    assert torch.equal(sums / head.tau, scores)
    lowest_best = torch.tensor([row.index(max(row)) for row in scores.tolist()], dtype=torch.int64)
    assert torch.equal(packed_predict(model, x), lowest_best)


@settings(deadline=None, max_examples=60)
@given(spec=specs(), seed=st.integers(0, 1000), num_images=st.sampled_from(NUM_IMAGES[:-1]))
def test_scores_are_those_of_the_layers(implementation: str, spec: ModelSpec, seed: int, num_images: int) -> None:
    assert_exact(network(spec, implementation, seed), images(num_images, *spec.input_shape))


@pytest.mark.parametrize("num_images", NUM_IMAGES)
def test_numbers_of_images(implementation: str, num_images: int) -> None:
    assert_exact(network(SMALL, implementation), images(num_images, 2, 8, 8))


@WITH_EXTENSION
def test_a_preset_with_every_instruction_set_and_number_of_threads() -> None:
    """3,000 images are several chunks; the dense layers of presets are evaluated as trees."""
    from convlogic_core import _native  # type: ignore[attr-defined]

    spec = PRESETS["mnist_s"]
    model, x = network(spec), images(3000, *spec.input_shape)
    with torch.no_grad():
        scores = model(x[:100].float())
    before, threads, results = _native.isa(), torch.get_num_threads(), []
    try:
        for isa in _native.supported_isas():
            for num_threads in (1, 2):
                _native.set_isa(isa)
                torch.set_num_threads(num_threads)
                results.append(packed_sums(model, x))
    finally:
        _native.set_isa(before)
        torch.set_num_threads(threads)
    assert torch.equal(results[0][:100] / spec.tau, scores)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("connections", ["random", "unique"])
@pytest.mark.parametrize("widths", [(12,), (16, 8), (32, 16, 8), (64, 32, 16, 8), (128, 64, 32, 16, 8), (32, 32, 16)])
def test_dense_layers_whether_they_form_trees_or_not(
    implementation: str, widths: tuple[int, ...], connections: str
) -> None:
    spec = ModelSpec((1, 4, 5), (), tuple(DenseSpec(width, connections) for width in widths), 4, 1.0)
    assert_exact(network(spec, implementation), images(100, 1, 4, 5))


@WITH_EXTENSION
def test_a_model_of_reference_layers_is_evaluated_by_references() -> None:
    model = network(SMALL, "python")
    assert_exact(model, images(5000, 2, 8, 8))  # more than the references take at a time


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_images_of_any_dtype(implementation: str, dtype: torch.dtype) -> None:
    model, x = network(SMALL, implementation), images(70, 2, 8, 8)
    assert torch.equal(packed_sums(model, x.to(dtype)), packed_sums(model, x))


def hooked() -> nn.Sequential:
    model = nn.Sequential(LogicLayer(8, 6), GroupSum(3)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: 1 - output)
    return model


class Negated(LogicLayer):
    """A layer of another kind that passes for one of ours."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - super().forward(x)


OTHERS = {
    "one layer": lambda: LogicLayer(8, 6),
    "empty": lambda: nn.Sequential(),
    "no class sums": lambda: nn.Sequential(LogicLayer(8, 6)),
    "another module": lambda: nn.Sequential(LogicLayer(8, 6), nn.ReLU(), GroupSum(3)),
    "a subclass": lambda: nn.Sequential(Negated(8, 6), GroupSum(3)),
    "no Flatten": lambda: nn.Sequential(ConvLogicLayer(1, 2), GroupSum(2)),
    "another Flatten": lambda: nn.Sequential(ConvLogicLayer(1, 2), nn.Flatten(2), GroupSum(2)),
    "another order": lambda: nn.Sequential(LogicLayer(8, 6), nn.Flatten(), LogicLayer(6, 6), GroupSum(2)),
    "sums twice": lambda: nn.Sequential(LogicLayer(8, 6), GroupSum(3), GroupSum(1)),
    "hooks": hooked,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused(name: str) -> None:
    model = OTHERS[name]().eval()
    assert not is_packable(model)
    with pytest.raises(ValueError, match=r"^packed evaluation takes an nn.Sequential of [^\n]+: call the model$"):
        packed_sums(model, images(3, 8))


def test_only_discrete_networks_are_evaluated() -> None:
    model, x = network(SMALL), images(3, 2, 8, 8)
    assert is_packable(model)
    with soft_evaluation(model):
        assert not is_packable(model)
    model.train()
    assert not is_packable(model)
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        packed_sums(model, x)


INPUTS = [
    (SMALL, (3, 1, 8, 8), r"expects \(batch, 2, H, W\), got \(3, 1, 8, 8\)"),
    (SMALL, (3, 128), r"expects \(batch, 2, H, W\)"),
    (SMALL, (3, 2, 9, 4), "LogicLayer of 16 inputs was given 8"),
    (SMALL, (3, 2, 1, 1), "an image of 1x1 .* is too small"),
    (ModelSpec((1, 2, 4), (), (DenseSpec(6),), 2, 1.0), (3, 9), "LogicLayer of 8 inputs was given 9"),
]


@pytest.mark.parametrize(("spec", "shape", "message"), INPUTS)
def test_images_that_do_not_fit(implementation: str, spec: ModelSpec, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed_sums(network(spec, implementation), images(*shape))


def test_images_that_are_not_binary(implementation: str) -> None:
    with pytest.raises(ValueError, match="zeros and ones only"):
        packed_sums(network(SMALL, implementation), 2 * images(3, 2, 8, 8))


def test_outputs_that_do_not_divide_among_the_classes(implementation: str) -> None:
    model = nn.Sequential(LogicLayer(8, 7, implementation=implementation), GroupSum(3)).eval()
    with pytest.raises(ValueError, match=r"7 outputs .*among 3 classes"):
        packed_sums(model, images(3, 8))
