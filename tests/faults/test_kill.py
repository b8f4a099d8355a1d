"""Drivers killed with SIGKILL at random moments, and the same command again."""

import os
import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import tracking
from tests.faults.driver import Driver

TRIALS = 8
MAX_GATES = 1100  # some trials have more in all, some fewer
pytestmark = pytest.mark.slow


@pytest.fixture
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    arguments = ("--space", "tiny", "--trials", str(TRIALS), "--sampler", "random", "--max-gates", str(MAX_GATES))
    arguments += request.param
    driver = Driver(tmp_path, arguments, uuid.uuid4().hex)
    yield driver
    for pid in driver.processes():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
@pytest.mark.parametrize(
    "driver",
    [("--executor", "inline"), ("--executor", "ray", "--workers", "2")],
    ids=["inline", "ray"],
    indirect=True,
)
def test_a_killed_driver_is_followed_by_one_that_ends_at_the_total(driver: Driver) -> None:
    num_lines, delay_s = random.randint(1, TRIALS), random.uniform(0, 0.3)
    killed = driver.kill_after(num_lines, delay_s)  # two lines a trial at least: this is before the end
    print(f"killed {delay_s:.3f} s after line {num_lines}:\n{killed}")
    assert "What next" not in killed
    print(driver.finish())
    assert driver.wait_until_gone(90) == {}

    views = driver.study()
    assert sum(view.counts for view in views) == TRIALS
    assert {view.state for view in views} <= {"complete", "rejected"}
    assert all(view.frozen.state.is_finished() for view in views)
    assert [view.number for view in views if view.known] == [0]
    for view in views:
        assert [record.epoch for record in view.records] == list(range(1, view.epoch + 1))
        if view.state == "complete":
            assert view.frozen.constraints == {"gates/total": (view.gates or 0) - MAX_GATES}
    assert driver.checkpoints() == set()

    client = tracking.MlflowClient(f"sqlite:///{driver.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {run.data.tags["optuna.trial"]: run for run in runs if "optuna.trial" in run.data.tags}
    assert len(runs) == 1 + len(children)
    assert set(children) == {str(view.number) for view in views}
    for view in views:
        run = children[str(view.number)]
        for name in view.records[-1].metrics() if view.records else ():
            steps = Counter(metric.step for metric in client.get_metric_history(run.info.run_id, name))
            assert steps == Counter(record.epoch for record in view.records if name in record.metrics())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
@pytest.mark.parametrize("driver", [("--executor", "ray", "--workers", "2", "--epochs", "100000")], indirect=True)
def test_nothing_outlives_a_killed_driver(driver: Driver) -> None:
    """In the midst of rungs that would take an hour. Ray's own agents try for a minute to tell that their node died."""
    driver.kill_after(2, 1.0)
    assert driver.wait_until_gone(90) == {}
