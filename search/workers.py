"""Executors: where jobs run. Ray actors, or this process. The only file that imports ray, and only when it is used."""

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .config import StudyConfig, num_cores
from .data import Dataset
from .errors import Failure, UsageError, one_line
from .jobs import Failed, Job, JobRunner
from .training import EpochRecord


@dataclass(frozen=True)
class Progress:
    """A job finished an epoch."""

    job: Job
    record: EpochRecord


@dataclass(frozen=True)
class Finished:
    """A job reached its rung: its checkpoint."""

    job: Job
    checkpoint: bytes


@dataclass(frozen=True)
class Broken:
    """A job ended early. `retry`: the worker died, the job itself may be sound."""

    job: Job
    cause: str
    message: str
    retry: bool


Event = Progress | Finished | Broken


class Executor(Protocol):
    """Runs jobs side by side and tells what becomes of them."""

    def has_room(self) -> bool:
        """Whether a further job would start at once."""
        ...

    def submit(self, job: Job) -> None: ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits up to about `timeout_s` for the first event."""
        ...

    def close(self) -> None: ...

    def describe(self) -> str:
        """One line: workers, threads and devices."""
        ...


def make_executor(config: StudyConfig, dataset: Dataset) -> Executor:
    """The executor that a configuration asks for, with the dataset at hand."""
    if config.executor == "inline":
        return InlineExecutor(dataset, config.gpus_per_trial)
    return RayExecutor(config, dataset)


def _event(job: Job, item: EpochRecord | bytes | Failed) -> Event:
    if isinstance(item, EpochRecord):
        return Progress(job, item)
    if isinstance(item, Failed):
        return Broken(job, item.cause, item.message, retry=False)
    return Finished(job, item)


class InlineExecutor:
    """One job at a time in the driver's process: for debugging, and for machines without Ray."""

    def __init__(self, dataset: Dataset, gpus: float | None = None) -> None:
        use_gpu = torch.cuda.is_available() if gpus is None else gpus > 0
        if use_gpu and not torch.cuda.is_available():
            raise UsageError(f"--gpus-per-trial {gpus:g}: PyTorch finds no GPU here; leave it out or give 0")
        self._runner = JobRunner(dataset, torch.device("cuda" if use_gpu else "cpu"))
        self._job: Job | None = None
        self._items: Iterator[EpochRecord | bytes | Failed] = iter(())

    def has_room(self) -> bool:
        return self._job is None

    def submit(self, job: Job) -> None:
        self._job, self._items = job, self._runner.run(job)

    def wait(self, timeout_s: float) -> list[Event]:
        if self._job is None:
            return []
        event = _event(self._job, next(self._items))
        if not isinstance(event, Progress):
            self._job = None
        return [event]

    def close(self) -> None:
        self._job = None

    def describe(self) -> str:
        return f"inline, {torch.get_num_threads()} threads, {self._runner.device}"


