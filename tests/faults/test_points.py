"""The driver killed with SIGKILL behind each of its steps, and the same command again."""

import signal
from collections.abc import Callable

import pytest

from search.storage import trial_views
from tests.faults.forked import Fault, ForkedDriver, Point
from tests.faults.invariants import assert_sound, load_study

TRIALS = 5
INLINE = ("--executor", "inline", "--epochs", "9", "--limit-train", "60", "--trials", str(TRIALS))
# counted so that some trials are told, one is between rungs, one has not begun
POINTS: list[tuple[Point, int]] = [
    ("ask", 3),
    ("submit", 4),
    ("epoch", 8),
    ("checkpoint", 3),
    ("result", 4),
    ("tell", 3),
]
Make = Callable[..., ForkedDriver]


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_a_driver_killed_behind_a_step(driver: Make, point: Point, count: int) -> None:
    killed = driver(*INLINE)
    assert killed.end(Fault(point, count)) == -signal.SIGKILL, killed.output
    killed.finish()
    views = assert_sound(killed, TRIALS, num_repeated=1)
    assert {view.state for view in views} <= {"complete", "rejected"}


def test_a_driver_killed_behind_its_last_trial(driver: Make) -> None:
    """Nothing is left to ask or to train, but a checkpoint to remove, and a trial to log."""
    killed = driver(*INLINE)
    assert killed.end(Fault("tell", TRIALS)) == -signal.SIGKILL, killed.output
    views = trial_views(load_study(killed), "total")
    assert [view.state for view in views] == ["complete"] * TRIALS
    killed.finish()
    assert_sound(killed, TRIALS, num_repeated=0)


def test_a_driver_killed_behind_one_step_after_the_other(driver: Make) -> None:
    """Each one goes on where the one before it was killed."""
    killed = driver(*INLINE)
    points: list[Point] = ["ask", "submit", "epoch", "checkpoint", "result", "tell"]
    for point in points:
        assert killed.end(Fault(point)) == -signal.SIGKILL, killed.output
    killed.finish()
    assert_sound(killed, TRIALS, num_repeated=len(points))
