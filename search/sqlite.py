"""sqlite files that take many small commits, of which none waits for the disk: each wait is milliseconds."""

import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Engine

_logged_ahead: Final[set[str]] = set()


def log_ahead(file: Path, timeout_s: float) -> None:
    """Put a database into WAL mode, and let this process commit to it without waiting for the disk.

    Whatever process is killed, nothing is lost. A power cut may take the last moments, and leaves a sound database.

    Raises:
        sqlite3.Error: the file cannot be written, or is in use for longer than `timeout_s`.
    """
    connection = sqlite3.connect(file, timeout=timeout_s)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        connection.close()
    if mode == "wal":  # not on every file system; without it a power cut might damage the database
        _logged_ahead.add(str(file.resolve()))


@event.listens_for(Engine, "connect")
def _connected(connection: Any, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        files = [row[2] for row in connection.execute("PRAGMA database_list")]
        if files and files[0] in _logged_ahead:
            connection.execute("PRAGMA synchronous=NORMAL")
