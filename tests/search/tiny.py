"""A space and a dataset so small that a trial takes moments, sessions of its studies, and an executor that pretends."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from convlogic_core import ConvSpec, DenseSpec, ModelSpec
from search.candidate_file import Origin
from search.config import StudyConfig, study_config
from search.data import Dataset, Images
from search.jobs import Job
from search.storage import TrialView, create_or_resume, trial_views
from search.study import DIRECTIONS, Observer, StudyDriver
from search.training import EpochRecord
from search.workers import Broken, Event, Executor, Finished, InlineExecutor, Progress
from spaces import Budget, Candidate, DataSpec, Known, Space, TrainSpec
from spaces.space import Choice, InputInfo, Parameter, Range, Value

INFO = InputInfo((1, 28, 28), 10)
RUNGS = (1, 3, 9)  # of nine epochs, and of one and three


def build(params: Mapping[str, Value], data: DataSpec, info: InputInfo, epochs: int) -> Candidate:
    """One block, one dense layer: one or two thousand gates. One candidate in twelve does not exist."""
    channels, rows, columns = info.image_shape
    if params["kernel_1"] == 7 and params["k"] == 5:
        raise ValueError("five kernels of size 7 do not fit together")
    softmax = params["parametrization"] == "softmax"
    model = ModelSpec(
        input_shape=(channels * data.num_thresholds, rows, columns),
        conv=(ConvSpec(int(params["k"]), kernel=int(params["kernel_1"]), stride=2, padding=0, tree_depth=2),),
        dense=(DenseSpec(10 * int(params["outputs_per_class"])),),
        num_classes=info.num_classes,
        tau=float(params["tau_c"]) * 2,
        parametrization=str(params["parametrization"]),
    )
    lr = float(params["lr" if softmax else "lr_iwp"])
    return Candidate(data, model, TrainSpec(lr, batch_size=16, epochs=epochs, decay_fraction=0.4))


BASELINE: dict[str, Value] = {
    "k": 4,
    "kernel_1": 5,
    "outputs_per_class": 12,
    "tau_c": 1.0,
    "parametrization": "softmax",
    "lr": 0.02,
}

TINY = Space(
    name="tiny",
    description="for tests",
    data=DataSpec("digits"),
    parameters=(
        Parameter("k", Range(2, 5)),
        Parameter("kernel_1", Choice((3, 5, 7))),
        Parameter("outputs_per_class", Range(9, 16)),
        Parameter("tau_c", Range(0.2, 2.0, log=True)),
        Parameter("parametrization", Choice(("softmax", "iwp"))),
        Parameter("lr", Range(0.005, 0.05, log=True), when=("parametrization", ("softmax",))),
        Parameter("lr_iwp", Range(0.02, 0.3, log=True), when=("parametrization", ("iwp",))),
    ),
    build=build,
    known=(Known("published", "a test", BASELINE),),
    budget=Budget(epochs=9),
)


def tiny_candidate(epochs: int = 4, **params: Value) -> Candidate:
    return build({**BASELINE, **params}, TINY.data, INFO, epochs)


def tiny_origin() -> Origin:
    return Origin("tiny", 3, None, 1, 0.5, 0.6, 2280, {"k": 4, "lr": 0.02})


def synthetic_dataset() -> Dataset:
    """45 training and 30 validation images: bars whose row is the class, in noise."""
    rng = np.random.default_rng(0)

    def images(number: int) -> Images:
        labels = np.arange(number) % 10
        pixels = rng.integers(0, 256, (number, 1, 28, 28), np.uint8) // 2
        for image, label in zip(pixels, labels, strict=True):
            image[0, 2 * label + 3 : 2 * label + 7] = 255
        return Images(pixels, labels)

    return Dataset("digits", INFO, images(45), images(30))


@dataclass
class Runs:
    """Sessions of tiny studies in the current folder.

    Args:
        dataset: what the inline executor trains on.
        memory: where studies are kept between sessions; None is the configuration's own storage, sqlite.
    """

    dataset: Dataset
    memory: InMemoryStorage | None

    def config(self, **options: Any) -> StudyConfig:
        return study_config(**{"space": "tiny", "trials": 4, "epochs": 9, "executor": "inline", **options})

    def study(self, config: StudyConfig) -> optuna.Study:
        directions = [DIRECTIONS[name] for name in config.objectives]
        if self.memory is not None:
            return optuna.create_study(
                study_name=config.study, storage=self.memory, directions=directions, load_if_exists=True
            )
        return create_or_resume(config.storage, config.study, directions, config.metric_names, config.identity())

    def __call__(
        self, executor: Executor | None = None, observers: Iterable[Observer] = (), **options: Any
    ) -> list[TrialView]:
        """One session; every trial as stored at its end."""
        config = self.config(**options)
        study = self.study(config)
        StudyDriver(config, study, INFO, executor or InlineExecutor(self.dataset), [*observers]).run()
        return trial_views(study, config.gates)


def measured(job: Job, epoch: int) -> EpochRecord:
    """What a pretended epoch measures: it follows from seed and epoch, as in a real one. Gates at rungs alone."""
    rng = np.random.default_rng([job.seed, epoch])
    record = EpochRecord(
        epoch, 1 / epoch, *rng.uniform(0.1, 0.9, 2).round(3).tolist(), 1000.0, 1_700_000_000_000 + epoch
    )
    core, depth = rng.integers((300, 3), (900, 9)).tolist()
    return replace(record, core_gates=core, total_gates=core + 700, depth=depth) if epoch in RUNGS else record


Script = Callable[[Job, list[Event]], list[Event]]


class FakeExecutor:
    """Trains nothing. `script` may replace what becomes of a job; `jobs` remembers all that were handed out."""

    def __init__(self, script: Script = lambda job, events: events, num_workers: int = 1) -> None:
        self.script, self.num_workers = script, num_workers
        self.jobs: list[Job] = []
        self._running: list[Job] = []

    def has_room(self) -> bool:
        return len(self._running) < self.num_workers

    def submit(self, job: Job) -> None:
        assert self.has_room()
        self.jobs.append(job)
        self._running.append(job)

    def wait(self, timeout_s: float) -> list[Event]:
        job = self._running.pop(0)
        reached = 0
        if job.checkpoint is not None:
            seed, epoch = map(int, job.checkpoint.split())
            assert seed == job.seed
            reached = epoch
        events: list[Event] = [Progress(job, measured(job, e)) for e in range(reached + 1, job.until_epoch + 1)]
        return self.script(job, [*events, Finished(job, f"{job.seed} {job.until_epoch}".encode())])

    def close(self) -> None: ...

    def describe(self) -> str:
        return "pretended"


def finish(executor: Executor, num_jobs: int = 1) -> list[Event]:
    """Everything that happens until so many jobs have ended."""
    events: list[Event] = []
    while sum(not isinstance(event, Progress) for event in events) < num_jobs:
        events += executor.wait(10.0)
    return events


def long_job(until_epoch: int = 2, checkpoint: bytes | None = None, trial: int = 0, **params: Value) -> Job:
    """Part of a training that would take hours."""
    return Job(trial, tiny_candidate(epochs=100_000, **params), 7 + trial, until_epoch, checkpoint)


def no_warning(line: str) -> None:
    """For what warns where nothing is to be warned of."""
    raise AssertionError(line)


def broken(job: Job, retry: bool, cause: str = "worker died") -> list[Event]:
    """A job that ends after an epoch."""
    return [Progress(job, measured(job, 1)), Broken(job, cause, f"{cause} in a test", retry)]


def stored_trial(
    number: int,
    accuracies: Mapping[int, float],
    *,
    total: int = 10_000,
    raw: int = 20_000,
    acc_soft: float = 0.5,
    excess: int = 0,
    state: TrialState = TrialState.COMPLETE,
) -> TrialView:
    """A trial as a study would hold it: its discrete accuracies by rung; `excess` gates over the limit."""
    attrs: dict[str, Any] = {"gates_raw": raw}
    for epoch, acc in accuracies.items():
        record = EpochRecord(epoch, 0.1, acc_soft, acc, 1000.0, 1_700_000_000_000, total // 2, total, 5)
        attrs[f"rung_{epoch}"] = [record.to_json()]
    values = [list(accuracies.values())[-1], float(total)] if state == TrialState.COMPLETE else None
    constraints = {"gates/total": float(excess)} if excess else None
    frozen = optuna.trial.create_trial(state=state, values=values, user_attrs=attrs, constraints=constraints)
    frozen.number = number
    return TrialView(frozen, "total")


def counted(views: list[TrialView]) -> int:
    return sum(view.counts for view in views)


def params(views: list[TrialView]) -> list[dict[str, Any]]:
    return [view.params for view in views]


def refusing_from(number: int) -> Any:
    """A driver's `_candidate` that refuses every trial from this number on."""
    candidate = StudyDriver._candidate

    def refuse(driver: StudyDriver, trial: Any) -> Any:
        drawn, problem = candidate(driver, trial)
        return drawn, problem or ("it is not liked" if trial.number >= number else None)

    return refuse
