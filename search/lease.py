"""One driver a study: a lock that the operating system or the database server frees when its holder dies.

Beside an sqlite file lies one lock file a study, locked with flock: kill -9 frees it, and none goes stale. In
PostgreSQL it is an advisory lock of a connection that is kept open. Reading a study needs no lease.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from .database import missing_driver, parse_url, shown, unwritable
from .errors import Failure
from .storage import TrialView
from .training import EpochRecord

CHECK_INTERVAL_S = 10.0
MAX_NAME_BYTES = 63  # of PostgreSQL's application_name

# the server ends the session of a machine that vanished after a minute or so, not after two hours
KEEPALIVES = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
HOLDER = """
    SELECT activity.application_name, extract(epoch FROM activity.backend_start)
    FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND ((classid::bigint << 32) | objid::bigint) = :key
"""


@dataclass(frozen=True)
class Holder:
    """Who drives a study: host name, process, seconds since 1970."""

    host: str
    pid: int
    since_s: float

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(socket.gethostname(), os.getpid(), time.time())

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_s, UTC)
        return f"process {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S} UTC"


class Lock(Protocol):
    """What a storage offers to hold a study by."""

    def is_held(self) -> bool:
        """Whether it is still this process's."""
        ...


class Lease:
    """An observer that stops a driver whose lock was lost: its database session ended, its lock file was removed."""

    def __init__(self, lock: Lock | None, study: str) -> None:
        self._lock, self._study = lock, study
        self._next_check_s = time.monotonic() + CHECK_INTERVAL_S

    def trial_changed(self, trial: TrialView) -> None:
        """Nothing: the clock decides when to look."""

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Look from time to time.

        Raises:
            Failure: another driver may have the study by now.
        """
        if self._lock is None or time.monotonic() < self._next_check_s:
            return
        self._next_check_s = time.monotonic() + CHECK_INTERVAL_S
        self.check()

    def check(self) -> None:
        """Look now.

        Raises:
            Failure: another driver may have the study by now.
        """
        if self._lock is not None and not self._lock.is_held():
            raise Failure(f"the lock on study {self._study!r} was lost; nothing stored is: run the same command again")


@contextmanager
def lease(url: str, study: str, warn: Callable[[str], None]) -> Iterator[Lease]:
    """Be the only driver of a study for as long as the context lasts.

    Args:
        url: the storage. sqlite and PostgreSQL are protected; an sqlite database in memory is nobody else's.
        study: the lock is this study's alone, whatever else the storage holds.
        warn: told in one line where the storage cannot be locked.

    Raises:
        UsageError: not a URL of a database.
        Failure: another driver holds the study, and which; or the lock cannot be made.
    """
    parsed = parse_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        yield Lease(None, study)
    elif backend == "sqlite":
        with _file_lock(Path(str(parsed.database)), study) as file:
            yield Lease(file, study)
    elif backend == "postgresql":
        with _advisory_lock(url, study) as session:
            yield Lease(session, study)
    else:
        warn(f"{shown(url)}: a second driver on study {study!r} cannot be noticed in {backend}: see that there is none")
        yield Lease(None, study)


def _held_by(study: str, holder: str) -> Failure:
    return Failure(f"study {study!r} is driven by {holder}: wait for it or stop it, or give --study another name")


class FileLock:
    """An open, locked file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def is_held(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False


@contextmanager
def _file_lock(database: Path, study: str) -> Iterator[FileLock]:
    path = database.resolve()  # of two links to a database one lock
    path = path.with_name(f"{path.name}.{study}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unwritable(database, f"{path.name}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held_by(study, _written_holder(descriptor)) from error
        except OSError as error:
            raise Failure(f"cannot lock {path}: {error.strerror}; give --storage on a local disk") from error
        try:  # for the next one's message alone: on a full disk the lock is as good without
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)
        except OSError:
            pass
        yield FileLock(path, descriptor)
    finally:
        os.close(descriptor)


def _written_holder(descriptor: int) -> str:
    try:
        return str(Holder(**json.loads(os.pread(descriptor, 1000, 0))))
    except (ValueError, TypeError):  # it has locked the file and not written its name yet
        return "another process"


class AdvisoryLock:
    """A database session that holds a lock."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def is_held(self) -> bool:
        try:
            self.connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True


@contextmanager
def _advisory_lock(url: str, study: str) -> Iterator[AdvisoryLock]:
    try:
        engine = create_engine(parse_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    except ImportError as error:
        raise missing_driver(url, error) from error
    holder = Holder.this_process()
    pid = f":{holder.pid}"
    name = "search@" + holder.host[: MAX_NAME_BYTES - len("search@") - len(pid)] + pid
    with engine.connect() as connection:
        connection.execute(text("SELECT set_config('application_name', :name, false)"), {"name": name})
        for setting in KEEPALIVES.split("; "):
            connection.execute(text(setting))
        schema = connection.execute(text("SELECT current_schema()")).scalar()
        digest = hashlib.sha256(f"convlogic-search\0{schema}\0{study}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
            row = connection.execute(text(HOLDER), {"key": key}).first()
            raise _held_by(study, _session_holder(*row) if row else "another process")
        yield AdvisoryLock(connection)


def _session_holder(application_name: str, since_s: float | None) -> str:
    """Who a session says it is; the server tells not every user when it began."""
    host, _, pid = application_name.removeprefix("search@").rpartition(":")
    if not pid.isdecimal() or since_s is None:
        return f"session {application_name!r} of the database"
    return str(Holder(host, int(pid), float(since_s)))
