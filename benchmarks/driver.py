"""What a trial costs beside its training: asking, telling, deciding at rungs, storing, logging, showing.

    python -m benchmarks.driver --json benchmarks/results/driver.json

The real driver on sqlite with MLflow's sqlite and the display's lines, over workers that train nothing; a trial's cost
is the mean of the last 100 of 500 at the budget of digits_small, the first 400 made in memory, at random, and copied.
By the clock, and in time of the processor: they differ by what waits for the disk and for a machine that others use.
Then trials of one epoch a second over Ray actors, in a process of its own for each, beside Ray Tune with OptunaSearch:
reused actors, no callbacks, no result files. Both with TPE of the same settings, whose own mathematics is in both, and
at random, where what is left is what they cost themselves.
"""

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from io import StringIO
from pathlib import Path
from typing import Any, Final

from search.tracking import Tracker  # before any other import of mlflow: it turns the telemetry off

# isort: split

import optuna
from rich.console import Console

from search.config import StudyConfig, study_config
from search.data import find_source, load_dataset
from search.database import open_storage
from search.display import Display
from search.jobs import Failed, Job
from search.packages import code_digest
from search.ray_workers import RayExecutor, actor_options
from search.storage import create_or_resume
from search.study import DIRECTIONS, Observer, StudyDriver
from search.training import EpochRecord
from search.workers import Executor

from .machine import circumstances
from .virtual import Clock, VirtualExecutor, ms_a_trial, pretended

