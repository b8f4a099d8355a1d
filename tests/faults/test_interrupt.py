"""Ctrl-C once and twice, as a terminal sends it: to the driver and to every process it started."""

import os
import signal
from collections.abc import Callable

import pytest

from search import interrupt
from search.storage import TrialView, trial_views
from tests.faults.forked import ForkedDriver, Held
from tests.faults.invariants import assert_sound, load_study

RUNGS = (3, 9, 27)
TRIALS = 4
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize(
        ("executor", "num_workers"),
        [(("--executor", "inline"), 1), (("--executor", "ray", "--workers", "2"), 2)],
        ids=["inline", "ray"],
    ),
]
Make = Callable[..., ForkedDriver]
OPTIONS = ("--trials", str(TRIALS), "--epochs", str(RUNGS[-1]), "--limit-train", "60")
INLINE = ("--executor", "inline")  # goes on with any study, and starts in a moment


def interrupted(driver: ForkedDriver, num_workers: int, times: int) -> list[TrialView]:
    """Run until every worker has a trial, then interrupt; the second time once the first was told. What is stored."""
    process = driver.start(Held())
    assert process.pid is not None
    assert driver.output.count("asked") == num_workers
    os.killpg(process.pid, signal.SIGINT)
    driver.wait_for(lambda: interrupt.FIRST in driver.output)
    if times == 2:
        os.killpg(process.pid, signal.SIGINT)
    else:
        driver.let_go()
    process.join(100)
    seen = driver.output
    assert process.exitcode == 130, seen
    assert seen.count(interrupt.FIRST) == 1 and "Traceback" not in seen
    assert seen.endswith("interrupted; what was stored is kept: the same command goes on from there\n")
    assert "What next" not in seen
    driver.wait_until_gone()
    return [view for view in trial_views(load_study(driver), "total") if view.counts]


def test_the_first_lets_rungs_end_and_starts_nothing(driver: Make, executor: tuple[str, ...], num_workers: int) -> None:
    stopped = driver(*OPTIONS, *executor)
    views = interrupted(stopped, num_workers, times=1)
    assert len(views) == num_workers
    running = [view for view in views if view.state == "running"]
    assert running  # the baseline at least, which is never stopped early
    assert all(view.epoch == RUNGS[0] for view in views)
    kept = {f"trial_{view.number:05d}_epoch_{RUNGS[0]}.checkpoint" for view in running}
    assert {path.name for path in (stopped.folder / "studies/tiny/checkpoints").iterdir()} == kept
    stopped.finish(*INLINE)
    assert_sound(stopped, TRIALS, num_repeated=0)


def test_the_second_stops_at_once(driver: Make, executor: tuple[str, ...], num_workers: int) -> None:
    stopped = driver(*OPTIONS, *executor)
    views = interrupted(stopped, num_workers, times=2)
    assert [(view.state, view.epoch) for view in views] == [("running", 0)] * num_workers
    stopped.finish(*INLINE)
    assert_sound(stopped, TRIALS, num_repeated=num_workers)
