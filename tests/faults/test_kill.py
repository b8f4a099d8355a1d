"""Drivers killed with SIGKILL at random moments, with workers in other processes, and the same command again."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.forked import ForkedDriver
from tests.faults.invariants import assert_sound

TRIALS = 8
MAX_GATES = 1100  # some trials have more in all, some fewer
RAY = ("--executor", "ray", "--workers", "2")
pytestmark = pytest.mark.slow
Make = Callable[..., ForkedDriver]


def kill_after(driver: ForkedDriver, num_lines: int, delay_s: float) -> None:
    """Start, wait for so many lines about trials, wait a little more, kill."""
    process = driver.start()
    driver.wait_for(lambda: driver.output.count("\ntrial") >= num_lines)
    time.sleep(delay_s)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_killed_driver_is_followed_by_one_that_ends_at_the_total(driver: Make) -> None:
    killed = driver(*RAY, "--trials", str(TRIALS), "--max-gates", str(MAX_GATES), "--epochs", "45")
    num_lines, delay_s = random.randint(1, TRIALS), random.uniform(0, 0.2)
    kill_after(killed, num_lines, delay_s)  # two lines a trial at least: this is before the end
    print(f"killed {delay_s:.3f} s after line {num_lines}:\n{killed.output}")
    assert "What next" not in killed.output
    killed.finish()
    views = assert_sound(killed, TRIALS, num_repeated=2)
    assert {view.state for view in views} <= {"complete", "rejected"}
    assert [view.number for view in views if view.known] == [0]
    for view in views:
        if view.state == "complete":
            assert view.frozen.constraints == {"gates/total": (view.gates or 0) - MAX_GATES}


def test_nothing_outlives_a_killed_driver(driver: Make) -> None:
    """In the midst of rungs that would take an hour."""
    killed = driver(*RAY, "--trials", str(TRIALS), "--epochs", "100000")
    kill_after(killed, 2, 1.0)
    killed.wait_until_gone()
