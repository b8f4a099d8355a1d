"""How a session starts: what a dry run says, what a refused start leaves, what changed since the last session."""

import importlib
import sqlite3
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from search import session
from search.config import study_config
from search.display import Display
from search.errors import Failure
from search.export import export
from search.identity import run_options
from search.report import report, report_console, trial_table
from search.run import run as search_run
from search.storage import find_study
from spaces import Space
from tests.search.conftest import Outcome
from tests.search.tiny import FakeExecutor, Runs

search_import = importlib.import_module("search.import").import_study  # its name is a keyword
Call = Callable[..., Outcome]
TINY_RUN = (search_run, "--space", "tiny", "--executor", "inline")


def content(folder: Path) -> dict[str, bytes]:
    """Every file but those that sqlite keeps beside an open database."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# A dry run


def test_a_dry_run_refuses_what_the_run_would(run_sqlite: Runs, command: Call, workspace: Path) -> None:
    run_sqlite(FakeExecutor(), trials=3)
    with sqlite3.connect("studies/tiny/study.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    before = content(workspace)
    for options in (("--epochs", 27), ("--trials", 2), ("--warm-start", "no"), ("--limit-train", 5, "--study", "new")):
        dry = command(*TINY_RUN, *options, "--dry-run")
        assert (dry.code, dry.out) == (2, ""), options
        assert content(workspace) == before
        assert command(*TINY_RUN, *options).err == dry.err


def test_a_dry_run_says_what_is_done_and_how_it_would_go_on(run_sqlite: Runs, command: Call, workspace: Path) -> None:
    run_sqlite(FakeExecutor(), trials=4, min_accuracy=0.5, seed=3)
    outcome = command(*TINY_RUN, "--min-accuracy", 0.5, "--seed", 3, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "study tiny in sqlite:///studies/tiny/study.db: 4 of 20 trials done\n" in outcome.out
    assert "accuracy of at least 50.00%; sampler tpe, seed 3\n" in outcome.out
    assert "executor inline: one trial at a time, in this process\n" in outcome.out
    outcome = command(search_run, "--space", "tiny", "--study", "new", "--workers", 3, "--dry-run")
    assert "study new in sqlite:///studies/new/study.db: new, 20 trials in all\n" in outcome.out
    assert "executor ray: workers: 3\n" in outcome.out
    assert not Path("studies/new").exists()


def test_a_dry_run_creates_no_tables(command: Call, workspace: Path) -> None:
    Path("empty.db").touch()
    assert command(*TINY_RUN, "--storage", "sqlite:///empty.db", "--dry-run").code == 0
    assert content(workspace) == {"empty.db": b""}


def test_a_dry_run_downloads_nothing(command: Call, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr("search.data._download", download)
    for dataset, folder in (("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches-bin")):
        space = () if dataset == "mnist" else ("--space", "cifar10_small")
        outcome = command(*TINY_RUN, *space, "--data", dataset, "--data-dir", "root", "--dry-run")
        assert f"data {dataset}: not in root/{folder} yet; the run downloads it there\n" in outcome.out
    assert list(workspace.iterdir()) == []


def test_a_dry_run_finds_data_packed_or_not(command: Call, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workspace / "root" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").touch()
    (folder / "train-labels-idx1-ubyte").touch()
    labels = np.arange(60_000) % 10
    shapes = {True: labels.astype(np.uint8), False: np.zeros((60_000, 28, 28), np.uint8)}
    monkeypatch.setattr("search.data._read_idx", lambda folder, name, shape: shapes["labels" in name])
    outcome = command(*TINY_RUN, "--data", "mnist", "--data-dir", "root", "--dry-run")
    assert "data mnist: 50,000 training, 10,000 validation images of 1x28x28, 10 classes\n" in outcome.out


# A start that is refused


def test_a_warm_start_from_nothing_leaves_nothing(command: Call, workspace: Path) -> None:
    outcome = command(*TINY_RUN, "--study", "x1", "--warm-start", "nope")
    assert outcome.code == 2
    assert list(workspace.iterdir()) == []


def test_a_start_without_workers_binds_a_study_to_nothing(
    command: Call, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    """It stays, as somebody else may have it by now, without a trial; even its limit on raw gates is then another's."""

    def refused(*arguments: object) -> None:
        raise Failure("no worker starts")

    with monkeypatch.context() as patch:
        patch.setattr(session, "make_executor", refused)
        assert command(*TINY_RUN, "--gates", "raw", "--max-gates", 1).err == "error: no worker starts\n"
    outcome = command(report, "--study", "tiny")
    assert outcome.code == 0 and "search.run" in outcome.out
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor())
    assert command(*TINY_RUN, "--gates", "core", "--trials", 2, "--tracking-uri", tracking_uri).code == 0
    assert "no limits" in command(report, "--study", "tiny").out
    assert command(export, "--study", "tiny", "-o", "best.yaml").code == 0


