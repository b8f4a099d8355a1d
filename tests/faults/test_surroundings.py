"""What surrounds a driver fails: the database is busy, the disk full, MLflow away, the clock wrong, a file damaged."""

import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from search.storage import study_uid
from search.tracking import Tracker
from tests.faults.forked import Fault, ForkedDriver, Held
from tests.faults.invariants import assert_mlflow_shows, assert_sound, load_study
from tests.search.tiny import no_warning

TRIALS = 3
INLINE = ("--executor", "inline", "--limit-train", "60", "--trials", str(TRIALS))
SHORT = (*INLINE, "--epochs", "9")
LONG = (*INLINE, "--epochs", "100000")  # as long as the test likes
Make = Callable[..., ForkedDriver]
pytestmark = pytest.mark.usefixtures("locked")


@dataclass
class Locked:
    """A driver whose database somebody else has locked."""

    driver: ForkedDriver
    process: BaseProcess
    connection: sqlite3.Connection
    since: float


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Locked]:
    """Locked while the other tests go on, and they take no longer for it: its driver does nothing."""
    held = ForkedDriver(tmp_path_factory.mktemp("locked"), ("--space", "tiny", "--sampler", "random", *SHORT))
    shutil.copy(empty_store, held.folder / "mlflow.db")
    process = held.start(Held())
    connection = lock(held)
    held.let_go()
    yield Locked(held, process, connection, time.monotonic())
    connection.close()
    held.kill_all()


def until_it_trains(driver: ForkedDriver) -> None:
    epochs = driver.folder / "epochs.txt"
    driver.wait_for(lambda: epochs.exists() and epochs.read_text())


def errors(driver: ForkedDriver) -> list[str]:
    assert "Traceback" not in driver.output
    return [line for line in driver.output.splitlines() if line.startswith("error: ")]


def test_two_drivers(driver: Make) -> None:
    """The second is refused, by name; the first killed, nothing has to be cleared away."""
    first, second = driver(*LONG), driver(*LONG)
    process = first.start()
    until_it_trains(first)
    assert second.end() == 1
    (line,) = errors(second)
    assert f"study 'tiny' is driven by process {process.pid} on {socket.gethostname()} since 20" in line
    assert process.is_alive() and process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert second.end(Fault("epoch")) == -signal.SIGKILL
    assert len(errors(second)) == 1


def test_a_full_disk_under_the_database_stops_a_driver_in_one_line(driver: Make) -> None:
    """sqlite's own error, at a size that the file must not exceed; with room again the study goes on."""
    full = driver(*SHORT)
    assert full.end(CONVLOGIC_TEST_PAGES="29") == 1
    (line,) = errors(full)
    assert line == (
        "error: the study's database sqlite:///studies/tiny/study.db failed: database or disk is full; nothing stored "
        "is lost, run the same command again"
    )
    assert load_study(full).trials
    full.finish()
    assert_sound(full, TRIALS, num_repeated=1)


def test_a_database_locked_for_longer_than_that_stops_a_driver(driver: Make) -> None:
    held = driver(*SHORT)
    process = held.start(Held(), CONVLOGIC_TEST_BUSY_S="1")
    connection = lock(held)
    held.let_go()
    process.join(100)
    connection.close()
    assert process.exitcode == 1
    (line,) = errors(held)
    assert line.endswith("failed: database is locked; nothing stored is lost, run the same command again")
    held.finish()
    assert_sound(held, TRIALS, num_repeated=1)


def lock(driver: ForkedDriver) -> sqlite3.Connection:
    connection = sqlite3.connect(driver.folder / "studies/tiny/study.db", timeout=60, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_full_disk_stops_a_driver_in_one_line(driver: Make) -> None:
    full = driver(*SHORT)
    assert full.end(Fault("disk", 3, "disk full")) == 1
    (line,) = errors(full)
    assert line.endswith(".checkpoint: No space left on device; make room or run in another folder")
    full.finish()
    assert_sound(full, TRIALS, num_repeated=1)


def test_a_truncated_checkpoint(driver: Make) -> None:
    """The trial goes on from the rung before, here from the start."""
    killed = driver(*SHORT)
    assert killed.end(Fault("result")) == -signal.SIGKILL
    (path,) = (killed.folder / "studies/tiny/checkpoints").iterdir()
    os.truncate(path, 1000)
    killed.finish()
    assert_sound(killed, TRIALS, num_repeated=2)


def test_mlflow_away(driver: Make) -> None:
    """The search goes on; told later, MLflow has everything."""
    alone = driver(*SHORT, "--tracking-uri", "http://127.0.0.1:9")
    assert alone.end(Fault("result", 2), MLFLOW_HTTP_REQUEST_MAX_RETRIES="0") == -signal.SIGKILL
    assert alone.end(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0") == 0
    assert alone.output.count("warning: MLflow at http://127.0.0.1:9 failed") == 2
    views = assert_sound(alone, TRIALS, num_repeated=1, in_mlflow=False)
    uid = study_uid(load_study(alone))
    tracker = Tracker("tiny", uid, f"sqlite:///{alone.folder}/mlflow.db", no_warning)
    tracker.sync(views)
    tracker.finish(views[0])
    assert_mlflow_shows(alone, uid, views)


def test_a_clock_set_back(driver: Make) -> None:
    """Epochs then end before they began, and trials too."""
    jumping = driver(*SHORT, "--timeout", "1000")
    assert jumping.end(Fault("epoch", 4, "clock back")) == 0, jumping.output
    views = assert_sound(jumping, TRIALS, num_repeated=0)
    times = [record.timestamp_ms for view in views for record in view.records]
    assert times != sorted(times)


@pytest.mark.slow
def test_a_database_locked_for_half_a_minute_is_waited_for(locked: Locked) -> None:
    """The last: it was locked before the first."""
    time.sleep(max(0.0, locked.since + 30 - time.monotonic()))
    assert locked.process.is_alive()
    locked.connection.close()
    locked.process.join(100)
    assert locked.process.exitcode == 0, locked.driver.output
    assert_sound(locked.driver, TRIALS, num_repeated=0)
