"""The one training loop: the same bytes from the same seed, whatever stopped it or however many threads ran it."""

import math
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from convlogic_core import num_parameters, soft_evaluation
from convlogic_core.circuit import Circuit
from convlogic_core.training_step import training_step
from search import training
from search.data import Dataset
from search.errors import Failure
from search.jobs import Failed, Job, JobRunner
from search.training import (
    Diverged,
    EncodedDataset,
    EpochRecord,
    TrainingRun,
    accuracy,
    check_memory,
    derived_seed,
    encode_dataset,
    estimator_at,
    learning_rate,
    shift,
    soft_and_discrete_accuracy,
    training_bytes,
)
from spaces.candidate import Candidate, TrainSpec
from tests.search.tiny import TINY, tiny_candidate

CPU = torch.device("cpu")
CANDIDATES = {
    "softmax": tiny_candidate(),
    "iwp": tiny_candidate(parametrization="iwp", lr_iwp=0.1),
    "weight decay": replace(tiny_candidate(), train=replace(tiny_candidate().train, weight_decay=0.01)),
    "gumbel": replace(tiny_candidate(), train=replace(tiny_candidate().train, estimator="gumbel")),
    "iwp, gumbel, hard finish": replace(
        tiny_candidate(parametrization="iwp", lr_iwp=0.1),
        train=replace(tiny_candidate().train, estimator="gumbel", hard_finish=0.4),
    ),
    "shift": replace(tiny_candidate(), train=replace(tiny_candidate().train, shift=2)),
}


@pytest.fixture(scope="module")
def data(dataset: Dataset) -> EncodedDataset:
    return encode_dataset(dataset, TINY.data, CPU)


def trained(candidate: Candidate, data: EncodedDataset, epochs: int, seed: int = 7) -> TrainingRun:
    run = TrainingRun(candidate, data, seed)
    for _ in range(epochs):
        run.run_epoch()
    return run


# The schedule


@pytest.mark.parametrize("decay_fraction", [0.0, 0.25, 0.4, 1.0])
def test_rate_is_constant_then_falls_to_zero_on_a_cosine(decay_fraction: float) -> None:
    start = 1 - decay_fraction
    assert [learning_rate(0.1, decay_fraction, start * x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.1] * 3)
    if decay_fraction:
        at = [learning_rate(0.1, decay_fraction, start + decay_fraction * x) for x in (0.25, 0.5, 0.75, 1.0)]
        quarter = (1 + math.sqrt(0.5)) / 2
        assert at == pytest.approx([0.1 * quarter, 0.05, 0.1 * (1 - quarter), 0.0])


