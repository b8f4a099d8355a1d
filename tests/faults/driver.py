"""A driver as a process of its own, and everything alive that it started."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import optuna

from search.storage import TrialView, trial_views

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
            start_new_session=True,  # a group of its own, as a terminal makes one: Ctrl-C goes to all of it
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

    def study(self) -> list[TrialView]:
        """Every trial as it was left."""
        storage = f"sqlite:///{self.folder}/studies/tiny/study.db"
        return trial_views(optuna.load_study(study_name="tiny", storage=storage), "total")

    def checkpoints(self) -> set[str]:
        return {path.name for path in (self.folder / "studies/tiny/checkpoints").iterdir()}

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