OBJECTIVES: Final = {"accuracy": ("accuracy",), "accuracy and gates": ("accuracy", "gates")}
NUM_WORKERS: Final = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--measured", type=int, default=100, help="of the trials, the last")
    parser.add_argument("--ray-trials", type=int, default=200, help="over Ray; 0 leaves them out")
    parser.add_argument("--repeats", type=int, default=3, help="of the trials over Ray")
    parser.add_argument("--samplers", nargs="*", default=["random", "tpe"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # one measurement over Ray: prints a number
    arguments = parser.parse_args()
    if arguments.way:
        print(WAYS[arguments.way](arguments.ray_trials))
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    report = circumstances(threads=1) | {"trials": arguments.trials, "load_average": os.getloadavg()[0]}
    results: list[dict[str, Any]] = []
    for sampler in arguments.samplers:
        for name, objectives in OBJECTIVES.items():
            clock, num_events = overhead(arguments.trials, arguments.measured, sampler=sampler, objectives=objectives)
            last = len(clock.wall_s) - 1
            row = {"sampler": sampler, "objectives": name, "n": last, "events_a_trial": num_events / len(clock.wall_s)}
            row |= {"wall_ms": ms_a_trial(clock.wall_s, last), "cpu_ms": ms_a_trial(clock.cpu_s, last)}
            results.append(row)
            print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    for way in WAYS if arguments.ray_trials else ():
        rates = [arguments.ray_trials / _alone(way, arguments.ray_trials) for _ in range(arguments.repeats)]
        results.append({"way": way, "n": len(rates), "trials_per_second": statistics.median(rates)})
        print(f"{way}: {statistics.median(rates):.1f} trials a second (n={len(rates)}: {rates})", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")


def overhead(trials: int, measured: int, **options: Any) -> tuple[Clock, int]:
    """When each of the last trials of a study was told, and how many events they took."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        config = study_config(trials=trials - measured, **options | {"sampler": "random"})
        before = optuna.create_study(
            study_name=config.study, directions=[DIRECTIONS[name] for name in config.objectives]
        )
        before.set_user_attr("identity", config.identity())
        run(config, before, VirtualExecutor(pretended, lambda job: 1.0, NUM_WORKERS), [])
        storage = open_storage(config.storage, create=True)
        optuna.copy_study(from_study_name=config.study, from_storage=before._storage, to_storage=storage)
        config = study_config(trials=trials, **options)
        executor = VirtualExecutor(pretended, lambda job: 1.0, NUM_WORKERS)
        display = Display(Console(file=StringIO(), width=200), trials, [], config.budget.epochs)
        clock = Clock()
        run(config, stored(config), executor, [_tracker(config, folder), display, clock])
    return clock, executor.num_events


def stored(config: StudyConfig) -> optuna.Study:
    """As `search.run` opens it."""
    directions = [DIRECTIONS[name] for name in config.objectives]
    return create_or_resume(config.storage, config.study, directions, config.metric_names, config.identity())


def run(config: StudyConfig, study: optuna.Study, executor: Executor, observers: list[Observer]) -> None:
    """The real driver, to the study's total, as `search.run` runs it."""
    gc.freeze()
    StudyDriver(config, study, find_source(config.dataset).info, executor, observers).run()


def _tracker(config: StudyConfig, folder: str) -> Tracker:
    def fail(line: str) -> None:
        raise RuntimeError(line)

    return Tracker(config.study, "benchmark", f"sqlite:///{folder}/mlflow.db", fail)


class NoTraining:
    """A worker for `RayExecutor` whose epochs take no time."""

    def ready(self) -> tuple[str, str]:
        return "", code_digest()

    def run(self, job: Job) -> Iterator[EpochRecord | bytes | Failed]:
        for epoch in range(1, job.until_epoch + 1):
            yield pretended(job, epoch)
        yield str(job.until_epoch).encode()


class NoTrainingExecutor(RayExecutor):
    """Real actors of no work."""

    def _start_worker(self) -> None:
        actor: Any = self._ray.remote(**actor_options(self.placement))(NoTraining).remote()
        self._starting[actor.ready.remote()] = (actor, time.monotonic())


def driver_s(trials: int, sampler: str, with_mlflow: bool = False) -> float:
    """Seconds of a study of one-epoch trials, accuracy alone, over two actors that are up."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        config = study_config(trials=trials, epochs=1, objectives=("accuracy",), workers=NUM_WORKERS, sampler=sampler)
        observers: list[Observer] = [_tracker(config, folder)] if with_mlflow else []
        executor = NoTrainingExecutor(config, load_dataset(config.dataset, None, None))
        try:
            start = time.perf_counter()
            run(config, stored(config), executor, observers)
            return time.perf_counter() - start
        finally:
            executor.close()


def ray_tune_s(trials: int, sampler: str) -> float:
    """Seconds of Ray Tune with OptunaSearch, on the same space."""
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "100000",
        "TUNE_MAX_PENDING_TRIALS_PG": str(NUM_WORKERS),
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None: ...

        def step(self) -> dict[str, Any]:
            return {"accuracy": 0.5, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(num_cpus=NUM_WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            Nothing,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(_sample, metric="accuracy", mode="max", sampler=SAMPLERS[sampler]()),
                num_samples=trials,
                max_concurrent_trials=NUM_WORKERS,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        start = time.perf_counter()
        tuner.fit()
        duration_s = time.perf_counter() - start
    ray.shutdown()
    return duration_s


def _sample(trial: optuna.Trial) -> None:
    study_config().search_space.sample(trial)


SAMPLERS: Final[dict[str, Callable[[], optuna.samplers.BaseSampler]]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=0, multivariate=True, group=True, constant_liar=True),
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
}
WAYS: Final[dict[str, Callable[[int], float]]] = {
    "driver over Ray actors, tpe": lambda trials: driver_s(trials, "tpe"),
    "driver over Ray actors, tpe, with MLflow": lambda trials: driver_s(trials, "tpe", with_mlflow=True),
    "Ray Tune with OptunaSearch, tpe": lambda trials: ray_tune_s(trials, "tpe"),
    "driver over Ray actors, random": lambda trials: driver_s(trials, "random"),
    "Ray Tune with OptunaSearch, random": lambda trials: ray_tune_s(trials, "random"),
}


def _alone(way: str, trials: int) -> float:
    """Seconds that one of the ways takes, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.driver", "--way", way, "--ray-trials", str(trials)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}  # for actors: the studies lie elsewhere
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
