"""A study in PostgreSQL: run, killed, resumed, held by one driver at a time. A real server, started here."""

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import NullPool, create_engine, text

from search import lease as lease_module
from search.database import parse_url, storage_errors
from search.errors import Failure
from search.lease import lease
from tests.faults.forked import Fault, ForkedDriver
from tests.faults.invariants import assert_sound
from tests.faults.postgresql import server
from tests.search.tiny import no_warning

TRIALS = 3
INLINE = ("--executor", "inline", "--epochs", "9", "--limit-train", "60", "--trials", str(TRIALS))
Make = Callable[..., ForkedDriver]
pytestmark = [pytest.mark.slow, pytest.mark.postgresql]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as url:
        yield url


def refused(url: str, study: str) -> str:
    with pytest.raises(Failure) as refusal, lease(url, study, no_warning):
        pass
    return str(refusal.value)


def test_a_study_is_run_killed_and_resumed(driver: Make, url: str) -> None:
    killed = driver(*INLINE, storage=url)
    assert killed.end(Fault("result", 2)) == -signal.SIGKILL, killed.output
    killed.finish()
    assert_sound(killed, TRIALS, num_repeated=1)
    folders = [path.name for path in (killed.folder / "studies/tiny").iterdir()]
    assert len(folders) == 1 and folders[0].startswith("storage_")


def test_a_second_driver_is_refused_until_the_first_is_killed(driver: Make, url: str) -> None:
    long = (*INLINE[:3], "100000", *INLINE[4:])
    first, second = driver(*long, storage=url, study="held"), driver(*long, storage=url, study="held")
    process = first.start()
    epochs = first.folder / "epochs.txt"
    first.wait_for(lambda: epochs.exists() and epochs.read_text())
    message = refused(url, "held")
    assert re.fullmatch(
        rf"study 'held' is driven by process {process.pid} on {re.escape(socket.gethostname())} "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: wait for it or stop it, or give --study another name",
        message,
    )
    assert second.end() == 1
    assert f"error: {message}\n" in second.output
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert second.end(Fault("epoch")) == -signal.SIGKILL, second.output


def test_studies_and_schemas_do_not_block_each_other(url: str) -> None:
    with create_engine(parse_url(url), poolclass=NullPool).begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
    with (
        lease(url, "a", no_warning),
        lease(url, "b", no_warning),
        lease(f"{url}&options=-csearch_path%3Dother", "a", no_warning),
    ):
        assert "study 'b' is driven by" in refused(url, "b")
    with lease(url, "a", no_warning):
        pass


def test_a_session_that_the_server_ended_stops_the_driver(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "CHECK_INTERVAL_S", 0.0)
    with lease(url, "ended", no_warning) as held:
        held.tick()
        with create_engine(parse_url(url), poolclass=NullPool).connect() as connection:
            own = "pid <> pg_backend_pid() AND application_name LIKE 'search@%'"
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}"))
        with pytest.raises(Failure, match="the lock on study 'ended' was lost"):
            held.tick()


def test_a_server_that_is_not_there(url: str) -> None:
    nowhere = url.replace("host=", "host=/nowhere")
    with (
        pytest.raises(Failure, match=r"^the study's database .* failed: .*nowhere.*; nothing stored is lost"),
        storage_errors(nowhere),
        lease(nowhere, "a", no_warning),
    ):
        pass
