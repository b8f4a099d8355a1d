"""search.export --all and search.import: a study goes into a file and comes back as it was, and goes on."""

import csv
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import FrozenTrial

from search import samplers
from search.export import export
from search.lease import lease
from search.plot import plot
from search.report import report
from search.run import run as search_run
from search.storage import experimental, open_study
from search.study_table import study_table
from search.sync import sync
from search.table_file import Table, from_cell, read_table, to_cell, write_table
from tests.search.conftest import Outcome
from tests.search.test_cli_errors import FAILURE, USAGE, fails
from tests.search.test_resume import Killed
from tests.search.tiny import FakeExecutor, Runs, broken, no_warning

search_import = importlib.import_module("search.import").import_study  # its name is a keyword
Call = Callable[..., Outcome]
__all__ = ["fails"]
FORMATS = ["csv", "parquet"]
ELSEWHERE = "sqlite:///elsewhere/other.db"


def as_stored(trial: FrozenTrial) -> dict[str, Any]:
    """Everything about a trial but where it is stored. Floats by repr: 0.0 is not -0.0, and NaN is NaN."""
    fields = {name: value for name, value in vars(trial).items() if name != "_trial_id"}
    return {name: repr(value) if name != "_distributions" else value for name, value in fields.items()} | {
        "order": list(trial.params),
        **{name: repr(sorted(fields[name].items())) for name in ("_user_attrs", "_system_attrs")},
    }


def eventful(run: Runs, **options: Any) -> None:
    """A study with a failed trial, rejected and infeasible ones, one running at a rung, one running and one waiting."""
    run(FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial == 2 else events), **options)

    class Interrupted(FakeExecutor):
        def wait(self, timeout_s: float) -> list[Any]:
            if any(job.until_epoch > 1 and job.trial > 3 for job in self.jobs):
                raise Killed
            return super().wait(timeout_s)

    with pytest.raises(Killed):
        run(Interrupted(num_workers=2), **{**options, "trials": 40})
    study = open_study("sqlite:///studies/tiny/study.db", "tiny")
    study.enqueue_trial({"k": 3}, user_attrs={"note": 'queued,\n"by hand" \u00fc = [1'})


OPTIONS: dict[str, Any] = {"trials": 6, "gates": "total", "max_gates": 1400, "seed": 3}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_trial_comes_back_as_it_was(run_sqlite: Runs, command: Call, suffix: str) -> None:
    eventful(run_sqlite, **OPTIONS)
    outcome = command(export, "--study", "tiny", "--all", "-o", f"out/tiny.{suffix}")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = command(search_import, f"out/tiny.{suffix}", "--study", "copy", "--storage", ELSEWHERE)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"-> study copy in {ELSEWHERE}\n" in outcome.out
    assert "they train from their first epoch again" in outcome.out
    before, after = open_study("sqlite:///studies/tiny/study.db", "tiny"), open_study(ELSEWHERE, "copy")
    assert [as_stored(trial) for trial in after.trials] == [as_stored(trial) for trial in before.trials]
    states = {trial.state.name for trial in after.trials}
    assert states == {"COMPLETE", "FAIL", "RUNNING", "WAITING"}
    assert {bool(trial.constraints) for trial in after.trials if trial.state.name == "COMPLETE"} == {True}
    assert after.metric_names == before.metric_names == ["val/acc_discrete", "gates/total"]
    assert after.directions == before.directions
    assert after.user_attrs == before.user_attrs
    assert "identity" in after.user_attrs
    command(export, "--study", "copy", "--storage", ELSEWHERE, "--all", "-o", f"out/copy.{suffix}")
    first, second = (read_table(Path(f"out/{name}.{suffix}")) for name in ("tiny", "copy"))
    assert second | {"study": first["study"]} == first


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_goes_on_elsewhere_as_it_would_have_here(run_sqlite: Runs, command: Call, sampler: str) -> None:
    """Interrupted in mid-rung: what ran is trained from its first epoch again and measures the same."""
    options: dict[str, Any] = {"sampler": sampler, "objectives": ("accuracy",), "trials": 8}
    whole = run_sqlite(FakeExecutor(), study="whole", **options)

    class Interrupted(FakeExecutor):
        def wait(self, timeout_s: float) -> list[Any]:
            if len(self.jobs) == 8:
                raise Killed
            return super().wait(timeout_s)

    with pytest.raises(Killed):
        run_sqlite(Interrupted(), **options)
    command(export, "--study", "tiny", "--all", "-o", "tiny.csv")
    assert "3 running" in command(search_import, "tiny.csv", "--study", "copy").out  # one of them trained, two waited
    executor = FakeExecutor()
    views = run_sqlite(executor, study="copy", **options)
    assert executor.jobs[0].checkpoint is None
    assert [view.params for view in views] == [view.params for view in whole]
    assert [view.frozen.values for view in views] == [view.frozen.values for view in whole]
    assert [view.records for view in views] == [view.records for view in whole]
    assert [view.number for view in views if view.known] == [0]


