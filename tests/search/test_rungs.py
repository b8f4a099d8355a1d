import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from search.rungs import best_first, crowding_distances, front_numbers, survivors

Points = NDArray[np.float64]


def points(num_objectives: int | None = None) -> st.SearchStrategy[Points]:
    """Rows of few distinct values: ties and equal rows are common."""
    columns = st.just(num_objectives) if num_objectives else st.integers(1, 2)
    shapes = st.tuples(st.integers(1, 12), columns)
    return hnp.arrays(np.float64, shapes, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 7.0]))


def dominates(a: Points, b: Points) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


@given(points())
def test_fronts_are_peeled_one_after_the_other(rows: Points) -> None:
    expected = np.full(len(rows), -1)
    left = set(range(len(rows)))
    for number in range(len(rows)):
        front = {i for i in left if not any(dominates(rows[j], rows[i]) for j in left)}
        expected[sorted(front)] = number
        left -= front
    assert front_numbers(rows).tolist() == expected.tolist()


@given(points())
def test_crowding_is_the_normalised_gap_between_the_neighbours(rows: Points) -> None:
    expected = [0.0] * len(rows)
    for objective in range(rows.shape[1]):
        order = sorted(range(len(rows)), key=lambda i: (rows[i, objective], i))
        span = rows[order[-1], objective] - rows[order[0], objective]
        if span == 0:
            continue
        for before, middle, after in zip(order, order[1:], order[2:], strict=False):
            expected[middle] += (rows[after, objective] - rows[before, objective]) / span
        for extreme in (min, max):
            expected[extreme(range(len(rows)), key=lambda i: rows[i, objective])] = np.inf
    assert crowding_distances(rows) == pytest.approx(expected)


def test_a_front_worked_by_hand() -> None:
    """Accuracy and minus gates: three of the first front, the middle one crowded, and two dominated."""
    rows = np.array([[0.9, -100], [0.8, -60], [0.5, -10], [0.7, -70], [0.5, -20]])
    assert front_numbers(rows).tolist() == [0, 0, 0, 1, 1]
    assert crowding_distances(rows[:3]).tolist() == [np.inf, 2.0, np.inf]
    assert best_first(rows) == [0, 2, 1, 3, 4]
    assert survivors(rows, 3) == [0, 2]


@given(points(), st.integers(1, 5))
def test_one_in_reduction_goes_on_rounded_up(rows: Points, reduction: int) -> None:
    assert len(survivors(rows, reduction)) == math.ceil(len(rows) / reduction)


@given(points(), st.integers(1, 5))
def test_nobody_goes_on_in_place_of_one_from_an_earlier_front(rows: Points, reduction: int) -> None:
    fronts = front_numbers(rows)
    going = survivors(rows, reduction)
    stopped = set(range(len(rows))) - set(going)
    assert all(fronts[i] <= fronts[j] for i in going for j in stopped)


@given(points(), st.integers(1, 5))
def test_the_best_accuracy_always_goes_on(rows: Points, reduction: int) -> None:
    assert max(rows[i, 0] for i in survivors(rows, reduction)) == rows[:, 0].max()


@given(points(2), st.data())
def test_what_is_over_the_limit_comes_last(rows: Points, data: st.DataObject) -> None:
    excess = data.draw(hnp.arrays(np.float64, len(rows), elements=st.sampled_from([-8.0, -1.0, 0.0, 2.0, 5.0])))
    order = best_first(rows, excess)
    over = [max(0.0, excess[row]) for row in order]
    assert over == sorted(over)
    unlimited = best_first(rows)
    assert [row for row in order if excess[row] <= 0] == [row for row in unlimited if excess[row] <= 0]
    assert survivors(rows, 3, excess) == order[: math.ceil(len(rows) / 3)]


@given(points(1), st.integers(1, 5))
def test_with_one_objective_it_is_the_best_ones(rows: Points, reduction: int) -> None:
    values = rows[:, 0].tolist()
    num_survivors = math.ceil(len(values) / reduction)
    assert sorted(values[i] for i in survivors(rows, reduction)) == sorted(values)[-num_survivors:]


def test_among_equals_the_earlier_one_goes_on() -> None:
    """Where nothing has learned yet, halving must still stop the newest trial."""
    rows = np.array([[0.5, -10.0]] * 6)
    assert survivors(rows, 3) == [0, 1]
    assert survivors(np.array([[0.5]] * 6), 3) == [0, 1]
