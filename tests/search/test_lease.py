"""The lease on a study: who is refused, who is not, and that a lost one is noticed. Real kills are in tests/faults."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from search import lease as lease_module
from search.errors import Failure
from search.lease import lease
from search.report import report
from search.run import run
from search.storage import open_study, study_uid
from search.sync import sync
from search.tracking import MlflowClient, Tracker
from tests.search.conftest import Outcome
from tests.search.tiny import no_warning

STORAGE = "sqlite:///studies/tiny/study.db"


def refused(storage: str, study: str = "tiny") -> str:
    with pytest.raises(Failure) as refusal, lease(storage, study, no_warning):
        pass
    return str(refusal.value)


def test_a_second_driver_is_refused_and_told_by_whom(workspace: Path) -> None:
    with lease(STORAGE, "tiny", no_warning):
        assert re.fullmatch(
            rf"study 'tiny' is driven by process {os.getpid()} on {re.escape(socket.gethostname())} "
            r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: wait for it or stop it, or give --study another name",
            refused(STORAGE),
        )
    with lease(STORAGE, "tiny", no_warning):
        pass


def test_of_two_names_of_a_database_one_is_refused(workspace: Path) -> None:
    with lease(STORAGE, "tiny", no_warning):
        (workspace / "linked").symlink_to("studies/tiny")
        assert "is driven by" in refused("sqlite:///linked/study.db")
        assert "is driven by" in refused(f"sqlite:///{workspace}/studies/tiny/study.db")


def test_studies_of_one_file_and_files_of_one_study_do_not_block_each_other(workspace: Path) -> None:
    with (
        lease(STORAGE, "tiny", no_warning),
        lease(STORAGE, "other", no_warning),
        lease("sqlite:///other.db", "tiny", no_warning),
    ):
        assert "'other' is driven by" in refused(STORAGE, "other")


def test_a_holder_that_has_not_written_its_name_holds_it_all_the_same(workspace: Path) -> None:
    with lease(STORAGE, "tiny", no_warning):
        Path("studies/tiny/study.db.tiny.lock").write_text("")
        assert refused(STORAGE).startswith("study 'tiny' is driven by another process: ")


def test_a_database_in_memory_is_nobody_else_s(workspace: Path) -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with lease(url, "tiny", no_warning), lease(url, "tiny", no_warning):
            pass
    assert list(workspace.iterdir()) == []


def test_a_database_that_cannot_be_locked_is_said() -> None:
    lines: list[str] = []
    with lease("mysql://me:secret@host/optuna", "tiny", lines.append):
        pass
    (line,) = lines
    assert "a second driver on study 'tiny' cannot be noticed in mysql" in line and "secret" not in line


def test_a_folder_that_cannot_be_locked_is_said(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lease_module.fcntl, "flock", unsupported)
    assert refused(STORAGE) == (
        f"cannot lock {workspace}/studies/tiny/study.db.tiny.lock: No locks available; give --storage on a local disk"
    )


def test_a_lost_lock_stops_the_driver(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "CHECK_INTERVAL_S", 0.0)
    with lease(STORAGE, "tiny", no_warning) as held:
        held.tick()
        Path("studies/tiny/study.db.tiny.lock").unlink()
        with pytest.raises(Failure, match="the lock on study 'tiny' was lost"):
            held.tick()


def test_only_reading_goes_on_beside_a_driver(command: Callable[..., Outcome], tracking_uri: str) -> None:
    arguments = ("--space", "tiny", "--executor", "inline", "--epochs", 1, "--limit-train", 50, "--trials", 1)
    arguments += ("--tracking-uri", tracking_uri)
    assert command(run, *arguments).code == 0
    with lease(STORAGE, "tiny", no_warning):
        outcome = command(run, *arguments)
        assert outcome.code == 1
        assert re.fullmatch(r"error: study 'tiny' is driven by process .*\n", outcome.err)
        Tracker("tiny", study_uid(open_study(STORAGE, "tiny")), tracking_uri, no_warning)  # as the driver opens it
        outcome = command(sync, "--study", "tiny", "--tracking-uri", tracking_uri)
        assert re.fullmatch(r"error: study 'tiny' is driven by process .*\n", outcome.err)
        assert command(report, "--study", "tiny").code == 0
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        (parent,) = client.search_runs([experiment.experiment_id], "tags.role = 'study'")
        assert parent.info.status == "RUNNING"
    assert command(sync, "--study", "tiny", "--tracking-uri", tracking_uri).code == 0
    assert client.get_run(parent.info.run_id).info.status == "FINISHED"
