"""How early stopping should tell its trials: the real driver on imitated digits trials, at equal compute.

    python -m benchmarks.stopping --json benchmarks/results/stopping.json

For every sampler and every patience (trials that must come after one before it is told that it stopped; `none` is no
early stopping) a study runs until its trials have spent the compute of `--budget` average trials of the full budget.
Its worth is the hypervolume of the front that its user is shown, with what these networks are truly worth: accuracy
above 0.5, against the logarithm of total gates below 200,000, as a share of the rectangle down to 2,000 gates.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna

from search.config import study_config
from search.data import SOURCES
from search.ladder import Ladder
from search.rungs import front_numbers
from search.storage import TrialView, trial_views
from search.study import DIRECTIONS, StudyDriver
from search.workers import Event

from .machine import circumstances
from .surrogate import SPACE, Surrogate
from .virtual import CheckpointsInMemory, VirtualExecutor

PATIENCES: Final = {"0": 0.0, "3": 3.0, "9": 9.0, "infinite": math.inf, "none": None}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=["tpe", "nsga2", "random"])
    parser.add_argument("--patiences", nargs="+", default=list(PATIENCES), choices=PATIENCES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--budget", type=float, default=25, help="trials of the full budget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    surrogate = Surrogate()
    average_s = statistics.mean(trial["duration_s"] for trial in surrogate.trials)
    report = circumstances(threads=1) | {"budget_trials": arguments.budget, "workers": arguments.workers}
    results: list[dict[str, Any]] = []
    for sampler in arguments.samplers:
        for patience in arguments.patiences:
            start = time.perf_counter()
            runs = [
                worth(surrogate, sampler, PATIENCES[patience], seed, arguments.workers, arguments.budget * average_s)
                for seed in range(arguments.seeds)
            ]
            row: dict[str, Any] = {"sampler": sampler, "patience": patience, "n": len(runs)}
            row |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            results.append(row | {"hypervolumes": [run["hypervolume"] for run in runs]})
            print(f"{ {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} }", end=" ")
            print(f"{time.perf_counter() - start:.0f} s", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")


def worth(
    surrogate: Surrogate, sampler: str, patience: float | None, seed: int, num_workers: int, budget_s: float
) -> dict[str, float]:
    """Of one study: its hypervolume, trials, and the compute that early stopping saved of what they would have had."""
    config = study_config(space=SPACE.name, sampler=sampler, seed=seed, trials=100_000)
    directions = [DIRECTIONS[name] for name in config.objectives]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
    executor = Budgeted(surrogate.measure, surrogate.epoch_s, num_workers, every_epoch=False, budget_s=budget_s)
    driver = StudyDriver(config, study, SOURCES[config.dataset].info, executor, [])
    driver.checkpoints = CheckpointsInMemory()
    rungs, reduction = config.budget.rungs, config.budget.reduction
    driver.ladder = Ladder(rungs, 1) if patience is None else Ladder(rungs, reduction, patience)
    try:
        driver.run()
    except Spent:
        pass
    views = [view for view in trial_views(study, config.gates) if view.records]
    full_s = sum(_epoch_s(surrogate, view) * rungs[-1] for view in views)
    had_s = sum(_epoch_s(surrogate, view) * view.epoch for view in views)
    return {"hypervolume": hypervolume(surrogate, views), "trials": len(views), "saved": 1 - had_s / full_s}


def _epoch_s(surrogate: Surrogate, view: TrialView) -> float:
    assert view.candidate is not None
    return surrogate.forecast(view.candidate, view.attrs["seed"]).epoch_s


def hypervolume(surrogate: Surrogate, views: list[TrialView]) -> float:
    """Of the front as measured, with the accuracies before the noise of the validation images."""
    numbers = front_numbers(np.array([(view.acc_discrete, -float(view.gates or 0)) for view in views]))
    points = []
    for view, number in zip(views, numbers, strict=True):
        if number == 0:
            assert view.candidate is not None and view.gates is not None
            accuracy = surrogate.forecast(view.candidate, view.attrs["seed"]).accuracy[view.epoch]
            points.append((accuracy, math.log(GATES[1] / view.gates) / math.log(GATES[1] / GATES[0])))
    covered, best = 0.0, 0.0
    for accuracy, smallness in sorted(points, reverse=True):  # falling accuracy: each adds what is smaller
        if accuracy > WORST_ACCURACY and smallness > best:
            covered += (smallness - best) * (accuracy - WORST_ACCURACY) / (1 - WORST_ACCURACY)
            best = smallness
    return covered


if __name__ == "__main__":
    main()
