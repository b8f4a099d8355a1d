"""How many workers one driver keeps busy: the real driver, in virtual time, with studies in memory.

    python -m benchmarks.simulate --json benchmarks/results/simulate.json

Networks of mnist_small train as long as gates and images say, at the speed of one core or of many; their curves are
pretended and cross. A driver is saturated once its own time exceeds that in which its workers would bring it the same
events: `busy` is the share of the simulated time that the driver works, `saturating_workers` the number where it is 1.
What the driver needs is counted in time of the processor, over the whole study: with many workers its last trials were
all asked long before. A database comes on top of it (`benchmarks.driver`).
"""

import argparse
import json
from pathlib import Path
from typing import Any, Final

import optuna

from convlogic_core import raw_gates
from search.config import study_config
from search.data import find_source
from search.jobs import Job
from search.study import DIRECTIONS, StudyDriver

from .machine import circumstances
from .virtual import CheckpointsInMemory, Clock, VirtualExecutor, ms_a_trial, pretended

NUM_IMAGES: Final = 50_000
GATE_IMAGES_PER_S: Final = 3e9  # of one core: k=16, the published mnist_s, at about a second an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sampler", nargs="+", default=["random", "tpe"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--trials", type=int, nargs="+", default=[10_000, 2_000], help="one number a sampler")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report = circumstances(threads=1)
    simulations: list[dict[str, Any]] = []
    for sampler, trials in zip(arguments.sampler, arguments.trials, strict=True):
        for num_workers in arguments.workers:
            simulations.append(simulated(sampler, num_workers, trials))
            print(", ".join(f"{key} {value}" for key, value in simulations[-1].items()), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(report | {"simulations": simulations}, indent=2) + "\n")


def epoch_s(job: Job) -> float:
    """Of one core."""
    return raw_gates(job.candidate.model) * NUM_IMAGES / GATE_IMAGES_PER_S


def simulated(sampler: str, num_workers: int, trials: int) -> dict[str, Any]:
    """A study of two objectives to its end."""
    config = study_config(space="mnist_small", sampler=sampler, trials=trials)
    study = optuna.create_study(directions=[DIRECTIONS[name] for name in config.objectives])
    executor, clock = VirtualExecutor(pretended, epoch_s, num_workers), Clock()
    driver = StudyDriver(config, study, find_source(config.dataset).info, executor, [clock])
    driver.checkpoints = CheckpointsInMemory()
    driver.run()
    told = len(clock.cpu_s)
    ms = ms_a_trial(clock.cpu_s, told - 1)
    worker_s = executor.busy_s / told
    return {
        "sampler": sampler,
        "workers": num_workers,
        "trials": told,
        "events_a_trial": executor.num_events / told,
        "worker_s_a_trial": worker_s,
        "driver_ms_a_trial": ms,
        "busy": ms / 1000 / worker_s * num_workers,
        "saturating_workers": int(worker_s / (ms / 1000)),
        "simulated_hours": executor.now_s / 3600,
    }


if __name__ == "__main__":
    main()
