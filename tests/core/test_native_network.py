"""The native network itself: what it takes, what it refuses, and its scores."""

import pytest
import torch
from torch import Tensor, nn

from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer, build_model, set_estimator, soft_evaluation
from convlogic_core.network import native_network
from convlogic_core.ops.backend import native_built

from .small_networks import SPEC, adamw, data

pytestmark = pytest.mark.skipif(not native_built(), reason="native steps need the extension")


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
    network = native_network(build_model(SPEC, 3), x.shape[1:])
    assert network is not None
    with pytest.raises(ValueError, match=rf"^the native network takes {name} \(.* on the CPU, got "):
        network.gradients(**({"x": x, "y": y, "rows": torch.arange(9)} | {name: tensor}))
    if name == "x":
        with pytest.raises(ValueError, match="takes x"):
            network.scores(tensor)


def test_tensors_that_are_not_contiguous() -> None:
    x, y = data(SPEC)
    network = native_network(build_model(SPEC, 3), x.shape[1:])
    assert network is not None
    network.compute_coefficients()
    rows = torch.arange(40)
    expected = network.gradients(x, y, rows)
    apart = x.movedim(0, -1).contiguous().movedim(-1, 0), y.repeat_interleave(2)[::2], rows.repeat_interleave(2)[::2]
    assert network.gradients(*apart) == expected


def test_scores_are_those_of_the_soft_model() -> None:
    x, _ = data(SPEC, 77)
    model = build_model(SPEC, 3).eval()
    set_estimator(model, "ste")
    network = native_network(model, x.shape[1:])
    assert network is not None
    with torch.no_grad(), soft_evaluation(model):
        torch.testing.assert_close(network.scores(x), model(x.float()), rtol=1e-5, atol=1e-5)


def test_a_step_needs_gradients() -> None:
    x, _ = data(SPEC)
    model = build_model(SPEC, 3)
    network = native_network(model, x.shape[1:])
    assert network is not None
    with pytest.raises(RuntimeError, match="a step needs gradients before it"):
        network.step(adamw(model))


def test_models_and_images_that_it_cannot_run() -> None:
    model = build_model(SPEC, 3)
    assert native_network(model, (2, 11, 9)) is not None
    assert native_network(model, (3, 11, 9)) is None
    assert native_network(model, (2, 12, 12)) is None
    tall = nn.Sequential(
        ConvLogicLayer(2, 4, kernel=6, stride=2, padding=0, pool=1), nn.Flatten(), LogicLayer(4, 6), GroupSum(3)
    )
    assert native_network(tall, (2, 5, 5)) is None  # the kernel is larger than the image
