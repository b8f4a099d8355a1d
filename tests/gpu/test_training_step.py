"""Training on a GPU: steps replayed from a CUDA graph give the weights that the same steps give one by one."""

import pytest
import torch

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model, set_estimator
from convlogic_core.graph_step import EAGER_STEPS, GraphStep
from convlogic_core.plain_step import PlainStep
from search.training import EncodedDataset, Planes, TrainingRun
from spaces import Candidate, DataSpec, TrainSpec

pytestmark = pytest.mark.gpu

SPEC = ModelSpec(
    input_shape=(2, 12, 12),
    conv=(ConvSpec(8, kernel=3, padding=1), ConvSpec(16, kernel=3, padding=1, tree_depth=2)),
    dense=(DenseSpec(120), DenseSpec(60)),
    num_classes=10,
    tau=2.0,
)
NUM_IMAGES, BATCH, RAGGED = 150, 32, 22
NUM_STEPS = 12
RAGGED_STEP, SECOND_ESTIMATOR_STEP = EAGER_STEPS + 2, EAGER_STEPS + 4  # both after a capture; then another one


def planes(num_images: int, seed: int) -> Planes:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (num_images, *SPEC.input_shape), generator=generator, dtype=torch.uint8)
    return Planes(x.cuda(), torch.randint(0, SPEC.num_classes, (num_images,), generator=generator).cuda())


def train(
    kind: type[GraphStep] | type[PlainStep],
    estimators: tuple[str, str] = ("soft", "soft"),
    parametrization: str = "softmax",
    implementation: str = "cuda",
) -> list[torch.Tensor]:
    """Losses and weights. The rate is a tensor for both: as a number it has other last bits."""
    data = planes(NUM_IMAGES, 1)
    spec = ModelSpec(SPEC.input_shape, SPEC.conv, SPEC.dense, SPEC.num_classes, SPEC.tau, parametrization)
    model = build_model(spec, 3, implementation).cuda()
    rate = torch.zeros((), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, capturable=True, fused=True)
    optimizer._warned_capturable_if_run_uncaptured = True
    step = kind(model, optimizer, data.x, data.y)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(7)
    losses = []
    for index in range(NUM_STEPS):
        set_estimator(model, estimators[index >= SECOND_ESTIMATOR_STEP])
        if index == NUM_STEPS - 1:
            data.x.logical_not_()  # in place, as a shift is: what is replayed reads them anew
        rows = torch.randperm(NUM_IMAGES, generator=generator)[: RAGGED if index == RAGGED_STEP else BATCH]
        losses.append(step(rows.cuda(), 0.02 / (1 + index)))
    return [torch.stack(losses).cpu(), *(parameter.detach().cpu() for parameter in model.parameters())]


@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
@pytest.mark.parametrize("estimators", [("soft", "soft"), ("gumbel", "gumbel"), ("soft", "ste"), ("gumbel", "ste")])
def test_replayed_steps_are_those_of_the_layers(estimators: tuple[str, str], parametrization: str) -> None:
    replayed, eager = (train(kind, estimators, parametrization) for kind in (GraphStep, PlainStep))
    untrained = build_model(SPEC, 3).parameters()
    if parametrization == "softmax":
        assert not any(torch.equal(a, b) for a, b in zip(eager[1:], untrained, strict=True))
    for ours, expected in zip(replayed, eager, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
def test_the_reference_can_be_captured(parametrization: str) -> None:
    """Its gradients are sums in any order, so that not every bit is the same."""
    ways = (GraphStep, PlainStep)
    replayed, eager = (train(kind, parametrization=parametrization, implementation="python") for kind in ways)
    torch.testing.assert_close(replayed[0], eager[0], rtol=1e-3, atol=1e-3)
    for ours, expected in zip(replayed[1:], eager[1:], strict=True):
        assert (ours - expected).abs().mean() < 1e-4  # of single weights, AdamW may turn noise into a whole step


# A training, stopped and continued


def training_run(estimator: str, parametrization: str) -> TrainingRun:
    spec = ModelSpec(SPEC.input_shape, SPEC.conv, SPEC.dense, SPEC.num_classes, SPEC.tau, parametrization)
    schedule = TrainSpec(0.02, BATCH, epochs=4, decay_fraction=0.5, estimator=estimator, hard_finish=0.3, shift=1)
    data = EncodedDataset(planes(NUM_IMAGES, 1), planes(50, 2), torch.zeros(2, 1))
    return TrainingRun(Candidate(DataSpec("digits"), spec, schedule), data, seed=7)


def epochs(run: TrainingRun, number: int) -> list[tuple[float, ...]]:
    records = [run.run_epoch() for _ in range(number)]
    return [(record.epoch, record.loss, record.acc_soft, record.acc_discrete) for record in records]


@pytest.mark.parametrize("parametrization", ["softmax", "iwp"])
@pytest.mark.parametrize("estimator", ["soft", "gumbel"])
def test_restored_is_as_if_never_stopped(estimator: str, parametrization: str) -> None:
    whole = training_run(estimator, parametrization)
    records = epochs(whole, 4)
    first = training_run(estimator, parametrization)
    assert epochs(first, 2) == records[:2]
    checkpoint = first.checkpoint()
    second = training_run(estimator, parametrization)
    second.restore(checkpoint)
    assert epochs(second, 2) == records[2:]
    final = whole.checkpoint()
    assert second.checkpoint() == final
    whole.restore(checkpoint)  # into a run that has captured: its graphs hold weights and moments of before
    assert epochs(whole, 2) == records[2:]
    assert whole.checkpoint() == final
    assert checkpoint != final
