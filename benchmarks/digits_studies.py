"""Real studies of digits_small at equal compute: early stopping for two objectives, and what one would do without it.

    python -m benchmarks.digits_studies --json benchmarks/results/digits_studies.json

Two objectives with this project's early stopping; random search; Optuna's TPE for two objectives; the latter two train
every trial to the full budget. Real training, one thread a process. A study asks for trials until those it has had have
spent `--budget` average trials of the full budget, in forecast seconds of training, so that nothing depends on the
machine; what runs then is trained to its end, which favours those without early stopping. Its worth is the hypervolume
of its front as in `benchmarks.stopping`: by validation accuracy, and, as the best of many noisy figures flatters who
has more of them, by the test accuracy of the same networks, which no study sees. What is in the file already is kept:
the same command goes on.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import optuna
import torch

from search.config import study_config
from search.data import Dataset, load_dataset, load_test
from search.jobs import Job
from search.storage import TrialView, trial_views
from search.study import DIRECTIONS, StudyDriver
from search.training import TrainingRun, encode, encode_dataset, soft_and_discrete_accuracy
from search.workers import Event, Finished, InlineExecutor, Progress

from .machine import circumstances
from .stopping import Spent, hypervolume, saved
from .surrogate import SPACE, Surrogate
from .virtual import CheckpointsInMemory

WAYS: Final[dict[str, dict[str, Any]]] = {
    "two objectives, early stopping": {"sampler": "tpe", "early_stopping": "halving"},
    "random search": {"sampler": "random", "early_stopping": "none"},
    "Optuna's TPE without early stopping": {"sampler": "tpe", "early_stopping": "none"},
}
SEED: Final = 100  # the first: other than those that the curves of `benchmarks.stopping` come from


@dataclass(frozen=True)
class Task:
    """One study."""

    way: str
    seed: int
    budget_trials: float
    epochs: int | None


class Budgeted(InlineExecutor):
    """Trains for real, until the study has had its compute; measures every rung on the test set too."""

    def __init__(self, dataset: Dataset, surrogate: Surrogate, budget_s: float) -> None:
        super().__init__(dataset, 0.0)
        self.surrogate, self.left_s = surrogate, budget_s
        self.test_accuracy: dict[tuple[int, int], float] = {}
        self._data = encode_dataset(dataset, SPACE.data, torch.device("cpu"))
        self._test = encode(load_test(dataset.name, None), self._data.thresholds, torch.device("cpu"))

    def submit(self, job: Job) -> None:
        if self.left_s <= 0:
            raise Spent
        super().submit(job)

    def wait(self, timeout_s: float) -> list[Event]:
        events = super().wait(timeout_s)
        for event in events:
            if isinstance(event, Progress):
                self.left_s -= self.surrogate.epoch_s(event.job)
            elif isinstance(event, Finished):
                run = TrainingRun(event.job.candidate, self._data, event.job.seed)
                run.restore(event.checkpoint)
                accuracy = soft_and_discrete_accuracy(run.model, self._test)[1]
                self.test_accuracy[event.job.trial, event.job.until_epoch] = accuracy
        return events


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=25, help="trials of the full budget, for each study")
    parser.add_argument("--epochs", type=int, default=None, help="full budget; the space's where left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="studies at a time, a thread each")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="the figures")
    arguments = parser.parse_args()
    tasks = [
        Task(way, SEED + seed, arguments.budget, arguments.epochs) for seed in range(arguments.seeds) for way in WAYS
    ]
    studies: list[dict[str, Any]] = []
    if arguments.json.exists():
        studies = json.loads(arguments.json.read_text())["studies"]
    left = [task for task in tasks if not any(asdict(task).items() <= study.items() for study in studies)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for study in pool.imap_unordered(studied, left):
            studies.append(study)
            print({name: round(v, 4) if isinstance(v, float) else v for name, v in study.items()}, flush=True)
            report = circumstances(threads=1) | {"space": SPACE.name, "processes": arguments.processes}
            rows = [*medians(studies, arguments.budget, arguments.epochs)]
            arguments.json.write_text(json.dumps(report | {"results": rows, "studies": studies}, indent=2) + "\n")
    for row in medians(studies, arguments.budget, arguments.epochs):
        print(row)


def medians(studies: list[dict[str, Any]], budget_trials: float, epochs: int | None) -> Iterator[dict[str, Any]]:
    """A row for each way that has studies of this budget."""
    for way in WAYS:
        own = [
            study
            for study in studies
            if (study["way"], study["budget_trials"], study["epochs"]) == (way, budget_trials, epochs)
        ]
        if own:
            names = ("hypervolume", "test_hypervolume", "trials", "saved")
            row = {name: statistics.median(study[name] for study in own) for name in names}
            yield {"way": way, "budget_trials": budget_trials, "epochs": epochs, "n": len(own)} | row


def studied(task: Task) -> dict[str, Any]:
    """What one study was worth."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start, start_cpu = time.perf_counter(), time.process_time()
    surrogate = Surrogate()
    config = study_config(
        space=SPACE.name, seed=task.seed, trials=100_000, epochs=task.epochs, executor="inline", **WAYS[task.way]
    )
    full_s = statistics.mean(trial["duration_s"] for trial in surrogate.trials)  # of the space's own budget
    budget_s = task.budget_trials * full_s * config.budget.epochs / SPACE.budget.epochs
    dataset = load_dataset(config.dataset, None, None)
    executor = Budgeted(dataset, surrogate, budget_s)
    study = optuna.create_study(directions=[DIRECTIONS[name] for name in config.objectives])
    with tempfile.TemporaryDirectory() as folder, chdir(folder), suppress(Spent):
        driver = StudyDriver(config, study, dataset.info, executor, [])
        driver.checkpoints = CheckpointsInMemory()
        driver.run()
    views = [view for view in trial_views(study, config.gates) if view.records]

    def epoch_s(view: TrialView) -> float:
        assert view.candidate is not None
        return surrogate.forecast(view.candidate, view.attrs["seed"]).epoch_s

    return asdict(task) | {
        "hypervolume": hypervolume(views, lambda view: view.acc_discrete or 0.0),
        "test_hypervolume": hypervolume(views, lambda view: executor.test_accuracy[view.number, view.epoch]),
        "trials": len(views),
        "saved": saved(views, epoch_s, config.budget.epochs),
        "forecast_s": budget_s - executor.left_s,
        "cpu_s": time.process_time() - start_cpu,
        "duration_s": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
