"""Drivers as processes that are forked from one which has imported everything: ready at once, and killed for real.

A fault may be put into a driver: at the n-th time that it reaches a point, it is killed or the call fails. Or a driver
is held at its first epoch, so that a test has all the time it needs to do something to it in the midst of a rung.
"""

import errno
import multiprocessing
import os
import re
import signal
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, ClassVar, Literal

import optuna
import sqlalchemy
import torch

from search import checkpoints, database, session, tracking  # noqa: F401  MLflow must not be imported once a driver
from search.command import run_command
from search.config import default_storage
from search.run import run
from search.storage import RUNG_PREFIX
from search.workers import Executor, Progress
from spaces import SPACES
from tests.search.tiny import TINY

REPOSITORY = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "sklearn.datasets"])

Point = Literal["ask", "submit", "epoch", "checkpoint", "result", "tell", "disk"]
RAYS_AGENTS = r"ray::(?:Dashboard|RuntimeEnv)Agent"


@dataclass(frozen=True)
class Fault:
    """At the `count`-th time that the driver has passed a point: `action`, instead of going on."""

    point: Point
    count: int = 1
    action: Literal["kill", "disk full", "clock back"] = "kill"


@dataclass(frozen=True)
class Held:
    """From its first epoch on the driver learns of nothing, though its workers go on, until it is let go."""

    begun: ClassVar[str] = "held.txt"
    ended: ClassVar[str] = "let_go.txt"


@dataclass
class ForkedDriver:
    """`search.run` in a folder, as often as one likes. What it starts inherits the mark in its environment."""

    folder: Path
    arguments: tuple[str, ...]
    study: str = "tiny"
    storage: str = ""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[multiprocessing.process.BaseProcess] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What all drivers so far have printed."""
        file = self.folder / "output.txt"
        return file.read_text() if file.exists() else ""

    @property
    def url(self) -> str:
        """The storage, as seen from anywhere."""
        return (self.storage or default_storage(self.study)).replace(
            "sqlite:///studies", f"sqlite:///{self.folder}/studies"
        )

    def start(self, fault: Fault | Held | None = None, **environment: str) -> multiprocessing.process.BaseProcess:
        arguments = (*self.arguments, "--study", self.study)
        arguments += ("--storage", self.storage) if self.storage else ()
        environment |= {"CONVLOGIC_TEST": self.mark, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        process = CONTEXT.Process(target=_drive, args=(str(self.folder), arguments, fault, environment))
        process.start()
        self.started.append(process)
        if isinstance(fault, Held):
            self.wait_for((self.folder / Held.begun).exists)
        return process

    def let_go(self) -> None:
        """One that is held goes on."""
        (self.folder / Held.ended).touch()

    def end(self, fault: Fault | None = None, **environment: str) -> int:
        """Run one to its end; its exit code, that of a signal negative."""
        process = self.start(fault, **environment)
        process.join(200)
        assert process.exitcode is not None, self.output
        return process.exitcode

    def finish(self, *more: str) -> None:
        """Run one that must get there, with more arguments, of which the last count."""
        self.arguments += more
        assert self.end() == 0, self.output

    def wait_for(self, seen: Callable[[], Any], within_s: float = 100.0) -> Any:
        """What `seen` gives once it gives something."""
        deadline = time.monotonic() + within_s
        while not (result := seen()):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        return result

    def epochs(self) -> Counter[tuple[int, int]]:
        """How often each (trial, epoch) was trained."""
        lines = (self.folder / "epochs.txt").read_text().splitlines()
        return Counter((int(trial), int(epoch)) for trial, epoch in (line.split() for line in lines))

    def processes(self, named: str = ".") -> dict[int, str]:
        """Everything alive that carries the mark, with a command line like this: pid to command line."""
        alive = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"CONVLOGIC_TEST={self.mark}".encode() in (path / "environ").read_bytes():
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
                    if re.match(named, line):
                        alive[int(path.name)] = line
            except OSError:
                continue
        return alive

    def wait_until_gone(self, but: str = RAYS_AGENTS) -> None:
        """No process is left but such: Ray's own agents try for a minute to tell that their node died."""
        self.wait_for(lambda: all(re.match(but, line) for line in self.processes().values()))

    def kill_all(self, but: str = "$") -> None:
        for pid, line in self.processes().items():
            if not re.match(but, line):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.kill()
            process.join()


