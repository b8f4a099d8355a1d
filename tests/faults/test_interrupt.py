"""Ctrl-C once and twice, as a terminal sends it: to the driver and to every process it started."""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import interrupt
from tests.faults.driver import Driver

RUNGS = (10, 30, 90)
TRIALS = 4
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc"),
    pytest.mark.parametrize(
        ("driver", "num_workers"),
        [(("--executor", "inline"), 1), (("--executor", "ray", "--workers", "2"), 2)],
        ids=["inline", "ray"],
        indirect=["driver"],
    ),
]


@pytest.fixture
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    options = ("--space", "tiny", "--trials", str(TRIALS), "--sampler", "random", "--epochs", str(RUNGS[-1]))
    driver = Driver(tmp_path, (*options, *request.param), uuid.uuid4().hex)
    yield driver
    for pid in driver.processes():
        os.kill(pid, signal.SIGKILL)


def interrupted(driver: Driver, num_workers: int, times: int) -> None:
    """Run until every worker has a trial, then interrupt; the second time once the first was told."""
    process = driver.start()
    assert process.stdout is not None
    lines = iter(process.stdout)
    seen = ""
    while seen.count("asked") < num_workers:
        seen += next(lines)
    os.killpg(process.pid, signal.SIGINT)
    while times == 2 and interrupt.FIRST not in seen:
        seen += next(lines)
    if times == 2:
        os.killpg(process.pid, signal.SIGINT)
    seen += process.communicate(timeout=100)[0]
    assert process.returncode == 130, seen
    assert seen.count(interrupt.FIRST) == 1 and "Traceback" not in seen
    assert seen.endswith("interrupted; what was stored is kept: the same command goes on from there\n")
    assert "What next" not in seen
    assert driver.wait_until_gone(30) == {}


def check_complete(driver: Driver) -> None:
    driver.finish()
    views = driver.study()
    assert sum(view.counts for view in views) == TRIALS
    assert {view.state for view in views} <= {"complete", "rejected"}
    for view in views:
        assert [record.epoch for record in view.records] == list(range(1, view.epoch + 1))
    assert driver.checkpoints() == set()


def test_the_first_lets_rungs_end_and_starts_nothing(driver: Driver, num_workers: int) -> None:
    interrupted(driver, num_workers, times=1)
    views = driver.study()
    assert sum(view.counts for view in views) == num_workers
    running = [view for view in views if view.state == "running"]
    assert running  # the baseline at least, which is never stopped early
    assert all(view.epoch == RUNGS[0] for view in views if view.counts)
    assert driver.checkpoints() == {f"trial_{view.number:05d}_epoch_{RUNGS[0]}.checkpoint" for view in running}
    check_complete(driver)


def test_the_second_stops_at_once(driver: Driver, num_workers: int) -> None:
    interrupted(driver, num_workers, times=2)
    views = [view for view in driver.study() if view.counts]
    assert [view.state for view in views] == ["running"] * num_workers
    assert [view.epoch for view in views] == [0] * num_workers
    check_complete(driver)
