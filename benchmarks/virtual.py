"""An executor that trains nothing: what a job measures and how long it lasts is given, and time is only counted."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from search.jobs import Job
from search.training import EpochRecord
from search.workers import Event, Finished, Progress


@dataclass
class VirtualExecutor:
    """Jobs in the order in which their virtual time ends.

    Args:
        measure: what an epoch of a job measures; the last one before a rung has gates.
        epoch_s: virtual seconds of each of a job's epochs.
        num_workers: jobs at a time.
    """

    measure: Callable[[Job, int], EpochRecord]
    epoch_s: Callable[[Job], float]
    num_workers: int = 1
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
        """All epochs of the job that ends next: between its rungs nothing is decided."""
        self.now_s, _, reached, job = heapq.heappop(self._queue)
        epochs = range(reached + 1, job.until_epoch + 1)
        self.num_events += len(epochs) + 1
        return [
            *(Progress(job, self.measure(job, epoch)) for epoch in epochs),
            Finished(job, str(job.until_epoch).encode()),
        ]

    def close(self) -> None:
        self._queue.clear()

    def describe(self) -> str:
        return f"{self.num_workers} virtual workers"


def pretended(job: Job, epoch: int) -> EpochRecord:
    """A curve that rises at a rate, to a height, of the trial's own; gates that shrink by a third as it is trained."""
    rng = np.random.default_rng(job.seed)
    height, rate = rng.uniform((0.5, 0.02), (0.98, 0.4))
    accuracy = float(height * (1 - np.exp(-rate * epoch)))
    total = int(rng.integers(5_000, 100_000) * (1 - epoch / (3 * job.candidate.train.epochs)))
    gates = (total - 700, total, 20) if epoch == job.until_epoch else (None, None, None)
    return EpochRecord(epoch, 1 / epoch, accuracy + 0.01, accuracy, 1000.0, 1_700_000_000_000 + epoch, *gates)
