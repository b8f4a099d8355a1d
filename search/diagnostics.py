"""How a study went, beyond its best trials: whether rungs can be trusted, what stopping early saved, when it got good.

Pure functions of trials as stored. An early rung ranks structures well and learning rates badly: whether it told the
end in this study is seen in this study alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .report import accuracy, complete, gates
from .storage import RUNG_PREFIX, TrialView, rung_epoch

LEAST_N: Final = 4  # trials below which a rank correlation says nothing
# between which gates are scaled, logarithmically: fixed, so that hypervolumes of several studies compare
FEW_GATES: Final = 1e3
MANY_GATES: Final = 1e7


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over n trials; None where there are fewer than `LEAST_N`, or one side is constant."""

    n: int
    value: float | None

    def __str__(self) -> str:
        if self.n < LEAST_N:
            return f"not known (n={self.n}, at least {LEAST_N} are needed)"
        return f"not known (all equal, n={self.n})" if self.value is None else f"{self.value:.2f} (n={self.n})"


def spearman(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    if len(first) < LEAST_N:
        return Correlation(len(first), None)
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt((a @ a) * (b @ b))
    return Correlation(len(first), float(a @ b) / norm if norm else None)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """From 0, (n,)."""
    _, place, counts = np.unique(np.array(values, np.float64), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - counts + (counts - 1) / 2)[place]
    return ranks


def rung_correlations(views: Sequence[TrialView], full_epochs: int) -> dict[int, Correlation]:
    """By rung: its discrete accuracies against the final ones, over the trials that reached the full budget.

    The rungs themselves chose these trials: over all trials, which nobody knows, it would be another number.
    """
    reached = _reached(views, full_epochs)
    rungs = {rung_epoch(name) for view in reached for name in view.attrs if name.startswith(RUNG_PREFIX)}
    correlations = {}
    for rung in sorted(rungs - {full_epochs}):
        pairs = [(record, view.records[-1]) for view in reached if (record := view.at_rung(rung))]
        correlations[rung] = spearman([at.acc_discrete for at, _ in pairs], [end.acc_discrete for _, end in pairs])
    return correlations


def soft_against_discrete(views: Sequence[TrialView], full_epochs: int) -> Correlation:
    """Rank correlation of soft and discrete accuracy after the full budget."""
    last = [view.records[-1] for view in _reached(views, full_epochs)]
    return spearman([record.acc_soft for record in last], [record.acc_discrete for record in last])


def _reached(views: Sequence[TrialView], full_epochs: int) -> list[TrialView]:
    return [view for view in complete(views) if view.epoch == full_epochs]


def compute_saved(views: Sequence[TrialView], full_epochs: int) -> tuple[float, float]:
    """The share of complete trials' epochs that was not trained, of epochs and of epochs times raw gates."""
    done = complete(views)
    epochs = np.array([view.epoch for view in done], np.float64)
    raw = np.array([view.raw_gates for view in done], np.float64)
    return 1 - float(epochs.mean()) / full_epochs, 1 - float((epochs @ raw) / (raw.sum() * full_epochs))


def hypervolume(views: Sequence[TrialView]) -> float:
    """The part of the unit square that the feasible trials dominate, in [0, 1].

    One axis is discrete accuracy, from 0; the other the logarithm of the study's gates, from MANY_GATES at 0 to
    FEW_GATES at 1, beyond which it is cut.
    """
    points = [(_smallness(gates(view)), accuracy(view)) for view in complete(views) if not view.is_infeasible]
    return dominated_area(points)


def dominated_area(points: Iterable[tuple[float, float]]) -> float:
    """The area between the origin and points of no negative coordinate, both to be made larger."""
    area, highest = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if y > highest:
            area, highest = area + x * (y - highest), y
    return area


def _smallness(num_gates: int) -> float:
    scaled = math.log(MANY_GATES / max(1, num_gates)) / math.log(MANY_GATES / FEW_GATES)
    return min(1.0, max(0.0, scaled))


def hypervolume_over_time(views: Sequence[TrialView]) -> list[tuple[int, float, float]]:
    """(number of trials, share of the compute that they took, their hypervolume) after each fifth of them.

    Complete trials in the order they were asked; compute is epochs, each weighted by its trial's raw gates.
    """
    done = sorted(complete(views), key=lambda view: view.number)
    work = np.cumsum([view.epoch * (view.raw_gates or 0) for view in done], dtype=np.float64)
    numbers = sorted({math.ceil(len(done) * fifth / 5) for fifth in range(1, 6)})
    return [(number, float(work[number - 1] / work[-1]), hypervolume(done[:number])) for number in numbers]


def _taken_by(num_trials: int) -> str:
    return "1 trial takes" if num_trials == 1 else f"{num_trials} trials take"


def diagnostics(views: Sequence[TrialView], full_epochs: int) -> list[str]:
    """The report's lines, of one complete trial at least."""
    of_epochs, of_work = compute_saved(views, full_epochs)
    volumes = ", ".join(
        f"{volume:.3f} after {number} ({share:.0%})" for number, share, volume in hypervolume_over_time(views)
    )
    return [
        *(
            f"rank correlation of discrete accuracy after epoch {rung} with that after {full_epochs}: {correlation}"
            for rung, correlation in rung_correlations(views, full_epochs).items()
        ),
        f"rank correlation of soft with discrete accuracy after epoch {full_epochs}: "
        f"{soft_against_discrete(views, full_epochs)}",
        f"stopping early saved {of_epochs:.0%} of the epochs that {_taken_by(len(complete(views)))} at the full "
        f"budget, {of_work:.0%} with each weighted by its raw gates",
        f"hypervolume (discrete accuracy from 0; gates from {MANY_GATES:,.0f} to {FEW_GATES:,.0f}, logarithmic): "
        f"{volumes} trial{'s' * (len(complete(views)) > 1)} (of all compute)",
    ]