def test_parents_are_found_where_trials_have_other_ids(
    run_sqlite: Runs, command: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "POPULATION", 4)
    options: dict[str, Any] = {"sampler": "nsga2", "early_stopping": "none"}
    whole = run_sqlite(FakeExecutor(), study="whole", trials=24, **options)
    run_sqlite(FakeExecutor(), trials=18, **options)
    run_sqlite(FakeExecutor(), study="other", storage=ELSEWHERE, trials=5)
    command(export, "--study", "tiny", "--all", "-o", "tiny.csv")
    assert command(search_import, "tiny.csv", "--study", "copy", "--storage", ELSEWHERE).code == 0
    views = run_sqlite(FakeExecutor(), study="copy", storage=ELSEWHERE, trials=24, **options)
    assert [view.params for view in views] == [view.params for view in whole]


def test_nobody_drives_a_study_that_is_being_imported(run_sqlite: Runs, command: Call) -> None:
    run_sqlite(FakeExecutor(), trials=2)
    command(export, "--study", "tiny", "--all", "-o", "tiny.csv")
    with lease(ELSEWHERE, "copy", no_warning):
        outcome = command(search_import, "tiny.csv", "--study", "copy", "--storage", ELSEWHERE)
    assert outcome.code == FAILURE
    assert "copy" in outcome.err


def test_a_trial_that_waited_is_asked_next(run_sqlite: Runs, command: Call) -> None:
    run_sqlite(FakeExecutor(), trials=2)
    open_study("sqlite:///studies/tiny/study.db", "tiny").enqueue_trial({"k": 3, "kernel_1": 7})
    command(export, "--study", "tiny", "--all", "-o", "tiny.csv")
    command(search_import, "tiny.csv", "--study", "copy")
    views = run_sqlite(FakeExecutor(), study="copy", trials=3)
    assert len(views) == 3
    assert (views[2].params["k"], views[2].params["kernel_1"]) == (3, 7)


def test_numbers_have_their_types_in_parquet(run_sqlite: Runs, command: Call) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run_sqlite(FakeExecutor(), trials=3)
    command(export, "--study", "tiny", "--all", "-o", "tiny.parquet")
    types = {field.name: str(field.type) for field in parquet.read_schema("tiny.parquet")}
    assert (types["number"], types["param:k"], types["param:lr"]) == ("int64", "int64", "double")
    assert (types["value:gates/total"], types["param:parametrization"]) == ("double", "string")


