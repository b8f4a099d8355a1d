"""An executor that trains nothing: what a job measures and how long it lasts is given, and time is only counted."""

import heapq
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from search.checkpoints import Checkpoints
from search.jobs import Job
from search.storage import TrialView
from search.training import EpochRecord
from search.workers import Event, Finished, Progress


@dataclass
class VirtualExecutor:
    """Jobs in the order in which their virtual time ends.

    Args:
        measure: what an epoch of a job measures; the last one before a rung has gates.
        epoch_s: virtual seconds of each of a job's epochs.
        num_workers: jobs at a time.
        every_epoch: tell of every epoch; otherwise of those at rungs, where decisions fall.
    """

    measure: Callable[[Job, int], EpochRecord]
    epoch_s: Callable[[Job], float]
    num_workers: int = 1
    every_epoch: bool = True
    now_s: float = 0.0
    busy_s: float = 0.0  # of all workers together
    num_events: int = 0
    _queue: list[tuple[float, int, int, Job]] = field(default_factory=list)
    _order: "itertools.count[int]" = field(default_factory=itertools.count)

    def has_room(self) -> bool:
        return len(self._queue) < self.num_workers

    def submit(self, job: Job) -> None:
        reached = int(job.checkpoint) if job.checkpoint else 0
        duration_s = (job.until_epoch - reached) * self.epoch_s(job)
        self.busy_s += duration_s
        heapq.heappush(self._queue, (self.now_s + duration_s, next(self._order), reached, job))

    def wait(self, timeout_s: float) -> list[Event]:
        """What the job that ends next measured, and its end."""
        self.now_s, _, reached, job = heapq.heappop(self._queue)
        epochs = range(reached + 1 if self.every_epoch else job.until_epoch, job.until_epoch + 1)
        self.num_events += len(epochs) + 1
        return [
            *(Progress(job, self.measure(job, epoch)) for epoch in epochs),
            Finished(job, str(job.until_epoch).encode()),
        ]

    def close(self) -> None:
        self._queue.clear()

    def describe(self) -> str:
        return f"{self.num_workers} virtual workers"


class CheckpointsInMemory(Checkpoints):
    """No disk: a simulation's checkpoints hold nothing worth keeping."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, bytes]] = {}

    def write(self, trial: int, epoch: int, checkpoint: bytes) -> None:
        self._kept[trial] = (epoch, checkpoint)

    def read(self, trial: int, epoch: int) -> bytes | None:
        kept_epoch, checkpoint = self._kept.get(trial, (None, None))
        return checkpoint if kept_epoch == epoch else None

    def remove(self, trial: int) -> None:
        self._kept.pop(trial, None)

    def keep_only(self, trials: Iterable[int]) -> None:
        self._kept = {trial: self._kept[trial] for trial in trials if trial in self._kept}


class Clock:
    """Observer that keeps when each trial was told: by the clock, and in time of the processor."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def trial_changed(self, trial: TrialView) -> None:
        if trial.state in ("complete", "failed"):
            self.wall_s.append(time.perf_counter())
            self.cpu_s.append(time.process_time())

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None: ...

    def tick(self) -> None: ...


def ms_a_trial(told_s: list[float], last: int) -> float:
    """Mean over the last trials told."""
    return 1000 * (told_s[-1] - told_s[-last - 1]) / last


def pretended(job: Job, epoch: int) -> EpochRecord:
    """A curve that rises at a rate, to a height, of the trial's own; gates that shrink by a third as it is trained."""
    rng = np.random.default_rng(job.seed)
    height, rate = rng.uniform((0.5, 0.02), (0.98, 0.4))
    accuracy = float(height * (1 - np.exp(-rate * epoch)))
    total = int(rng.integers(5_000, 100_000) * (1 - epoch / (3 * job.candidate.train.epochs)))
    gates = (total - 700, total, 20) if epoch == job.until_epoch else (None, None, None)
    return EpochRecord(epoch, 1 / epoch, accuracy + 0.01, accuracy, 1000.0, 1_700_000_000_000 + epoch, *gates)
