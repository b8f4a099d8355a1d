"""Who waits at a rung, who goes on and who stops: asynchronous successive halving with second chances.

A trial that reached a rung goes on as soon as it is among the best 1/reduction of all that ever reached it. Until then
it waits there, its checkpoint kept: others that come later may prove to be worse, and with every `reduction` of them
one more goes on. It stops once `patience` trials asked after it have been there and it still is not among the best,
which frees its checkpoint; samplers see what it measured from the first. `PATIENCE` is the longest that was not worse
at equal compute, over the samplers on imitated digits trials (benchmarks/results/stopping.json; no early stopping was
worst). Judged by trial numbers and measurements alone, never by the clock.

Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from .rungs import survivors

PATIENCE: Final = 3


class Verdict(NamedTuple):
    """Trials by number, rising: those that go on to the next rung, and those that stop where they are."""

    go_on: list[int]
    stop: list[int]


class _Measured:
    """What trials measured at a rung, by their numbers: of equals the earlier trial is the better one."""

    def __init__(self) -> None:
        self.trials = np.empty(0, np.int64)  # (T,)
        self.points = np.empty((0, 0))  # (T, D)
        self.excess = np.empty(0)  # (T,)

    def put(self, trial: int, point: Sequence[float], excess: float) -> None:
        row = int(np.searchsorted(self.trials, trial))
        if trial in self.trials[row : row + 1]:  # again, from an earlier checkpoint
            self.points[row], self.excess[row] = point, excess
        else:
            self.trials = np.insert(self.trials, row, trial)
            self.points = np.insert(self.points.reshape(-1, len(point)), row, point, axis=0)
            self.excess = np.insert(self.excess, row, excess)


class Ladder:
    """All rungs but the last, which nobody goes on from.

    Args:
        rungs: epochs, rising.
        reduction: one in so many goes on.
        patience: see the module; infinity lets everybody wait to the end.
    """

    def __init__(self, rungs: Sequence[int], reduction: float, patience: float = PATIENCE) -> None:
        self.reduction, self.patience = reduction, patience
        self._reached = {rung: _Measured() for rung in rungs[:-1]}
        self._waiting: dict[int, int] = {}  # trial -> rung
        self._changed: set[int] = set()

    def reached(self, trial: int, rung: int, point: Sequence[float], excess: float = 0.0) -> None:
        """A trial was measured at a rung: objectives, each to be made larger, and by how much it is over a limit."""
        if rung in self._reached:
            self._reached[rung].put(trial, point, excess)
            self._changed.add(rung)

    def wait(self, trial: int, rung: int) -> None:
        """It has no place yet."""
        self._waiting[trial] = rung
        self._changed.add(rung)

    @property
    def waiting(self) -> list[int]:
        """Trials, by number."""
        return sorted(self._waiting)

    def judge(self) -> Verdict:
        """Whom what is known now lets go on or stop; they no longer wait."""
        verdict = Verdict([], [])
        for rung in sorted(self._changed):
            peers = self._reached[rung]
            places = sorted(t for t, at in self._waiting.items() if at == rung)
            if not places:
                continue
            best = set(peers.trials[survivors(peers.points, self.reduction, peers.excess)].tolist())
            for trial in places:
                if trial in best:
                    verdict.go_on.append(trial)
                elif np.count_nonzero(peers.trials > trial) >= self.patience:
                    verdict.stop.append(trial)
        self._changed.clear()
        for trial in (*verdict.go_on, *verdict.stop):
            del self._waiting[trial]
        return Verdict(sorted(verdict.go_on), sorted(verdict.stop))

    def give_up(self) -> list[int]:
        """Nobody comes any more: all that wait, which then no longer do."""
        trials = self.waiting
        self._waiting.clear()
        return trials
