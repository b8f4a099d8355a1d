"""Executors: where jobs run. This process, or Ray actors (`ray_workers`)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from .config import StudyConfig
from .data import Dataset
from .errors import UsageError
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
    """A job ended early.

    cause: "nan", "out of memory", "timeout", "error" (the job's own) or "worker died".
    retry: the job itself may be sound: its worker died, or others took the memory.
    """

    job: Job
    cause: str
    message: str
    retry: bool


Event = Progress | Finished | Broken


class Executor(Protocol):
    """Runs jobs side by side and tells what becomes of them."""

    def has_room(self) -> bool:
        """Whether a further job would start at once. False without a job in flight: workers are being started."""
        ...

    def submit(self, job: Job) -> None: ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits up to about `timeout_s` for the first event.

        Raises:
            Failure: no worker is left and none can be started.
        """
        ...

    def close(self) -> None: ...

    def describe(self) -> str:
        """One line: workers, threads and devices."""
        ...


def make_executor(config: StudyConfig, dataset: Dataset) -> Executor:
    """The executor that a configuration asks for, with the dataset at hand."""
    if config.executor == "inline":
        return InlineExecutor(dataset, config.gpus_per_trial, config.trial_timeout_s)
    from .ray_workers import RayExecutor

    return RayExecutor(config, dataset)


def event_of(job: Job, item: EpochRecord | bytes | Failed) -> Event:
    """What a worker hands back, as the driver is told."""
    if isinstance(item, EpochRecord):
        return Progress(job, item)
    if isinstance(item, Failed):
        return Broken(job, item.cause, item.message, retry=item.cause == "out of memory")
    return Finished(job, item)


def timed_out(job: Job, trial_timeout_s: float) -> Broken:
    """A job that took longer than a rung may."""
    message = f"epoch {job.until_epoch} was not reached within --trial-timeout {trial_timeout_s:g}"
    return Broken(job, "timeout", message, retry=False)


class InlineExecutor:
    """One job at a time in the driver's process: for debugging, and for machines without Ray.

    A trial's timeout is looked at after each epoch: no process can end its own.
    """

    def __init__(
        self, dataset: Dataset, gpus: float | Literal["auto"] | None = None, trial_timeout_s: float | None = None
    ) -> None:
        there = torch.cuda.is_available()
        asked = 1.0 if gpus == "auto" else float(there) if gpus is None else gpus
        if asked > there:  # one job at a time trains on one
            raise UsageError(
                f"--gpus-per-trial {gpus if gpus == 'auto' else format(gpus, 'g')}: --executor inline trains on one "
                f"GPU at most, and PyTorch finds {'one' if there else 'none'} here; leave it out or give {there:d}"
            )
        self._runner = JobRunner(dataset, torch.device("cuda" if asked else "cpu"))
        self._trial_timeout_s = trial_timeout_s
        self._job: Job | None = None
        self._started = 0.0
        self._items: Iterator[EpochRecord | bytes | Failed] = iter(())

    def has_room(self) -> bool:
        return self._job is None

    def submit(self, job: Job) -> None:
        self._job, self._items, self._started = job, self._runner.run(job), time.monotonic()

    def wait(self, timeout_s: float) -> list[Event]:
        if self._job is None:
            return []
        events = [event_of(self._job, next(self._items))]
        if not isinstance(events[0], Progress):
            self._job = None
        elif self._trial_timeout_s is not None and time.monotonic() - self._started > self._trial_timeout_s:
            events.append(timed_out(self._job, self._trial_timeout_s))
            self._job = None
        return events

    def close(self) -> None:
        self._job = None

    def describe(self) -> str:
        return f"inline, {torch.get_num_threads()} threads, {self._runner.device}"