def test_the_rate_follows_the_full_budget_not_the_rung(data: EncodedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    original = learning_rate
    monkeypatch.setattr(training, "learning_rate", lambda *args: rates.append(original(*args)) or rates[-1])
    run = trained(tiny_candidate(epochs=5), data, 3)
    assert rates == [0.02] * 9  # three batches an epoch, the last of 13 images; decay begins at 3/5
    run.run_epoch()
    assert 0.02 >= rates[9] > rates[10] > rates[11] > 0
    assert run.optimizer.param_groups[0]["lr"] == rates[11]


# Shifts


def moved(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """(C, H, W) pixel (r, c) of which is the image's (r + dy, c + dx), and 0 beyond its edges."""
    rows, columns = image.shape[1:]
    result = torch.zeros_like(image)
    for r in range(max(0, -dy), min(rows, rows - dy)):
        for c in range(max(0, -dx), min(columns, columns - dx)):
            result[:, r, c] = image[:, r + dy, c + dx]
    return result


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("num_images", [1, training.EVALUATION_BATCH + 3])
def test_images_are_moved_at_random_and_nothing_comes_in(most: int, num_images: int) -> None:
    x = torch.randint(1, 200, (num_images, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = torch.full_like(x, 255)
    shift(x, most, 3, out)
    steps = range(-most, most + 1)
    found = [
        [(dy, dx) for dy in steps for dx in steps if torch.equal(after, moved(before, dy, dx))]
        for before, after in zip(x[-300:], out[-300:], strict=True)
    ]
    assert all(len(each) == 1 for each in found)  # whole, all its planes together
    if num_images > 1:
        assert {each for (each,) in found} == {(dy, dx) for dy in steps for dx in steps}
        again = torch.empty_like(x)
        shift(x, most, 3, again)
        assert torch.equal(again, out)
        shift(x, most, 4, again)
        assert not torch.equal(again, out)


def test_every_epoch_trains_on_images_shifted_anew(data: EncodedDataset) -> None:
    before = data.train.x.clone(), data.validation.x.clone()
    run, by_hand = TrainingRun(CANDIDATES["shift"], data, 7), TrainingRun(CANDIDATES["softmax"], data, 7)
    for epoch in range(3):
        images = torch.empty_like(before[0])
        shift(before[0], 2, derived_seed(7, epoch, training.SHIFTS), out=images)
        by_hand.step = training_step(by_hand.model, by_hand.optimizer, images, data.train.y)
        assert run.run_epoch().loss == by_hand.run_epoch().loss
    not_shifted = trained(CANDIDATES["softmax"], data, 3).model.state_dict()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, by_hand.model.state_dict()[name]), name
        assert torch.equal(value, not_shifted[name]) == (not name.endswith("weights")), name
    assert torch.equal(data.train.x, before[0]) and torch.equal(data.validation.x, before[1])


# Estimators


def test_a_hard_finish_is_the_last_part_of_the_full_budget() -> None:
    spec = TrainSpec(lr=0.1, batch_size=16, epochs=5, estimator="gumbel")
    assert {estimator_at(spec, progress) for progress in (0.0, 0.5, 0.999)} == {"gumbel"}
    spec = replace(spec, hard_finish=0.2)
    assert [estimator_at(spec, progress) for progress in (0.0, 0.79, 0.8, 0.999)] == ["gumbel", "gumbel", "ste", "ste"]
    assert estimator_at(replace(spec, hard_finish=1.0), 0.0) == "ste"


def test_a_hard_finish_trains_the_discrete_network(data: EncodedDataset) -> None:
    """Two of four epochs: what goes into the class sums is soft at first, then bits; the weights go on learning."""
    candidate = tiny_candidate(parametrization="iwp", lr_iwp=0.1)
    run = TrainingRun(replace(candidate, train=replace(candidate.train, hard_finish=0.5)), data, 7)
    outputs: list[torch.Tensor] = []
    run.model[-1].register_forward_pre_hook(lambda module, args: outputs.append(args[0]) if module.training else None)
    weights = []
    for epoch in range(4):
        outputs.clear()
        run.run_epoch()
        assert len(outputs) == 3
        y = torch.cat(outputs)
        assert torch.equal(y, y.round()) == (epoch >= 2)
        weights.append(run.model[0].weights.detach().clone())
    assert 0 < y.mean() < 1
    assert not torch.equal(weights[2], weights[1])
    assert not torch.equal(weights[3], weights[2])


def test_noise_follows_from_seed_and_epoch_whatever_else_draws(data: EncodedDataset) -> None:
    candidate = CANDIDATES["gumbel"]
    expected = trained(candidate, data, 2).checkpoint()
    run = TrainingRun(candidate, data, 7)
    for _ in range(2):
        torch.rand(3)
        trained(CANDIDATES["gumbel"], data, 1, seed=8)  # another trial of the same process
        run.run_epoch()
    assert run.checkpoint() == expected
    soft = replace(candidate, train=replace(candidate.train, estimator="soft"))
    assert not torch.equal(trained(soft, data, 2).model[0].weights, run.model[0].weights)


# The same seed, the same bytes


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_same_seed_gives_the_same_bytes(name: str, data: EncodedDataset) -> None:
    first = trained(CANDIDATES[name], data, 2).checkpoint()
    assert trained(CANDIDATES[name], data, 2).checkpoint() == first
    assert trained(CANDIDATES[name], data, 2, seed=8).checkpoint() != first


@pytest.mark.parametrize("stopped_at", [1, 2])
@pytest.mark.parametrize("name", CANDIDATES)
def test_restored_is_as_if_never_stopped(name: str, stopped_at: int, data: EncodedDataset) -> None:
    whole = trained(CANDIDATES[name], data, 3)
    resumed = TrainingRun(CANDIDATES[name], data, 7)
    resumed.restore(trained(CANDIDATES[name], data, stopped_at).checkpoint())
    assert resumed.epoch == stopped_at
    while resumed.epoch < 3:
        record = resumed.run_epoch()
    assert resumed.checkpoint() == whole.checkpoint()
    assert record.epoch == 3
    assert record.acc_discrete == accuracy(whole.model.eval(), data.validation)


@pytest.mark.parametrize("estimator", ["soft", "gumbel"])
def test_threads_do_not_change_a_bit(dataset: Dataset, estimator: str) -> None:
    """Wide enough that the work is shared: 1,600 gates on batches of 16 and of 13."""
    data = encode_dataset(dataset, replace(TINY.data, num_thresholds=3), CPU)
    candidate = tiny_candidate(k=32, outputs_per_class=160)
    candidate = replace(
        candidate,
        model=replace(candidate.model, input_shape=(3, 28, 28)),
        train=replace(candidate.train, estimator=estimator),
    )
    checkpoints = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            checkpoints.append(trained(candidate, data, 2).checkpoint())
    finally:
        torch.set_num_threads(1)
    assert checkpoints[0] == checkpoints[1] == checkpoints[2]


def test_a_network_learns(data: EncodedDataset) -> None:
    records = []
    run = TrainingRun(tiny_candidate(epochs=20, lr=0.2), data, 7)
    while run.epoch < 20:
        records.append(run.run_epoch())
    assert records[-1].loss < 0.7 * records[0].loss
    assert records[-1].acc_soft > 0.5


def test_every_epoch_sees_every_image_once_in_another_order(data: EncodedDataset) -> None:
    batches: list[torch.Tensor] = []
    run = TrainingRun(tiny_candidate(), data, 7)
    make_step = run.step

    def step(rows: torch.Tensor, lr: float) -> torch.Tensor:
        batches.append(rows)
        return make_step(rows, lr)

    run.step = step
    run.run_epoch()
    run.run_epoch()
    first, second = torch.cat(batches[:3]).tolist(), torch.cat(batches[3:]).tolist()
    assert [len(batch) for batch in batches] == [16, 16, 13] * 2
    assert sorted(first) == sorted(second) == list(range(45))
    assert first != second


# Checkpoints of something else


def test_a_checkpoint_of_another_seed_is_refused(data: EncodedDataset) -> None:
    with pytest.raises(Failure, match=r"^the checkpoint is of seed 7, this run has seed 8$"):
        TrainingRun(tiny_candidate(), data, 8).restore(trained(tiny_candidate(), data, 1).checkpoint())


@pytest.mark.parametrize("other", [{"k": 5}, {"kernel_1": 3}, {"lr": 0.03}, {"parametrization": "iwp", "lr_iwp": 0.1}])
def test_a_checkpoint_of_another_network_is_refused(data: EncodedDataset, other: dict[str, int]) -> None:
    checkpoint = trained(tiny_candidate(**other), data, 1).checkpoint()
    run = TrainingRun(tiny_candidate(), data, 7)
    with pytest.raises(Failure, match=r"^not a checkpoint of this configuration: [^\n]+$"):
        run.restore(checkpoint)


@pytest.mark.parametrize("damage", [b"", b"garbage", "cut", "no epoch"])
def test_a_damaged_checkpoint_is_refused_in_one_line(data: EncodedDataset, damage: bytes | str) -> None:
    checkpoint = trained(tiny_candidate(), data, 1).checkpoint()
    if isinstance(damage, bytes):
        damaged = damage
    else:
        damaged = checkpoint[:-100] if damage == "cut" else checkpoint.replace(b'"epoch"', b'"ehcop"')
    assert damaged != checkpoint
    with pytest.raises(Failure, match=r"^not a checkpoint of this configuration: [^\n]+$"):
        TrainingRun(tiny_candidate(), data, 7).restore(damaged)


# Measuring


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch", [7, 30, 1000])
def test_accuracy_is_over_every_image(
    data: EncodedDataset, monkeypatch: pytest.MonkeyPatch, batch: int, packed: bool
) -> None:
    """30 images in batches of 7: the last has 2. On packed bits or layer by layer, the same."""
    model = trained(tiny_candidate(), data, 2).model.eval()
    with torch.no_grad():
        right = [
            int(model(x[None].float()).argmax()) == int(y)
            for x, y in zip(data.validation.x, data.validation.y, strict=True)
        ]
    monkeypatch.setattr(training, "EVALUATION_BATCH", batch)
    assert training.is_packable(model)
    if not packed:
        monkeypatch.setattr(training, "is_packable", lambda model: False)
    assert accuracy(model, data.validation) == sum(right) / 30


def test_soft_and_discrete_are_two_measurements_of_the_same_weights(data: EncodedDataset) -> None:
    run = trained(tiny_candidate(epochs=20), data, 6)
    soft, discrete = soft_and_discrete_accuracy(run.model, data.validation)
    x = data.validation.x.float()
    run.model.eval()
    with torch.no_grad():
        sums = run.model(x) * run.candidate.model.tau
        assert torch.equal(sums, sums.round())
        with soft_evaluation(run.model):
            soft_sums = run.model(x) * run.candidate.model.tau
            assert accuracy(run.model, data.validation) == soft
    assert not torch.equal(soft_sums, soft_sums.round())
    assert accuracy(run.model, data.validation) == discrete
    assert soft != discrete


# What cannot be trained


def test_divergence_is_told_where_discrete_gates_hide_it(data: EncodedDataset) -> None:
    train = replace(tiny_candidate().train, lr=1.0, weight_decay=1e6, estimator="ste")
    with pytest.raises(Diverged, match=r"^weights are infinite or NaN in epoch [1-4]: lr 1 is likely too high$"):
        trained(replace(tiny_candidate(), train=train), data, 4)


def test_a_diverging_loss_is_told(data: EncodedDataset) -> None:
    candidate = replace(tiny_candidate(), train=replace(tiny_candidate().train, lr=1e38))
    with pytest.raises(Diverged, match=r"^the loss is (nan|inf) in epoch 1: lr 1e\+38 is likely too high$"):
        trained(candidate, data, 2)


def test_a_job_that_diverges_ends_with_that_cause(dataset: Dataset) -> None:
    candidate = replace(tiny_candidate(), train=replace(tiny_candidate().train, lr=1e38))
    *_, last = JobRunner(dataset, CPU).run(Job(0, candidate, 7, 4, None))
    assert isinstance(last, Failed)
    assert last.cause == "nan"


def test_a_job_that_does_not_fit_in_memory_ends_with_that_cause(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_available_bytes", lambda: 1000)
    (failed,) = JobRunner(dataset, CPU).run(Job(0, tiny_candidate(), 7, 4, None))
    assert isinstance(failed, Failed)
    assert failed.cause == "out of memory"


@pytest.mark.parametrize("start", [None, 2])
def test_a_job_counts_gates_at_its_last_epoch(dataset: Dataset, start: int | None) -> None:
    """Those of the network that its checkpoint holds, comparators of its thresholds included."""
    data_spec = replace(TINY.data, num_thresholds=2)
    candidate = tiny_candidate()
    candidate = replace(candidate, data=data_spec, model=replace(candidate.model, input_shape=(2, 28, 28)))
    checkpoint = None
    if start is not None:
        *_, checkpoint = JobRunner(dataset, CPU).run(Job(0, candidate, 7, start, None))
        assert isinstance(checkpoint, bytes)
    *earlier, last, end = JobRunner(dataset, CPU).run(Job(0, candidate, 7, 4, checkpoint))
    assert isinstance(end, bytes) and isinstance(last, EpochRecord)
    run = TrainingRun(candidate, encode_dataset(dataset, data_spec, CPU), 0)
    run.model.load_state_dict({k[6:]: v for k, v in safetensors.torch.load(end).items() if k.startswith("model.")})
    counts = Circuit.from_model(run.model, (2, 28, 28), run.data.thresholds).counts
    assert (last.core_gates, last.total_gates, last.depth) == (counts.core, counts.total, counts.depth)
    assert counts.comparator_gates > 0
    assert last.metrics().items() > {"gates/core": counts.core, "gates/total": counts.total}.items()
    assert len(earlier) == 3 - (start or 0)
    for record in earlier:
        assert isinstance(record, EpochRecord)
        assert (record.core_gates, record.total_gates, record.depth) == (None, None, None)
        assert not [name for name in record.metrics() if name.startswith("gates/")]


def test_memory_of_a_step_is_bounded_from_below() -> None:
    spec = tiny_candidate().model
    parameters = 16 * num_parameters(spec)  # float32 weights, gradients and two moments
    features = 784 + 4 * 6 * 6 + 120
    assert training_bytes(spec, 10) == parameters + 10 * features * 8
    with pytest.raises(Failure, match=r"^training needs at least \d+\.\d GiB and \d+\.\d GiB are available: [^\n]+$"):
        check_memory(spec, 10**12)
    check_memory(spec, 10)


def test_seeds_of_trials_and_epochs_differ() -> None:
    paths = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1), (0, 1, 1), (1, 1, 1)]
    assert len({derived_seed(*path) for path in paths}) == len(paths)
    assert derived_seed(5, 3) == derived_seed(5, 3) < 2**32
