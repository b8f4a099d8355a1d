"""The field's code and its checkpoints run on these layers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer

NOTEBOOK = Path(__file__).parents[2].parent / "shared" / "seed" / "convlogic_mnist_notebook.txt"
IMPORTS = {
    "from convlogic import ConvLogicLayer\n": "from convlogic_core import ConvLogicLayer\n",
    "from difflogic import GroupSum, LogicLayer\n": "from convlogic_core import GroupSum, LogicLayer\n",
}
DERIVED = ("given_x_indices_of_y_start", "given_x_indices_of_y")


def notebook_model_class() -> type[nn.Module]:
    """The notebook's model class, its text unchanged but for the two import lines."""
    if not NOTEBOOK.exists():
        pytest.skip(f"the notebook {NOTEBOOK.name} is not distributed with the repository")
    text = NOTEBOOK.read_text(encoding="utf-8")
    source = text[text.index("from convlogic import") : text.index("\nmodel = ConvLogicModel(")]
    for theirs, ours in IMPORTS.items():
        assert source.count(theirs) == 1
        source = source.replace(theirs, ours)
    namespace: dict[str, type[nn.Module]] = {"nn": nn}
    exec(source, namespace)
    return namespace["ConvLogicMnistModel"]


@pytest.fixture(scope="module")
def notebook_model(fastest: str) -> nn.Module:
    torch.manual_seed(0)
    return notebook_model_class()(k_param=2, implementation=fastest)


def binary_images(num: int) -> Tensor:
    return torch.randint(0, 2, (num, 1, 28, 28), generator=torch.Generator().manual_seed(0)).float()


def test_notebook_model_trains(notebook_model: nn.Module) -> None:
    notebook_model.train()
    scores = notebook_model(binary_images(3))
    assert scores.shape == (3, 10)
    nn.functional.cross_entropy(scores, torch.tensor([0, 4, 9])).backward()
    for name, parameter in notebook_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_notebook_model_evaluates_discretely(notebook_model: nn.Module) -> None:
    with torch.no_grad():
        counts = notebook_model.eval()(binary_images(3)) * 6.5
    assert counts.shape == (3, 10)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    assert 0 <= counts.min() and counts.max() <= 64


def test_notebook_model_has_the_published_state(notebook_model: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in notebook_model.state_dict().items()}
    assert shapes == {
        "network.0.weights": (2, 7, 16),
        "network.0.selection": (2, 8),
        "network.1.weights": (6, 7, 16),
        "network.1.selection": (6, 8),
        "network.2.weights": (18, 7, 16),
        "network.2.selection": (18, 8),
        "network.4.weights": (2560, 16),
        "network.4.indices_0": (2560,),
        "network.4.indices_1": (2560,),
        "network.5.weights": (1280, 16),
        "network.5.indices_0": (1280,),
        "network.5.indices_1": (1280,),
        "network.6.weights": (640, 16),
        "network.6.indices_0": (640,),
        "network.6.indices_1": (640,),
    }


class Network(nn.Module):
    """One layer of each kind under the name the field's checkpoints use."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            ConvLogicLayer(2, 3, implementation="python", seed=seed),
            nn.Flatten(),
            LogicLayer(27, 40, implementation="python", seed=seed + 1),
            GroupSum(4, tau=2.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)
        return scores


STATE_KEYS = [
    "network.0.weights",
    "network.0.selection",
    "network.2.weights",
    "network.2.indices_0",
    "network.2.indices_1",
]
PLANES = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_state_dict_has_these_keys_and_no_other() -> None:
    assert list(Network(0).state_dict()) == STATE_KEYS


@pytest.mark.parametrize("training", [True, False])
def test_a_reloaded_network_computes_the_same(training: bool) -> None:
    source, target = Network(0).train(training), Network(10).train(training)
    assert not torch.equal(source(PLANES), target(PLANES))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(PLANES), target(PLANES))


def test_checkpoints_with_the_fan_out_lists_load_strictly() -> None:
    source, target = Network(0), Network(10)
    checkpoint = source.state_dict() | {f"network.2.{name}": torch.arange(28) for name in DERIVED}
    keys_before = set(checkpoint)
    assert str(target.load_state_dict(checkpoint, strict=True)) == "<All keys matched successfully>"
    assert torch.equal(source(PLANES), target(PLANES))
    assert set(checkpoint) == keys_before
    assert list(target.state_dict()) == STATE_KEYS


def test_a_single_layer_accepts_the_fan_out_lists_too() -> None:
    source, target = (LogicLayer(6, 5, implementation="python", seed=seed) for seed in (0, 1))
    target.load_state_dict(source.state_dict() | dict.fromkeys(DERIVED, torch.arange(7)), strict=True)
    assert torch.equal(source.indices_0, target.indices_0)


@pytest.mark.parametrize(
    "key", ["network.2.given_x", "network.2.indices_2", "network.0.bias", "network.1.given_x_indices_of_y", "head"]
)
def test_other_unexpected_keys_are_refused(key: str) -> None:
    network = Network(0)
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key}"'):
        network.load_state_dict(network.state_dict() | {key: torch.zeros(1)})


@pytest.mark.parametrize("key", STATE_KEYS)
def test_missing_keys_are_refused(key: str) -> None:
    network = Network(0)
    checkpoint = network.state_dict()
    del checkpoint[key]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{key}"'):
        network.load_state_dict(checkpoint)
