"""Ray's workers killed with SIGKILL in the midst of a rung, alone and with their driver."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.faults.forked import ForkedDriver
from tests.faults.invariants import assert_sound

TRIALS = 3
RAY = ("--executor", "ray", "--workers", "2", "--epochs", "270", "--limit-train", "60", "--trials", str(TRIALS))
TRAINING = r"ray::\w*Worker\.run"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("with_driver", [False, True], ids=["worker", "worker and driver"])
def test_a_worker_killed_in_a_rung(driver: Callable[..., ForkedDriver], with_driver: bool) -> None:
    killed = driver(*RAY)
    process = killed.start()
    workers = killed.wait_for(lambda: killed.processes(TRAINING))
    epochs = killed.folder / "epochs.txt"
    killed.wait_for(lambda: epochs.exists() and epochs.read_text())
    os.kill(min(workers), signal.SIGKILL)
    if with_driver:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed.finish("--executor", "inline")  # on Ray again: test_kill.py
    else:
        process.join(200)
        assert process.exitcode == 0, killed.output
    views = assert_sound(killed, TRIALS, num_repeated=3 if with_driver else 1)
    if not with_driver:
        assert [view.attempts for view in views if view.attempts] == [1]
        assert all(view.state in ("complete", "rejected") for view in views)
