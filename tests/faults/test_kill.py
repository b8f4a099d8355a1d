"""Drivers killed with SIGKILL at random moments, and the same command again."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from search import tracking
from search.storage import trial_views

REPOSITORY = Path(__file__).parents[2]
# `python -m search.run` with one more space: its trials take moments, so that starting up is what the test waits for
PROGRAM = """
from search.command import run_command
from search.run import run
from spaces import SPACES
from tests.search.tiny import TINY

SPACES[TINY.name] = TINY
run_command(run)
"""
TRIALS = 8
MAX_GATES = 1100  # some trials have more in all, some fewer
pytestmark = pytest.mark.slow


@dataclass
class Driver:
    """A driver in a folder. Whatever it starts inherits the mark in its environment."""

    folder: Path
    arguments: tuple[str, ...]
    mark: str

    def start(self) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "CONVLOGIC_TEST": self.mark,
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *self.arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill_after(self, num_lines: int, delay_s: float) -> str:
        """Start, wait for so many lines about trials, wait a little more, kill. What it had printed by then."""
        process = self.start()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            num_lines -= line.startswith("trial")
            if num_lines == 0:
                break
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        return "".join(lines) + process.communicate()[0]

    def finish(self) -> str:
        process = self.start()
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
        return output

    def processes(self) -> dict[int, str]:
        """Everything alive that carries the mark: pid to command line."""
        alive = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"CONVLOGIC_TEST={self.mark}".encode() in (path / "environ").read_bytes():
                    alive[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
            except OSError:
                continue
        return alive

    def wait_until_gone(self, within_s: float) -> dict[int, str]:
        deadline = time.monotonic() + within_s
        while (alive := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive


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
    assert driver.wait_until_gone(60) == {}

    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{driver.folder}/studies/tiny/study.db")
    views = trial_views(study, "total")
    assert sum(view.counts for view in views) == TRIALS
    assert {view.state for view in views} <= {"complete", "rejected"}
    assert all(view.frozen.state.is_finished() for view in views)
    assert [view.number for view in views if view.known] == [0]
    for view in views:
        assert [record.epoch for record in view.records] == list(range(1, view.epoch + 1))
        if view.state == "complete":
            assert view.frozen.constraints == {"gates/total": (view.gates or 0) - MAX_GATES}
    assert list((driver.folder / "studies/tiny/checkpoints").iterdir()) == []

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
