"""Everything wrong from outside is one line on stderr, `error: ...`, and exit code 2 (how it was called) or 1."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Command

from search import database
from search.candidate_file import CandidateFile, dump_candidate_file
from search.export import export
from search.report import report
from search.run import run as search_run
from search.sync import sync
from search.train import train
from spaces.candidate import Candidate
from tests.search.conftest import Outcome
from tests.search.tiny import FakeExecutor, Runs, broken, tiny_candidate, tiny_origin

REPOSITORY = Path(__file__).parents[2]
Call = Callable[..., Outcome]
FAILURE, USAGE = 1, 2


@pytest.fixture
def fails(command: Call) -> Callable[..., str]:
    """Calls a command that must fail; its message."""

    def call(code: int, called: Command, *arguments: object) -> str:
        outcome = command(called, *arguments)
        match = re.fullmatch(r"error: ([^\n]+)\n", outcome.err)
        assert match, outcome.err
        assert outcome.code == code
        return match[1]

    return call


@pytest.fixture
def study(run_sqlite: Runs) -> Runs:
    """A study of three trials in the workspace, one of them failed."""
    run_sqlite(FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial == 1 else events), trials=3)
    return run_sqlite


def tiny_run(*arguments: object) -> tuple[object, ...]:
    return (search_run, "--space", "tiny", "--executor", "inline", *arguments)


# search.run


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ("--space", "nmist"),
            "unknown space 'nmist': choose one of digits_small, mnist_small, mnist_medium, cifar10_small, tiny",
        ),
        (("--data", "nmist"), "unknown dataset 'nmist'"),
        (
            ("--data", "npz:none.npz"),
            "cannot read none.npz: No such file or directory; paths are relative to the working",
        ),
        (
            ("--data", "folder:none"),
            "cannot read none/train: No such file or directory; a folder has train/CLASS/*.png",
        ),
        (("--study", "results"), "study name 'results' is reserved: choose another"),
        (("--study", "a/b"), "study name 'a/b' must be 1 to 64 letters"),
        (("--trials", "0"), "--trials=0: input should be greater than or equal to 1"),
        (("--finalists", "-1"), "--finalists=-1: input should be greater than or equal to 0"),
        (("--trials", "many"), "'many' is not a valid integer"),
        (("--objectives", "speed"), "'speed'"),
        (("--objectives", "gates"), "objectives 'gates' must be accuracy,gates or accuracy"),
        (("--storage", "study.db"), "storage 'study.db' is not a URL: write sqlite:///FILE or postgresql://..."),
        (("--sampler", "grid"), "'grid' is not one of"),
        (("--gates", "net"), "'net' is not one of"),
        (("--address", "auto"), "--address joins a Ray cluster: leave out --executor inline"),
        (("--gpus-per-trial", "many"), "'many' is not a valid float"),
        (("--gpus-per-trial", "-1"), "--gpus-per-trial=-1.0: it must be a number of at least 0, or auto"),
        (("--trial-timeout", "0"), "--trial-timeout=0.0: input should be greater than 0"),
        (("--frobnicate",), "No such option"),
        (("--limit-train", "5"), "--limit-train 5: digits has 1,197 training images in 10 classes; choose 10 to 1,197"),
        (("extra",), "unexpected extra argument"),
        (("--timeout", "-1"), "--timeout=-1.0: input should be greater than 0"),
        (("--min-accuracy", "95"), "--min-accuracy 95 is no fraction: did you mean 0.95?"),
        (("--min-accuracy", "1"), "--min-accuracy=1.0: input should be less than 1"),
        (("--max-gates", "0"), "--max-gates=0: input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_option(fails: Callable[..., str], arguments: tuple[str, ...], part: str) -> None:
    assert part in fails(USAGE, *tiny_run(*arguments))


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("ray://head:10001", "address 'ray://head:10001' is Ray Client's, through which workers cannot stream"),
        ("head", "address 'head' must be HOST:PORT of a Ray cluster, or auto"),
    ],
)
def test_an_address_that_is_none(fails: Callable[..., str], address: str, part: str) -> None:
    assert part in fails(USAGE, search_run, "--space", "tiny", "--address", address)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nosuchhost.invalid:6379"])
def test_a_dead_address_is_told_at_once(fails: Callable[..., str], address: str) -> None:
    start = time.monotonic()
    message = fails(FAILURE, search_run, "--space", "tiny", "--address", address)
    assert re.match(f"no Ray cluster can be joined at {address}: .+; start one with `ray start --head`, or", message)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("gpus", "num", "found"), [("auto", 0, "none"), ("1", 0, "none"), ("0.5", 0, "none"), ("2", 1, "one")]
)
def test_gpus_that_this_process_does_not_have(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, gpus: str, num: int, found: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: num > 0)
    assert fails(USAGE, *tiny_run("--gpus-per-trial", gpus)) == (
        f"--gpus-per-trial {gpus}: --executor inline trains on one GPU at most, and PyTorch finds {found} here; "
        f"leave it out or give {num}"
    )


def test_a_storage_of_another_optuna(study: Runs, fails: Callable[..., str], tracking_uri: str) -> None:
    """Its tables are of an older version, or of one that is not known yet."""
    for version, way_out in (("v3.0.0.d", "optuna storage upgrade"), ("v9.0.0.a", "pip install -U optuna")):
        with contextlib.closing(sqlite3.connect("studies/tiny/study.db", isolation_level=None)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        for called in (tiny_run(), (report, "--study", "tiny"), (sync, "--study", "tiny")):
            message = fails(FAILURE, *called)
            assert message.startswith("storage sqlite:///studies/tiny/study.db: The runtime optuna version 5.")
            assert way_out in message


def test_a_wrong_call_leaves_nothing(fails: Callable[..., str], workspace: Path) -> None:
    fails(USAGE, *tiny_run("--trials", 0))
    assert list(workspace.iterdir()) == []


def test_a_study_made_with_other_options(study: Runs, fails: Callable[..., str]) -> None:
    message = fails(USAGE, *tiny_run("--epochs", 3, "--seed", 1))
    assert (
        "'tiny' was made with another configuration (--epochs 9 -> 3; --seed 0 -> 1): give --study another" in message
    )
    message = fails(USAGE, *tiny_run("--space", "digits_small", "--study", "tiny"))
    assert "--space tiny -> digits_small" in message
    assert "parameters." in message


def test_a_lowered_total(study: Runs, fails: Callable[..., str]) -> None:
    assert fails(USAGE, *tiny_run("--trials", 2)) == "study 'tiny' has 3 trials already: give --trials 3 or more"


def test_missing_data_without_a_network(
    fails: Callable[..., str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    (workspace / "empty").mkdir()
    message = fails(FAILURE, search_run, "--space", "mnist_small", "--data-dir", "empty", "--executor", "inline")
    assert str(Path("empty/MNIST/raw")) in message
    assert "`search.run --space digits_small`" in message
    write(replace(tiny_candidate(epochs=1), data=replace(tiny_candidate().data, dataset="mnist")))
    message = fails(FAILURE, train, "best.yaml", "--data-dir", "empty")
    assert "`search.run --space digits_small`" in message, "which train itself does not take"


def test_a_folder_that_cannot_be_written(
    fails: Callable[..., str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "studies").touch()
    message = fails(FAILURE, *tiny_run("--trials", 1))
    assert message.startswith("cannot write the study's database studies/tiny/study.db: ")
    assert "--storage" in message


def test_a_database_that_is_none(fails: Callable[..., str], workspace: Path) -> None:
    (workspace / "study.db").write_bytes(b"no database" * 100)
    way_out = (
        "study.db is damaged or no database: restore a copy or an export (search.import), or give another --study or "
        "--storage"
    )
    for called in (tiny_run(), (report, "--study", "tiny")):
        message = fails(FAILURE, *called, "--storage", "sqlite:///study.db")
        assert message == f"the study's database sqlite:///study.db failed: file is not a database; {way_out}"
    (workspace / "folder").mkdir()
    for called in (tiny_run(), (report, "--study", "tiny")):
        message = fails(FAILURE, *called, "--storage", "sqlite:///folder")
        assert message == f"the study's database sqlite:///folder is a folder; {way_out.replace('study.db', 'folder')}"
    assert "nosuch" in fails(FAILURE, *tiny_run("--storage", "nosuch://host/db"))


def test_a_damaged_database(study: Runs, fails: Callable[..., str], workspace: Path) -> None:
    """Running the same command again would fail again."""
    path = workspace / "studies/tiny/study.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    for called in (tiny_run("--trials", 4), (report, "--study", "tiny")):
        message = fails(FAILURE, *called)
        assert "database disk image is malformed; studies/tiny/study.db is damaged or no database: restore" in message
        assert "nothing stored is lost" not in message


def test_a_busy_database(study: Runs, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    other = sqlite3.connect("studies/tiny/study.db", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        message = fails(FAILURE, *tiny_run("--trials", 4))
    finally:
        other.close()
    assert message.startswith("the study's database sqlite:///studies/tiny/study.db failed: database is locked; ")


def test_a_password_is_not_shown(fails: Callable[..., str]) -> None:
    pytest.importorskip("sqlalchemy")
    message = fails(FAILURE, *tiny_run("--storage", "postgresql://me:secret@127.0.0.1:9/optuna"))
    assert "secret" not in message
    assert "127.0.0.1" in message


def test_a_limit_that_nothing_fits(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    from search import study as driver

    monkeypatch.setattr(driver, "MAX_REJECTED_IN_A_ROW", 3)
    outcome = fails(
        FAILURE,
        *tiny_run("--trials", 2, "--gates", "raw", "--max-gates", 10, "--epochs", 1, "--tracking-uri", "sqlite:///x/y"),
    )
    assert "3 candidates in a row were rejected" in outcome and "raise the limit" in outcome


# search.export


def test_export_of_what_is_not_there(study: Runs, fails: Callable[..., str], workspace: Path) -> None:
    output = ("-o", "best.yaml")
    assert "no study database at studies/other/study.db" in fails(USAGE, export, "--study", "other", *output)
    message = fails(USAGE, export, "--study", "other", "--storage", "sqlite:///studies/tiny/study.db", *output)
    assert message.endswith("there are: tiny")
    message = fails(USAGE, export, "--study", "tiny", "--pick", "trial=99", *output)
    assert message == "trial 99 is not among the complete ones: 0, 2"
    assert "trial 1 is not among" in fails(USAGE, export, "--study", "tiny", "--pick", "trial=1", *output)
    assert "'worst'" in fails(USAGE, export, "--study", "tiny", "--pick", "worst", *output)
    message = fails(USAGE, export, "--study", "tiny", "--max-gates", 100, *output)
    smallest = r"the smallest has 1,[\d]+ total gates; --pick trial=[02] takes it all the same"
    assert re.fullmatch(rf"no complete trial keeps to 100 total gates: {smallest}", message)
    message = fails(USAGE, export, "--study", "tiny", "--pick", "trial=0", "--max-gates", 100, *output)
    assert "--max-gates chooses among trials" in message
    assert "is reserved" in fails(USAGE, export, "--study", "results", *output)
    (workspace / "file").touch()
    assert "cannot write file/best.yaml" in fails(FAILURE, export, "--study", "tiny", "-o", "file/best.yaml")
    assert "Missing option '--study'" in fails(USAGE, export, *output)
    assert not (workspace / "best.yaml").exists()
    for name in ("all.csv", "all.PARQUET"):
        assert fails(USAGE, export, "--study", "tiny", "-o", name) == (
            f"{name}: one configuration is written as YAML; for a table of all trials add --all"
        )
        assert not (workspace / name).exists()


def test_export_of_a_study_without_a_complete_trial(run_sqlite: Runs, fails: Callable[..., str]) -> None:
    run_sqlite(FakeExecutor(lambda job, events: broken(job, False, "nan")), trials=1)
    assert "no complete trial yet" in fails(USAGE, export, "--study", "tiny", "-o", "best.yaml")


def test_sync_of_what_is_not_there(
    study: Runs, fails: Callable[..., str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "no study database at" in fails(USAGE, sync, "--study", "other")
    (workspace / "file").touch()
    assert "MLflow at" in fails(FAILURE, sync, "--study", "tiny", "--tracking-uri", "http://127.0.0.1:9")


# search.train


def exported(candidate: Candidate | None = None) -> dict[str, Any]:
    body = yaml.safe_load(dump_candidate_file(CandidateFile(candidate or tiny_candidate(epochs=1), 0, tiny_origin())))
    assert isinstance(body, dict)
    return body


def put(body: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    inner = body
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return body


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{a: [1, 2", "best.yaml is not YAML"),
        ("a: b: c", "best.yaml is not YAML"),
        (b"\xff\xfe\x00", "best.yaml is not YAML"),
        ("", "is not an exported configuration (no `format: convlogic-candidate`)"),
        ("just text", "is not an exported configuration"),
        ("- 1\n- 2\n", "is not an exported configuration"),
        (yaml.safe_dump({"services": {"web": {"image": "nginx"}}}), "is not an exported configuration"),
        ("!!python/object/apply:os.system ['touch pwned']", "best.yaml is not YAML"),
        (put(exported(), "version", 2), "has version 2, this program reads 1"),
        (put(exported(), "version", None), "has version None"),
        (put(exported(), "candidate.model.num_layers", 3), "candidate.model.num_layers=3: unexpected"),
        (put(exported(), "colour", "red"), "colour='red': unexpected"),
        (put(exported(), "candidate.train.lr", "fast"), "candidate.train.lr='fast': input should be a valid number"),
        (put(exported(), "candidate.train.lr", -1), "lr=-1.0 must be a positive number"),
        (put(exported(), "candidate.train.epochs", 0), "epochs=0 must be at least 1"),
        (put(exported(), "candidate.train.epochs", 1.5), "candidate.train.epochs=1.5: "),
        (put(exported(), "candidate.model.tau", 0), "tau=0.0 must be a positive number"),
        (put(exported(), "candidate.model.dense", []), "candidate.model: the last layer's 144 outputs cannot be"),
        (put(exported(), "candidate.model.conv", [{"kernel": 3}]), "out_channels"),
        (put(exported(), "candidate.model.num_classes", 7), "cannot be divided among 7 classes"),
        (put(exported(), "candidate.model.input_shape", [1, 28]), "candidate.model.input_shape"),
        (put(exported(), "seed", "x"), "seed='x': "),
        (put(exported(), "candidate", None), "candidate=None: "),
        (put(exported(), "candidate.data.dataset", "nmist"), "no dataset 'nmist': choose one of digits, "),
        (put(exported(), "candidate.data.dataset", "npz:none.npz"), "cannot read none.npz: No such file or directory"),
        (put(exported(), "candidate.data.num_thresholds", 0), "num_thresholds=0 must be 1 to 255"),
        (
            put(exported(), "candidate.data.num_thresholds", 3),
            "the model takes (1, 28, 28) planes and 10 classes, digits has (3, 28, 28) and 10: set "
            "num_thresholds, now 3, to 1, or change input_shape",
        ),
        (
            put(put(exported(), "candidate.model.num_classes", 8), "candidate.data.num_thresholds", 3),
            "has (3, 28, 28) and 10: change input_shape and num_classes, or the dataset",
        ),
        (
            yaml.safe_dump(exported()) + "seed: 8\n",
            "best.yaml gives 'seed' in line",
        ),
        (
            "candidate:\n  train: {lr: 1, epochs: 2,\n    lr: 2}\n",
            "best.yaml gives 'lr' in line 2 and again in line 3: leave one of them out",
        ),
        ("{lr: 1, lr: 2}", "best.yaml gives 'lr' twice in line 1: leave one of them out"),
        (put(exported(), "seed", -1), "seed=-1: "),
        (put(exported(), "origin", None), "origin=None: "),
        (
            put(exported(), "candidate.data.limit_train", 5),
            "limit_train 5: digits has 1,197 training images in 10 classes",
        ),
    ],
)
def test_a_yaml_that_is_not_right(
    fails: Callable[..., str], workspace: Path, content: str | bytes | dict[str, Any], part: str
) -> None:
    if isinstance(content, dict):
        content = yaml.safe_dump(content)
    (workspace / "best.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    assert part in fails(USAGE, train, "best.yaml")
    assert not (workspace / "pwned").exists()


def test_a_yaml_that_is_not_there(fails: Callable[..., str], workspace: Path) -> None:
    assert fails(USAGE, train, "best.yaml").startswith("cannot read best.yaml: No such file or directory; write one")
    (workspace / "folder").mkdir()
    assert "cannot read folder: Is a directory" in fails(USAGE, train, "folder")
    assert "Missing argument 'CONFIG'" in fails(USAGE, train)
    assert "--seeds" in fails(USAGE, train, "best.yaml", "--seeds", 0)


def write(candidate: Candidate) -> None:
    Path("best.yaml").write_text(yaml.safe_dump(exported(candidate)))


def test_a_network_too_large_for_memory(fails: Callable[..., str], workspace: Path) -> None:
    candidate = tiny_candidate(epochs=1)
    write(
        replace(candidate, model=replace(candidate.model, dense=(replace(candidate.model.dense[0], out_dim=10**11),)))
    )
    message = fails(FAILURE, train, "best.yaml")
    assert re.match(r"training needs at least [\d.]+ GiB and [\d.]+ GiB are available: lower ", message)


def test_a_loss_that_diverges(fails: Callable[..., str], workspace: Path) -> None:
    candidate = tiny_candidate(epochs=3)
    limited = replace(candidate.data, limit_train=100)
    write(replace(candidate, data=limited, train=replace(candidate.train, lr=1e38)))
    assert "lr 1e+38 is likely too high" in fails(FAILURE, train, "best.yaml")


def test_results_that_cannot_be_written(fails: Callable[..., str], workspace: Path) -> None:
    write(tiny_candidate(epochs=1))
    (workspace / "runs").touch()
    assert "cannot write runs/best/seed_0/config.yaml: " in fails(FAILURE, train, "best.yaml")


# As typed


@pytest.mark.parametrize("name", ["run", "spaces", "export", "import", "train", "circuit", "sync", "plot", "report"])
def test_help_is_quick(name: str) -> None:
    """It imports nothing that takes seconds. Measured again if others keep this machine busy."""
    durations_s = []
    while not durations_s or (min(durations_s) > 1 and len(durations_s) < 5):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", f"search.{name}", "--help"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        durations_s.append(time.perf_counter() - start)
    assert done.stdout.startswith(f"Usage: python -m search.{name} [OPTIONS]")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "optuna", "mlflow", "ray", "numpy", "pydantic", "matplotlib"}
    assert min(durations_s) < 1


def test_an_error_of_the_real_command(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "search.run", "--space", "nmist"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown space 'nmist': [^\n]+\n", done.stderr)


def as_typed(folder: Path, command_line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell, which knows redirections."""
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable} | environment
    return subprocess.run(["sh", "-c", command_line], cwd=folder, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_full_stdout(study: Runs, workspace: Path, buffering: str) -> None:
    for arguments in ("report --study tiny", "export --study tiny -o best.yaml", "report --help"):
        done = as_typed(workspace, f'"$PYTHON" -m search.{arguments} > /dev/full', PYTHONUNBUFFERED=buffering)
        assert (done.returncode, done.stderr) == (
            1,
            "error: the output cannot be written: No space left on device; make room, or send it elsewhere\n",
        )


def test_a_closed_stdout(study: Runs, workspace: Path) -> None:
    done = as_typed(workspace, '"$PYTHON" -m search.report --study tiny >&-')
    assert (done.returncode, done.stderr) == (0, "")
    done = as_typed(workspace, '"$PYTHON" -m search.report --study other >&- 2>&-')
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_stdout_of_few_characters(workspace: Path, tracking_uri: str) -> None:
    """Final training prints ±."""
    candidate = tiny_candidate(epochs=1)
    write(replace(candidate, data=replace(candidate.data, limit_train=100)))
    call = f'"$PYTHON" -m search.train best.yaml --seeds 2 --tracking-uri {tracking_uri}'
    done = as_typed(workspace, call, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"test/acc_discrete  [\d.]+% \? [\d.]+\n", done.stdout)
