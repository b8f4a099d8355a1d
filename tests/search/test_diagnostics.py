"""Diagnostics against other ways to count, and the report that shows them."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.diagnostics import (
    compute_saved,
    diagnostics,
    hypervolume,
    hypervolume_over_time,
    rung_correlations,
    soft_against_discrete,
    spearman,
)
from search.report import report
from search.storage import TrialView
from tests.search.conftest import Outcome
from tests.search.tiny import FakeExecutor, Runs, stored_trial

few = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(few, few), min_size=4, max_size=12))
def test_spearman_is_the_correlation_of_ranks(pairs: list[tuple[float, float]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    correlation = spearman(first, second)
    assert correlation.n == len(pairs)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert correlation.value is None
    else:
        assert correlation.value == pytest.approx(np.corrcoef(pd.Series(first).rank(), pd.Series(second).rank())[0, 1])


def test_three_trials_say_nothing() -> None:
    assert spearman([1, 2, 3], [1, 2, 3]).value is None
    assert str(spearman([1, 2, 3], [1, 2, 3])) == "not known (n=3, at least 4 are needed)"
    assert str(spearman([1, 1, 1, 1], [1, 2, 3, 4])) == "not known (all equal, n=4)"
    assert str(spearman([1, 2, 3, 4], [1, 3, 2, 4])) == "0.80 (n=4)"


def test_rungs_are_judged_by_those_that_reached_the_end() -> None:
    final = [0.9, 0.8, 0.7, 0.6]
    first, second = [0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2]
    views = [stored_trial(i, {1: a, 3: b, 9: c}) for i, (a, b, c) in enumerate(zip(first, second, final, strict=True))]
    stopped = [stored_trial(4, {1: 0.9}), stored_trial(5, {1: 0.95, 3: 0.1})]
    correlations = rung_correlations(views + stopped, 9)
    assert {rung: (each.n, each.value) for rung, each in correlations.items()} == {
        1: (4, pytest.approx(-1)),
        3: (4, pytest.approx(1)),
    }
    assert rung_correlations(stopped, 9) == {}
    soft = [stored_trial(i, {9: acc}, acc_soft=1 - acc) for i, acc in enumerate(final)]
    assert soft_against_discrete([*soft, stored_trial(4, {3: 0.9}, acc_soft=0.9)], 9).value == pytest.approx(-1)


def test_compute_saved_counts_epochs_and_gates() -> None:
    views = [
        stored_trial(0, {1: 0.5, 3: 0.5, 9: 0.5}, raw=1000),
        stored_trial(1, {1: 0.5}, raw=5000),
        stored_trial(2, {1: 0.5, 3: 0.5}, raw=2000),
        stored_trial(3, {1: 0.5}, raw=9000, state=optuna.trial.TrialState.FAIL),
    ]
    of_epochs, of_work = compute_saved(views, 9)
    assert of_epochs == pytest.approx(1 - 13 / 27)
    assert of_work == pytest.approx(1 - (9 * 1000 + 5000 + 3 * 2000) / (9 * 8000))
    assert compute_saved(views[:1], 9) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(2, 8)), min_size=1, max_size=8))
def test_hypervolume_is_the_area_of_the_dominated_cells(points: list[tuple[int, int]]) -> None:
    """Accuracy in twentieths, gates in powers of ten: those below 10^3 and above 10^7 are cut."""
    views = [stored_trial(i, {9: acc / 20}, total=10**power) for i, (acc, power) in enumerate(points)]
    smallness = [min(1.0, max(0.0, (7 - power) / 4)) for _, power in points]
    area = 0.0
    for left, right in pairwise(sorted({0.0, *smallness})):
        highest = max((acc / 20 for (acc, _), s in zip(points, smallness, strict=True) if s >= right), default=0.0)
        area += (right - left) * highest
    assert hypervolume(views) == pytest.approx(area)


def test_hypervolume_grows_over_trials_and_compute_without_the_infeasible() -> None:
    accuracies = [0.1, 0.3, 0.2, 0.9, 0.5, 0.6, 0.8]
    views = [
        stored_trial(i, {1: acc} if i % 2 else {1: 0.0, 3: acc}, total=10**5, raw=1000, excess=1 if acc == 0.9 else -1)
        for i, acc in enumerate(accuracies)
    ]
    over_time = hypervolume_over_time(views[::-1])
    assert [number for number, _, _ in over_time] == [2, 3, 5, 6, 7]
    assert [share for _, share, _ in over_time] == pytest.approx([spent / 15 for spent in (4, 7, 11, 12, 15)])
    assert [volume for _, _, volume in over_time] == pytest.approx([0.15, 0.15, 0.25, 0.3, 0.4])
    assert hypervolume_over_time(views[:1]) == [(1, 1.0, pytest.approx(0.05))]
    many = [stored_trial(i, {9: 0.5}) for i in range(40)]
    assert [number for number, _, _ in hypervolume_over_time(many)] == [*range(8, 41, 8)]


def test_lines_say_what_is_not_known() -> None:
    lines = diagnostics([stored_trial(0, {1: 0.5, 3: 0.5, 9: 0.6})], 9)
    assert lines[0] == (
        "rank correlation of discrete accuracy after epoch 1 with that after 9: not known (n=1, at least 4 are needed)"
    )
    assert "stopping early saved 0% of the epochs that 1 trial takes" in lines[3]
    assert lines[4].endswith(" after 1 (100%) trial (of all compute)")


def test_the_report_of_a_stored_study(run_sqlite: Runs, command: Callable[..., Outcome]) -> None:
    views: list[TrialView] = run_sqlite(FakeExecutor(), trials=18)
    outcome = command(report, "--study", "tiny")
    assert (outcome.code, outcome.err) == (0, "")
    for line in diagnostics(views, 9):
        assert f"  {line}\n" in outcome.out
    done = [view for view in views if view.state == "complete"]
    reached = [view for view in done if view.epoch == 9]
    assert len(reached) >= 4
    assert outcome.out.count(f"(n={len(reached)})") == 3
    assert "Best by discrete validation accuracy" in outcome.out
    assert not math.isnan(hypervolume(views))
    missing = command(report, "--study", "other")
    assert missing.code == 2
    assert missing.err.startswith("error: ")