class RayExecutor:
    """One Ray actor a worker. Actors are never restarted and tasks never retried by Ray: the driver decides."""

    def __init__(self, config: StudyConfig, dataset: Dataset) -> None:
        # `uv run` makes Ray re-package the folder for its workers, which already run in this environment
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        self._ray = ray
        self._owns_cluster = not ray.is_initialized()
        if self._owns_cluster:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    ray.init(
                        address="local",
                        num_cpus=num_cores(),
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
                except (OSError, RuntimeError, ValueError) as error:
                    raise Failure(f"Ray does not start: {one_line(error)}; --executor inline needs none") from error
        num_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        self._gpus = _gpus_per_worker(config.gpus_per_trial, num_gpus)
        self.num_workers = config.workers or _default_workers(self._gpus, num_gpus)
        if self._gpus * self.num_workers > num_gpus:
            raise UsageError(
                f"{self.num_workers} workers with {self._gpus:g} GPUs each need more than the {num_gpus} there are: "
                "lower --workers or --gpus-per-trial"
            )
        self.threads = _threads(self.num_workers)
        self._dataset = ray.put(dataset)
        self._running: dict[Any, tuple[Job, Any]] = {}
        self._idle = [self._start_actor() for _ in range(self.num_workers)]
        try:  # a worker that cannot start fails here, once, and not trial by trial
            ray.get([actor.ready.remote() for actor in self._idle])
        except ray.exceptions.RayError as error:
            self.close()
            raise Failure(f"the workers do not start: {_last_line(error)}") from error

    def _start_actor(self) -> Any:
        actor_class = self._ray.remote(**actor_options(self.num_workers, self._gpus))(RayWorker)
        return actor_class.remote(self._dataset, self.threads, self._gpus > 0)

    def has_room(self) -> bool:
        return bool(self._idle)

    def submit(self, job: Job) -> None:
        actor = self._idle.pop()
        self._running[actor.run.options(num_returns="streaming").remote(job)] = (job, actor)

    def wait(self, timeout_s: float) -> list[Event]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s, fetch_local=False)
        return [event for stream in ready if (event := self._next_event(stream)) is not None]

    def _next_event(self, stream: Any) -> Event | None:
        job, actor = self._running[stream]
        try:
            event = _event(job, self._ray.get(next(stream)))
        except self._ray.exceptions.RayError as error:
            del self._running[stream]
            self._ray.kill(actor)  # it may still live where only its node was out of reach
            self._idle.append(self._start_actor())
            return Broken(job, "worker died", _last_line(error), retry=True)
        except StopIteration:
            del self._running[stream]
            self._idle.append(actor)
            return Broken(job, "error", "the worker ended without a checkpoint", retry=True)
        if not isinstance(event, Progress):
            del self._running[stream]
            self._idle.append(actor)
        return event

    def close(self) -> None:
        for actor in [*self._idle, *(actor for _, actor in self._running.values())]:
            self._ray.kill(actor)
        if self._owns_cluster:
            self._ray.shutdown()

    def describe(self) -> str:
        device = f"{self._gpus:g} GPU each" if self._gpus else "CPU"
        return f"ray, {self.num_workers} workers of {self.threads} threads, {device}"


class RayWorker:
    """The actor: one process that trains one job at a time and opens no database."""

    def __init__(self, dataset: Dataset, threads: int, use_gpu: bool) -> None:
        torch.set_num_threads(threads)
        if use_gpu and not torch.cuda.is_available():
            raise Failure("a GPU was assigned to this worker and PyTorch cannot use it")
        self._runner = JobRunner(dataset, torch.device("cuda" if use_gpu else "cpu"))

    def ready(self) -> None:
        """Returns once the worker is up."""

    def run(self, job: Job) -> Iterator[EpochRecord | bytes | Failed]:
        yield from self._runner.run(job)


def actor_options(num_workers: int, gpus: float) -> dict[str, Any]:
    """What Ray is asked for each of `num_workers` actors: its share of the cores, and GPUs that it alone sees."""
    threads = _threads(num_workers)
    return {
        "num_cpus": threads if threads * num_workers <= num_cores() else 0,
        "num_gpus": gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }


def _threads(num_workers: int) -> int:
    return max(1, num_cores() // num_workers)


def _last_line(error: Exception) -> str:
    """What Ray says in many lines: the last one names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _gpus_per_worker(asked: float | None, num_gpus: int) -> float:
    if asked is None:
        return 1.0 if num_gpus else 0.0
    if asked > 1 and asked != int(asked):
        raise UsageError(f"--gpus-per-trial {asked:g}: above 1 only whole GPUs can be asked for")
    if asked > num_gpus:
        raise UsageError(f"--gpus-per-trial {asked:g}: there are {num_gpus} GPUs; ask for at most that")
    return asked


def _default_workers(gpus_per_worker: float, num_gpus: int) -> int:
    if gpus_per_worker:
        return max(1, int(num_gpus / gpus_per_worker))
    return max(1, min(num_cores(), 4))