def _drive(folder: str, arguments: tuple[str, ...], fault: Fault | Held | None, environment: dict[str, str]) -> None:
    """In the forked process, a group of its own as a terminal makes one: what `python -m search.run` does."""
    os.setsid()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(environment)
    descriptor = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    database.BUSY_TIMEOUT_S = int(os.environ.get("CONVLOGIC_TEST_BUSY_S", database.BUSY_TIMEOUT_S))
    if num_pages := os.environ.get("CONVLOGIC_TEST_PAGES"):
        _limit_database(int(num_pages))
    SPACES[TINY.name] = TINY
    sys.argv = ["search.run", *arguments]
    _observe_executor(fault)
    if isinstance(fault, Fault):
        _arm(fault)
    run_command(run)


def _limit_database(num_pages: int) -> None:
    """The study's database may grow to so many pages: sqlite then says that the disk is full, as on a real one."""

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def connected(connection: sqlite3.Connection, record: object) -> None:
        if connection.execute("PRAGMA database_list").fetchone()[2].endswith("study.db"):
            connection.execute(f"PRAGMA max_page_count = {num_pages}")


def _observe_executor(fault: Fault | Held | None) -> None:
    """Note every epoch that was trained, where a kill does not undo it."""
    make_executor = session.make_executor
    log = os.open("epochs.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def make(*args: Any) -> Executor:
        executor = make_executor(*args)
        wait = executor.wait

        def observed(timeout_s: float) -> Any:
            events = wait(timeout_s)
            for event in events:
                if isinstance(event, Progress):
                    os.write(log, f"{event.job.trial} {event.record.epoch}\n".encode())
            return events

        def held(timeout_s: float) -> Any:
            events = observed(timeout_s)
            while events and not Path(Held.ended).exists():
                Path(Held.begun).touch()
                events += observed(0.01)
                time.sleep(0.01)
            return events

        executor.wait = held if isinstance(fault, Held) else observed  # type: ignore[method-assign]
        if isinstance(fault, Fault) and fault.point == "submit":
            _after(executor, "submit", fault)
        if isinstance(fault, Fault) and fault.point == "epoch":
            _after(executor, "wait", fault, lambda *args, result: any(isinstance(event, Progress) for event in result))
        return executor

    session.make_executor = make


def _arm(fault: Fault) -> None:
    if fault.point == "ask":
        _after(optuna.Study, "ask", fault)
    elif fault.point == "checkpoint":
        _after(checkpoints.Checkpoints, "write", fault)
    elif fault.point == "result":
        _after(optuna.storages.RDBStorage, "set_trial_user_attr", fault, _is_result)
    elif fault.point == "tell":
        _after(optuna.Study, "tell", fault)
    elif fault.point == "disk":
        _after(checkpoints.os, "fsync", fault)


def _is_result(storage: object, trial_id: int, key: str, *_: object, **__: object) -> bool:
    return key.startswith(RUNG_PREFIX)


def _after(owner: Any, name: str, fault: Fault, matches: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Make the fault happen behind the calls that match."""
    original = getattr(owner, name)
    remaining = fault.count

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal remaining
        result = original(*args, **kwargs)
        inspected = {"result": result} if fault.point == "epoch" else kwargs
        if matches(*args, **inspected):
            remaining -= 1
            if remaining == 0:
                _act(fault)
        return result

    setattr(owner, name, call)


def _act(fault: Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "disk full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        _set_clock_back(3600)


def _set_clock_back(seconds: float) -> None:
    """As this process sees it: what reads the time of day from now on is an hour early."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - seconds
    time.time_ns = lambda: now_ns() - int(seconds * 1e9)

    class Early(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) - timedelta(seconds=seconds)

    optuna.storages._rdb.storage.datetime = Early