def test_a_study_that_was_there_stays(run_sqlite: Runs, command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise Failure("no worker starts")

    run_sqlite(FakeExecutor(), trials=1)
    monkeypatch.setattr(session, "make_executor", refused)
    assert command(*TINY_RUN).code == 1
    study = find_study("sqlite:///studies/tiny/study.db", "tiny")
    assert study is not None and len(study.trials) == 1


# What changed


def test_a_session_says_what_it_does_otherwise_than_the_last(
    command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor())
    call = (*TINY_RUN, "--tracking-uri", tracking_uri)
    assert "tpe" not in command(*call, "--trials", 1).out
    changed = ("--trials", 2, "--sampler", "random", "--early-stopping", "none")
    for options in ((*changed, "--dry-run"), changed):
        assert "sampler: tpe -> random\nearly-stopping: halving -> none\n" in command(*call, *options).out
    again = command(*call, "--trials", 3, *changed[2:])
    assert again.code == 0 and "sampler: " not in again.out


# What is said of a study


def test_the_report_of_a_study_without_trials_says_how_to_go_on(run_sqlite: Runs, command: Call) -> None:
    run_sqlite.study(run_sqlite.config(study="x1", min_accuracy=0.5))
    outcome = command(report, "--study", "x1")
    assert (outcome.code, outcome.err) == (0, "")
    made, study, _, *call = [line for line in outcome.out.splitlines() if line]
    assert made == (
        "made with space tiny, data digits, 9 epochs, objectives accuracy,gates, total gates, accuracy of at least "
        "50.00%, seed 0"
    )
    assert study == "study x1: no trials"
    assert call[0].endswith(" -m search.run --study x1 --space tiny --min-accuracy 0.5    # searches")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs": 3, "seed": 7, "objectives": ("accuracy",), "gates": "core", "max_gates": 9000, "limit_train": 100},
        {"data": "mnist", "min_accuracy": 0.25},
        {"gates": "raw", "max_gates": 100_000},
    ],
)
def test_the_command_that_goes_on_says_what_the_study_was_made_with(tiny_space: Space, options: dict[str, Any]) -> None:
    config = study_config(space="tiny", **options)
    typed = run_options({**config.identity(), "max_gates": config.max_gates}).split()
    context = search_run.make_context("run", [*typed])
    again = study_config(
        **{name: value for name, value in context.params.items() if name not in ("dry_run", "objectives")},
        objectives=tuple(context.params["objectives"].split(",")),
    )
    assert (again.identity(), again.max_gates) == (config.identity(), config.max_gates)
    assert len(typed) == 2 + 2 * len(options)


def test_import_prints_the_command_that_goes_on(
    run_sqlite: Runs, command: Call, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor())
    run_sqlite(FakeExecutor(), trials=21, seed=4, epochs=3, sampler="random")
    assert command(export, "--study", "tiny", "--all", "-o", "tiny.csv").code == 0
    outcome = command(search_import, "tiny.csv", "--study", "copy", "--storage", "sqlite:///other.db")
    line = outcome.out.splitlines()[-1].partition("    #")[0]
    assert line.partition(" -m ")[2] == (
        "search.run --study copy --storage sqlite:///other.db --space tiny --epochs 3 --seed 4 --trials 21"
    )
    arguments = (*line.partition("search.run ")[2].split(), "--executor", "inline", "--tracking-uri", tracking_uri)
    assert command(search_run, *arguments).code == 0


def test_figures_stay_whole_on_a_narrow_terminal(run_sqlite: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    views = run_sqlite(FakeExecutor(), trials=4)
    console = report_console()
    assert console.width == 60
    with console.capture() as capture:
        console.print(trial_table("Best", views, 9))
    assert "…" not in capture.get()
    for view in views:
        assert f"{view.gates:,}" in capture.get()


class Shown(Display):
    """The live table as text, about once a second."""

    def tick(self) -> None:
        self.console.print(self._table())


def test_the_live_table_cuts_the_network_alone(run_sqlite: Runs) -> None:
    text = StringIO()
    run_sqlite(FakeExecutor(), [Shown(Console(file=text, width=80), 1, [], 9)], trials=1)
    rows = [line for line in text.getvalue().splitlines() if "3/3 of 9" in line]
    assert rows
    for row in rows:
        figures, _, network = row.partition(" k=")
        assert "…" not in figures and network.endswith("…")
        assert " 2,280 " in figures
    narrow = Display(Console(file=text, width=60, force_terminal=True), 1, [], 9)
    assert narrow._live is None
