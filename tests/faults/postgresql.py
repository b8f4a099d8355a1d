"""A PostgreSQL server of a test's own, from the system's packages."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# nothing here has to survive a power cut
SETTINGS = "-c listen_addresses='' -c fsync=off -c full_page_writes=off -c shared_buffers=16MB"


def program(name: str) -> str | None:
    """The newest one installed: Debian keeps them out of the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    return str(installed[-1]) if installed else shutil.which(name)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Its URL, with an empty database; reached through a socket in a folder of its own."""
    pytest.importorskip("psycopg")
    initdb, control = program("initdb"), program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL's server is not installed")
    is_root = os.geteuid() == 0  # which the server refuses to run as
    if is_root and shutil.which("runuser") is None:
        pytest.skip("there is no runuser to start PostgreSQL with as another user")
    prefix = ["runuser", "-u", "postgres", "--"] if is_root else []
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short, and not below pytest's own, which are closed to other users
    try:
        if is_root:
            shutil.chown(folder, "postgres")
        data = folder / "data"

        def call(*command: str) -> None:
            subprocess.run([*prefix, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=100)

        call(initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        call(control, "-D", str(data), "-l", str(folder / "log"), "-o", f"{SETTINGS} -k {folder}", "-w", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            call(control, "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