def test_an_import_that_fails_leaves_no_study(run_sqlite: Runs, command: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sqlite(FakeExecutor(), trials=3)
    command(export, "--study", "tiny", "--all", "-o", "tiny.csv")
    original = optuna.Study.add_trial

    def interrupted(study: optuna.Study, trial: FrozenTrial) -> None:
        original(study, trial)
        if trial.number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", interrupted)
        assert command(search_import, "tiny.csv", "--study", "copy").code == 130
    assert command(search_import, "tiny.csv", "--study", "copy").code == 0


@pytest.mark.parametrize("attribute", ["identity", "uid", "finalists"])
def test_an_import_killed_between_attributes_leaves_a_study_that_all_commands_refuse(
    run_sqlite: Runs,
    command: Call,
    fails: Callable[..., str],
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
) -> None:
    """What came before the kill stays, as nothing can clear it away: here also what an import does when it fails."""
    run_sqlite(FakeExecutor(), trials=3)
    study = open_study("sqlite:///studies/tiny/study.db", "tiny")
    study.set_user_attr("finalists", {})
    assert set(study.user_attrs) == {"identity", "uid", "finalists"}
    command(export, "--study", "tiny", "--all", "-o", "tiny.csv")
    set_user_attr = optuna.Study.set_user_attr

    def killed(study: optuna.Study, name: str, value: Any) -> None:
        if name == attribute:
            raise Killed
        set_user_attr(study, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", killed)
        patch.setattr(optuna, "delete_study", lambda **_: None)
        with pytest.raises(Killed):
            command(search_import, "tiny.csv", "--study", "copy")
    refused_by_all(fails, "copy", tracking_uri)
    assert command(search_import, "tiny.csv", "--study", "again").code == 0
    assert open_study("sqlite:///studies/again/study.db", "again").user_attrs.keys() == study.user_attrs.keys()


def refused_by_all(fails: Callable[..., str], name: str, tracking_uri: str) -> None:
    """With one line, the same for every command."""
    line = (
        f"study '{name}' in sqlite:///studies/{name}/study.db does not say what it was made with: another program made "
        "it, or its import was cut short; give another --study, or import it again under another name"
    )
    for called, *arguments in (
        (report,),
        (export, "-o", "best.yaml"),
        (export, "--all", "-o", "all.csv"),
        (plot, "-o", "front.png"),
        (sync, "--tracking-uri", tracking_uri),
        (search_run, "--space", "tiny", "--executor", "inline"),
    ):
        assert fails(USAGE, called, "--study", name, *arguments) == line, called.name
    warm = (search_run, "--space", "tiny", "--executor", "inline", "--study", "warm", "--warm-start", name)
    assert fails(USAGE, *warm) == line


def test_a_study_of_another_program_is_refused(workspace: Path, fails: Callable[..., str], tracking_uri: str) -> None:
    Path("studies/theirs").mkdir(parents=True)
    theirs = optuna.create_study(study_name="theirs", storage="sqlite:///studies/theirs/study.db")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    refused_by_all(fails, "theirs", tracking_uri)


# Cells and files

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@given(VALUES)
def test_a_cell_is_exact(value: Any) -> None:
    cell = to_cell(value)
    assert cell
    assert repr(from_cell(cell)) == repr(value)


@pytest.mark.parametrize(
    "value", ["", "4", "null", "NaN", "1e5", " 7", '"x"', "{", "[1", "a\nb", "\ud800", "true", "'"]
)
def test_text_that_could_be_taken_for_something_else(value: str) -> None:
    assert from_cell(to_cell(value)) == value


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_is_exact(tmp_path: Path, suffix: str) -> None:
    columns: dict[str, list[Any]] = {
        "floats": [0.1 + 0.2, -0.0, None, 5e-324, math.inf, 1e22],
        "nan": [math.nan, None, 1.0, 2.0, 3.0, 4.0],
        "integers": [2**53 + 1, -1, None, 0, 1, 2],
        "huge": [2**70, 1, 2, 3, 4, None],
        "mixed": [1, 1.0, True, "1", None, "x"],
        "truth": [True, False, None, True, True, True],
        "text": ["a,b", 'say "x"', "tab\t", "line\r\nline", "\u00fc", "=1+1"],
        "nested": [{"a": [1, 2.0, None]}, [], {}, "", "{", None],
        "nothing": [None] * 6,
        "long": ["x" * 200_000, None, None, None, None, None],
    }
    table: Table = {
        name: [None if value is None else to_cell(value) for value in values] for name, values in columns.items()
    }
    path = tmp_path / f"t.{suffix}"
    write_table(path, table)
    assert read_table(path) == table


# What is wrong from outside


@pytest.fixture
def exported(run: Runs) -> list[dict[str, str]]:
    """The rows of tiny.csv, which lies in the workspace."""
    config = run.config(trials=3)
    run(FakeExecutor(), trials=3)
    study = run.study(config)
    with experimental():
        study.set_metric_names(config.metric_names)
    study.set_user_attr("identity", config.identity())
    write_table(Path("tiny.csv"), study_table(study))
    with open("tiny.csv", newline="") as file:
        return list(csv.DictReader(file))


def rewrite(rows: list[dict[str, str]]) -> None:
    with open("damaged.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def change(row: int, column: str, value: str) -> Callable[[list[dict[str, str]]], Any]:
    return lambda rows: rows[row].__setitem__(column, value)


def without(column: str) -> Callable[[list[dict[str, str]]], Any]:
    return lambda rows: [row.pop(column) for row in rows]


def drawn_from_names(rows: list[dict[str, str]]) -> None:
    """The second row's k, where the first one's was an integer."""
    names = distribution_to_json(CategoricalDistribution([*range(20)]))
    rows[1]["distributions"] = json.dumps(json.loads(rows[1]["distributions"]) | {"k": names})


def in_study(name: str, value: object) -> Callable[[list[dict[str, str]]], Any]:
    return lambda rows: rows[0].update(study=json.dumps(json.loads(rows[0]["study"]) | {name: value}))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (without("study"), "damaged.csv is not an exported study (no column 'study'): write one with "),
        (without("state"), "no column 'state'"),
        (without("param:k"), "parameters and distributions differ in ['k']"),
        (without("value:gates/total"), " for 2 objectives"),
        (change(0, "study", ""), "holds 0 studies in its column 'study', not one"),
        (change(1, "study", "{}"), "holds 2 studies"),
        (change(0, "study", "{"), "'{' is damaged JSON"),
        (change(0, "study", "[]"), "is not an exported study: "),
        (in_study("version", 1), "damaged.csv has version 1, this program reads 2: export the study with this program"),
        (in_study("format", "csv"), "study.format='csv': "),
        (in_study("directions", ["up"]), "study.directions.0='up': "),
        (in_study("directions", ["maximize"]), "1 directions for 2 metrics"),
        (in_study("colour", "red"), "study.colour='red': unexpected"),
        (in_study("user_attrs", {"identity": 3}), "user_attrs.identity is no object"),
        (change(2, "number", "1"), "holds trial 1 twice"),
        (change(2, "number", "3"), "holds no trial 2: a study's rows are its trials 0 to n-1"),
        (change(2, "number", "two"), "row 3 (trial two) is damaged: number 'two', state 'COMPLETE'"),
        (change(2, "state", "DONE"), "row 3 (trial 2) is damaged: number 2, state 'DONE'"),
        (change(2, "state", "FAIL"), "row 3 (trial 2) is damaged: values should be None for a failed trial"),
        (change(2, "state", "RUNNING"), "`datetime_complete` is supposed to be None"),
        (change(1, "param:k", "99"), "row 2 (trial 1) is damaged: The value 99 of parameter 'k' isn't contained"),
        (change(1, "param:kernel_1", "4"), "row 2 (trial 1) is damaged: "),
        (change(1, "value:gates/total", "many"), "row 2 (trial 1) is damaged: values "),
        (change(1, "datetime_start", "yesterday"), "row 2 (trial 1) is damaged: Invalid isoformat string"),
        (change(1, "distributions", '{"k": "{"}'), "row 2 (trial 1) is damaged: "),
        (change(1, "distributions", "7"), "row 2 (trial 1) is damaged: "),
        (drawn_from_names, "row 2 (trial 1) is damaged: Cannot set different distribution kind to the same parameter"),
        (change(1, "attr:candidate", '{"data"'), "row 2 (trial 1) is damaged: "),
        (change(1, "attr:candidate", '{"data": 1}'), "trial 1 holds no valid configuration: "),
        (change(1, "attr:rung_1", "[{}]"), "row 2 (trial 1) is damaged: "),
    ],
)
def test_a_damaged_table(
    exported: list[dict[str, str]], fails: Callable[..., str], damage: Callable[[Any], Any], part: str
) -> None:
    damage(exported)
    rewrite(exported)
    assert part in fails(USAGE, search_import, "damaged.csv", "--study", "copy")
    assert not Path("studies/copy").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is not an exported study (no column 'number', 'state', "),
        (b"a,b\n1\n", "row 1 has 1 cells under 2 columns"),
        (b"a,a\n1,2\n", "column 'a' is there twice"),
        (b"\xff\xfe\x00", "is no whole table: 'utf-8' codec"),
        (b'a,b\n1,"2', "is no whole table: unexpected end of data"),
    ],
)
def test_a_file_that_is_no_table(workspace: Path, fails: Callable[..., str], content: bytes, part: str) -> None:
    Path("x.csv").write_bytes(content)
    assert part in fails(USAGE, search_import, "x.csv")
    Path("x.parquet").write_bytes(content)
    assert "x.parquet is no whole table: " in fails(USAGE, search_import, "x.parquet")


