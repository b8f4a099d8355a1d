"""Which trials are best, for one objective or two.

Points are rows (T trials, D = 1 or 2 objectives), every objective to be made larger.
Source: non-dominated sorting with crowding, Deb et al. 2002, NSGA-II.
"""

import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def survivors(points: Points, reduction: float, excess: NDArray[np.float64] | None = None) -> list[int]:
    """Rows of the best 1/reduction, rounded up, the best first."""
    return best_first(points, excess, math.ceil(len(points) / reduction))


def best_first(points: Points, excess: NDArray[np.float64] | None = None, number: int | None = None) -> list[int]:
    """Rows in order: by non-dominated front, within a front by crowding distance, the first objective breaking ties.

    Rows over a limit, by the positive `excess` (T,), come after all others, the least over it first. `number` are
    asked for; None is all.
    """
    over = np.zeros(len(points)) if excess is None else np.maximum(excess, 0)
    front = front_numbers(points)
    crowding = np.zeros(len(points))
    for each in np.unique(front[np.lexsort((front, over))[:number]]):  # the rest needs no order
        members = np.flatnonzero(front == each)
        crowding[members] = crowding_distances(points[members])
    order: list[int] = np.lexsort((-points[:, 0], -crowding, front, over)).tolist()  # stable: then by row
    return order[:number]


def front_numbers(points: Points) -> NDArray[np.int64]:
    """For every row the number of its front: 0 is dominated by none, 1 only by rows of front 0, and so on.

    For one objective or two: rows are gone through from the best in the first one, so that a front dominates a row
    if its best in the second so far is as good; these best ones fall from front to front.
    """
    distinct, rows = np.unique(points, axis=0, return_inverse=True)
    numbers = np.zeros(len(distinct), np.int64)
    best: list[float] = []  # of each front, the negated last objective
    for row in reversed(range(len(distinct))):  # falling in the first objective, among equals in the last
        negated = -distinct[row, -1]
        numbers[row] = number = bisect_right(best, negated)
        best[number : number + 1] = [negated]
    return numbers[rows.reshape(-1)]


def crowding_distances(points: Points) -> NDArray[np.float64]:
    """For every row of one front how far apart its neighbours lie, over all objectives; the extremes are infinite.

    Of equal extremes the first is: were it the last, a new trial no better than the others would always go on.
    """
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        if span > 0:
            distances[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
            distances[[values.argmin(), values.argmax()]] = np.inf
    return distances
