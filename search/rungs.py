"""Who goes on: successive halving at the rungs, for one objective or several.

Points are rows (T trials, D objectives), every objective to be made larger.
Source: asynchronous successive halving, Li et al. 2020, arXiv 1810.05934; non-dominated sorting with crowding, Deb et
al. 2002, NSGA-II.
"""

import math

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def goes_on(points: Points, index: int, reduction: int, excess: NDArray[np.float64] | None = None) -> bool:
    """Whether the trial in row `index` is among the best 1/reduction (rounded up) of those that reached the rung."""
    num_survivors = math.ceil(len(points) / reduction)
    return index in best_first(points, excess)[:num_survivors]


def best_first(points: Points, excess: NDArray[np.float64] | None = None) -> list[int]:
    """Rows in order: by non-dominated front, within a front by crowding distance, the first objective breaking ties.

    Rows over a limit, by the positive `excess` (T,), come after all others, the least over it first.
    """
    over = np.zeros(len(points)) if excess is None else np.maximum(excess, 0)
    front = front_numbers(points)
    crowding = np.zeros(len(points))
    for number in np.unique(front):
        members = np.flatnonzero(front == number)
        crowding[members] = crowding_distances(points[members])
    return sorted(range(len(points)), key=lambda row: (over[row], front[row], -crowding[row], -points[row, 0], row))


def front_numbers(points: Points) -> NDArray[np.int64]:
    """For every row the number of its front: 0 is dominated by none, 1 only by rows of front 0, and so on."""
    row, column = points[:, None], points[None, :]
    dominates: NDArray[np.bool_] = np.logical_and((row >= column).all(-1), (row > column).any(-1))  # (T, T)
    numbers = np.full(len(points), -1)
    number = 0
    while (numbers < 0).any():
        left = numbers < 0
        numbers[left & ~dominates[left].any(0)] = number
        number += 1
    return numbers


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