def test_wrong_calls(exported: list[dict[str, str]], fails: Callable[..., str]) -> None:
    message = fails(USAGE, search_import, "tiny.csv", "--storage", ELSEWHERE, "--study", "results")
    assert message == "study name 'results' is reserved: choose another"
    assert not Path("elsewhere").exists()
    assert "cannot read no.csv: No such file" in fails(USAGE, search_import, "no.csv")
    assert "neither FILE.csv nor FILE.parquet" in fails(USAGE, search_import, "study.db")
    assert "is not a database URL" in fails(USAGE, search_import, "tiny.csv", "--storage", "here")


def test_a_study_that_is_there_stays(exported: list[dict[str, str]], command: Call, fails: Callable[..., str]) -> None:
    assert command(search_import, "tiny.csv").code == 0
    message = fails(USAGE, search_import, "tiny.csv")
    assert message == (
        "there is a study 'tiny' in sqlite:///studies/tiny/study.db already: "
        "give --study another name, or another --storage"
    )
    assert len(open_study("sqlite:///studies/tiny/study.db", "tiny").trials) == 3
    all_of_it = (export, "--study", "tiny", "--all", "-o")
    assert "neither FILE.csv nor FILE.parquet" in fails(USAGE, *all_of_it, "tiny.yaml")
    assert "leave --pick and --max-gates out" in fails(USAGE, *all_of_it, "x.csv", "--pick", "trial=1")
    assert "leave --pick and --max-gates out" in fails(USAGE, *all_of_it, "x.csv", "--max-gates", 7)
    Path("file").touch()
    assert "cannot write file/x.csv" in fails(FAILURE, *all_of_it, "file/x.csv")


def test_a_study_without_trials(run_sqlite: Runs, fails: Callable[..., str]) -> None:
    run_sqlite.study(run_sqlite.config())
    message = fails(USAGE, export, "--study", "tiny", "--all", "-o", "x.csv")
    assert message == "study 'tiny' has no trials yet: there is nothing to export"
