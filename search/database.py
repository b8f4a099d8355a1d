"""The database that studies lie in: its URL, opening it, its errors in one line. What they keep there: `storage`."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from sqlalchemy import NullPool, create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from .errors import Failure, UsageError, one_line
from .sqlite import log_ahead

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

BUSY_TIMEOUT_S = 60
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Databases that are busy, broken or unreachable, in one line.

    Raises:
        Failure: in place of the database's own error; says whether to try again or to bring a copy back.
    """
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        cause = getattr(cause, "orig", None) or cause
        way_out = "nothing stored is lost, run the same command again"
        # an extended code's last byte is its primary one
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
            way_out = no_database(str(make_url(url).database))
        raise Failure(f"the study's database {shown(url)} failed: {one_line(cause)}; {way_out}") from error


def no_database(file: str) -> str:
    """The way out where a file is there and holds no study that can be read."""
    return (
        f"{file} is damaged or no database: restore a copy or an export (search.import), or give another --study or "
        "--storage"
    )


def shown(url: str) -> str:
    """The URL without a password."""
    return make_url(url).render_as_string(hide_password=True)


def parse_url(url: str) -> URL:
    """A storage's URL with the driver that it is reached through.

    Raises:
        UsageError: not a URL of a database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise UsageError(f"storage {url!r} is not a database URL: write sqlite:///FILE or postgresql://...") from error
    # which one SQLAlchemy takes where none is named depends on its version
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def unwritable(file: Path, reason: str) -> Failure:
    """An sqlite file, or what must lie beside it, that cannot be written."""
    return Failure(
        f"cannot write the study's database {file}: {reason}; run in a folder you may write, or give --storage"
    )


def missing_driver(url: str, error: ImportError) -> Failure:
    """A database whose Python driver is not installed."""
    extra = "; pip install 'convlogic-search[postgresql]'" if url.startswith("postgresql") else ""
    return Failure(f"storage {shown(url)}: {one_line(error)}{extra}")


class _StorageOfSpaces(optuna.storages.RDBStorage):
    """A study's identity binds its parameters to their space: whether an earlier trial drew them from the same one is
    not looked up at every trial, for each of them, and they are written together. That was half of what a trial takes
    to be stored. The method is one of Optuna's own, hence the bound on its version.
    """

    def _set_trial_param_without_commit(
        self,
        session: "Session",
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        with session.no_autoflush:
            super()._set_trial_param_without_commit(
                session, trial_id, param_name, param_value_internal, distribution, distribution
            )


def open_storage(url: str, create: bool) -> optuna.storages.RDBStorage:
    """The storage behind a URL; sqlite in WAL mode.

    Raises:
        UsageError: not a URL of a database, or no such file where `create` is false.
        Failure: the folder cannot be written, the file is no database, or the database does not answer.
    """
    parsed = parse_url(url)
    engine_kwargs: dict[str, Any] = {}
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        file = Path(parsed.database)
        if file.is_dir():
            raise Failure(f"the study's database {shown(url)} is a folder; {no_database(str(file))}")
        if not create and not file.exists():
            raise UsageError(f"no study database at {file}: run `python -m search.run` first or give --storage")
        if create:
            with storage_errors(url):
                _prepare_sqlite(file)
        engine_kwargs = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    try:
        with storage_errors(url):
            return _StorageOfSpaces(parsed.render_as_string(hide_password=False), engine_kwargs=engine_kwargs)
    except ImportError as error:
        raise missing_driver(url, error) from error
    except RuntimeError as error:
        raise Failure(f"storage {shown(url)}: {one_line(error)}") from error


def _prepare_sqlite(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sqlite3.connect(file).close()
    except (OSError, sqlite3.OperationalError) as error:
        raise unwritable(file, str(error)) from error
    log_ahead(file, BUSY_TIMEOUT_S)


def has_tables(url: str, parsed: URL) -> bool:
    """Whether a storage was begun; opening it would begin it. One that is a folder is told where it is opened."""
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite and Path(str(parsed.database)).is_dir():
        return True
    try:
        with storage_errors(url):
            connect_args = {"timeout": BUSY_TIMEOUT_S} if is_sqlite else {}
            engine = create_engine(parsed, poolclass=NullPool, connect_args=connect_args)
            return inspect(engine).has_table("studies")
    except ImportError as error:
        raise missing_driver(url, error) from error
