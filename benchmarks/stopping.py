"""How early stopping should tell its trials: the real driver on imitated digits trials, at equal compute.

    python -m benchmarks.stopping --json benchmarks/results/stopping.json

Of every sampler, a study for each patience (trials that must come after one before it is told that it stopped) and each
way to tell it: COMPLETE with the values of its last rung, PRUNED, or FAIL. Told COMPLETE, samplers see what a trial
measured at its last rung while it waits; otherwise only once it is told. With infinite patience nobody is told, in
`none` nobody stops, and random search does not listen: there all are the same. A study runs until its trials have spent
the compute of `--budget` average trials of the full budget; with gp, whose models take a second a trial and more, of
fewer, and with fewer seeds (`SLOW`). Its worth is the hypervolume of the front that its user is
shown, with what these networks are truly worth: accuracy above 0.5, against the logarithm of total gates below 200,000,
as a share of the rectangle down to 2,000 gates. What is in the file already is kept: the same command goes on.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from search.config import study_config
from search.data import find_source
from search.diagnostics import dominated_area
from search.ladder import Ladder
from search.rungs import front_numbers
from search.storage import TrialView, trial_views
from search.study import DIRECTIONS, StudyDriver
from search.workers import Event

from .machine import circumstances
from .surrogate import SPACE, Surrogate
from .virtual import CheckpointsInMemory, VirtualExecutor

TELLINGS: Final = ("complete", "pruned", "fail")
FINITE: Final = {"0": 0.0, "3": 3.0, "9": 9.0}
PATIENCES: Final = {**FINITE, "infinite": math.inf, "none": None}
SLOW: Final = {"gp": (10.0, 12)}  # at most: trials of the full budget, seeds
WORST_ACCURACY: Final = 0.5
GATES: Final = (2_000, 200_000)


class Spent(Exception):
    """The study has had its compute."""


@dataclass
class Budgeted(VirtualExecutor):
    """Ends the study once `budget_s` of all workers together are spent."""

    budget_s: float = math.inf

    def wait(self, timeout_s: float) -> list[Event]:
        events = super().wait(timeout_s)
        if self.num_workers * self.now_s >= self.budget_s:
            raise Spent
        return events


@dataclass
class Way:
    """What is compared: a sampler, how long a trial may wait, as what one that stops is told; its compute."""

    sampler: str
    patience: str
    telling: str
    budget_trials: float


class Telling(StudyDriver):
    """The driver, telling stopped trials as it is told to."""

    telling: str = "complete"

    def _preview(self, view: TrialView, values: list[float], violations: dict[str, float]) -> None:
        if self.telling == "complete" and self.ladder.reduction > 1:
            super()._preview(view, values, violations)

    def _stop(self, number: int) -> None:
        if self.telling == "complete":
            super()._stop(number)
            return
        self._set_attr(number, "stopped_at_rung", self._view(number).epoch)
        self.study.tell(number, state=TrialState.PRUNED if self.telling == "pruned" else TrialState.FAIL)
        self.checkpoints.remove(number)
        self._views.pop(number, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=["tpe", "nsga2", "random", "gp"])
    parser.add_argument("--patiences", nargs="+", default=list(PATIENCES), choices=PATIENCES)
    parser.add_argument("--tellings", nargs="+", default=list(TELLINGS), choices=TELLINGS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--budget", type=float, default=25, help="trials of the full budget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)  # of the Gaussian processes
    surrogate = Surrogate()
    report = circumstances(threads=1) | {"workers": arguments.workers}
    results: list[dict[str, Any]] = kept(arguments.json, report)
    for way in ways(arguments.samplers, arguments.patiences, arguments.tellings, arguments.budget):
        seeds = min(arguments.seeds, SLOW.get(way.sampler, (0, arguments.seeds))[1])
        before = next((row for row in results if asdict(way).items() <= row.items()), None)
        if before is not None and before["n"] >= seeds:
            continue
        start = time.perf_counter()
        runs = [worth(surrogate, way, seed, arguments.workers) for seed in range(seeds)]
        row: dict[str, Any] = asdict(way) | {"n": len(runs)}
        row |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        results = [each for each in results if each is not before]
        results.append(row | {"hypervolumes": [run["hypervolume"] for run in runs]})
        print(f"{ {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} }", end=" ")
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")
    if {row["patience"] for row in results} >= set(FINITE):
        print(f"the patience to take: {best_patience(results):g}")


def kept(file: Path | None, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with as many workers."""
    if file is None or not file.exists():
        return []
    before: dict[str, Any] = json.loads(file.read_text())
    return [row for row in before["results"] if "telling" in row and before["workers"] == report["workers"]]


