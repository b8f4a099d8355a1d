"""The ladder: judged from scratch after every arrival, nobody is forgotten, promoted twice, or kept beyond patience."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.ladder import Ladder, Verdict
from search.rungs import best_first

arrivals = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), st.sampled_from([-3.0, -2.0, -1.0])), min_size=1, max_size=25
)


@given(arrivals, st.permutations(range(25)), st.integers(1, 4), st.sampled_from([0, 1, 3, math.inf]))
def test_verdicts_follow_from_who_has_been_there(
    points: list[tuple[float, float]], order: list[int], reduction: int, patience: float
) -> None:
    ladder, waiting, reached = Ladder((1, 3), reduction, patience), set[int](), list[int]()
    for trial in (trial for trial in order if trial < len(points)):
        ladder.reached(trial, 1, points[trial])
        ladder.wait(trial, 1)
        waiting.add(trial)
        reached.append(trial)
        reached.sort()  # the order of arrival decides nothing, not even between equals
        ranked = [reached[row] for row in best_first(np.array([points[each] for each in reached]))]
        best = set(ranked[: math.ceil(len(ranked) / reduction)])
        verdict = ladder.judge()
        assert verdict.go_on == sorted(waiting & best)
        assert verdict.stop == sorted(
            each for each in waiting - best if sum(other > each for other in reached) >= patience
        )
        waiting -= {*verdict.go_on, *verdict.stop}
        assert ladder.waiting == sorted(waiting)
        assert ladder.judge() == Verdict([], [])
    assert ladder.give_up() == sorted(waiting)
    assert ladder.waiting == []


def test_each_rung_has_its_own_peers() -> None:
    ladder = Ladder((1, 3, 9), 2)
    for trial, accuracy in enumerate((0.5, 0.4, 0.3, 0.2)):
        ladder.reached(trial, 1, [accuracy])
    ladder.reached(1, 3, [0.9])
    ladder.wait(1, 3)
    ladder.wait(3, 1)
    assert ladder.judge() == Verdict([1], [])
    ladder.reached(1, 9, [0.1])  # nobody goes on from the last
    assert ladder.waiting == [3]


@pytest.mark.parametrize("excess", [1.0, 5.0])
def test_who_is_over_the_limit_goes_on_last(excess: float) -> None:
    ladder = Ladder((1, 3), 2)
    ladder.reached(0, 1, [0.9], excess)
    ladder.reached(1, 1, [0.1])
    ladder.wait(0, 1)
    ladder.wait(1, 1)
    assert ladder.judge() == Verdict([1], [])