def ways(samplers: Sequence[str], patiences: Sequence[str], tellings: Sequence[str], budget: float) -> Iterator[Way]:
    """All that differ."""
    for sampler in samplers:
        for patience in patiences:
            same = sampler == "random" or patience not in FINITE
            for telling in ("complete",) if same else tellings:
                yield Way(sampler, patience, telling, min(budget, SLOW.get(sampler, (budget, 0))[0]))


def best_patience(results: Sequence[dict[str, Any]]) -> float:
    """The longest finite one that is not worse than the best, stopped trials told complete.

    By the mean over the samplers of median hypervolumes; not worse is within a standard error of the best one's mean
    (the rule of Breiman et al. 1984 for choosing among equals: a trial that waits costs a checkpoint, and may go on).
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        if row["patience"] in FINITE and row.get("telling", "complete") == "complete":
            rows.setdefault(row["patience"], []).append(row)
    means = {patience: statistics.mean(row["hypervolume"] for row in own) for patience, own in rows.items()}
    best = max(means, key=lambda patience: means[patience])
    variances = [math.pi / 2 * statistics.variance(row["hypervolumes"]) / row["n"] for row in rows[best]]  # of medians
    least = means[best] - math.sqrt(sum(variances)) / len(variances)
    return max(FINITE[patience] for patience, mean in means.items() if mean >= least)


def worth(surrogate: Surrogate, way: Way, seed: int, num_workers: int) -> dict[str, float]:
    """Of one study: its hypervolume, trials, and the compute that early stopping saved of what they would have had."""
    config = study_config(space=SPACE.name, sampler=way.sampler, seed=seed, trials=100_000)
    directions = [DIRECTIONS[name] for name in config.objectives]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
    budget_s = way.budget_trials * statistics.mean(trial["duration_s"] for trial in surrogate.trials)
    executor = Budgeted(surrogate.measure, surrogate.epoch_s, num_workers, every_epoch=False, budget_s=budget_s)
    driver = Telling(config, study, find_source(config.dataset).info, executor, [])
    driver.telling = way.telling
    driver.checkpoints = CheckpointsInMemory()
    rungs, reduction = config.budget.rungs, config.budget.reduction
    patience = PATIENCES[way.patience]
    driver.ladder = Ladder(rungs, 1) if patience is None else Ladder(rungs, reduction, patience)
    with suppress(Spent):
        driver.run()
    views = [view for view in trial_views(study, config.gates) if view.records]

    def true_accuracy(view: TrialView) -> float:
        assert view.candidate is not None
        return surrogate.forecast(view.candidate, view.attrs["seed"]).accuracy[view.epoch]

    def epoch_s(view: TrialView) -> float:
        assert view.candidate is not None
        return surrogate.forecast(view.candidate, view.attrs["seed"]).epoch_s

    return {
        "hypervolume": hypervolume(views, true_accuracy),
        "trials": len(views),
        "saved": saved(views, epoch_s, rungs[-1]),
    }


def saved(views: Sequence[TrialView], epoch_s: Callable[[TrialView], float], full_epochs: int) -> float:
    """The part of the compute of these trials at the full budget that was not spent."""
    costs = [(epoch_s(view), view.epoch) for view in views]
    return 1 - sum(cost * epochs for cost, epochs in costs) / sum(cost * full_epochs for cost, _ in costs)


def hypervolume(views: Sequence[TrialView], accuracy: Callable[[TrialView], float]) -> float:
    """Of the front as measured on validation, with these accuracies."""
    numbers = front_numbers(np.array([(view.acc_discrete, -float(view.gates or 0)) for view in views]))
    points = []
    for view, number in zip(views, numbers, strict=True):
        if number == 0 and view.gates is not None and view.gates < GATES[1]:
            smallness = math.log(GATES[1] / view.gates) / math.log(GATES[1] / GATES[0])
            points.append((smallness, max(0.0, accuracy(view) - WORST_ACCURACY) / (1 - WORST_ACCURACY)))
    return dominated_area(points)


if __name__ == "__main__":
    main()
