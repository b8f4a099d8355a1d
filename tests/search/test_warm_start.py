"""Warm start: what becomes of another study's trials here, and that each is tried once, whatever happens."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from rich.console import Console

from search.config import StudyConfig
from search.data import Dataset
from search.report import front, print_report
from search.run import run as search_run
from search.storage import TrialView, create_or_resume, stored_trials, trial_views
from search.study import DIRECTIONS, StudyDriver
from search.warm_start import Start, best, left_to_ask, mapped, nearest, prepare
from spaces import SPACES, Space
from spaces.space import Choice, Parameter, Range, Value
from tests.search.conftest import Outcome
from tests.search.test_cli_errors import USAGE, fails
from tests.search.test_resume import Killed, kill_after
from tests.search.tiny import BASELINE, INFO, TINY, FakeExecutor, Runs, broken
from tests.spaces.test_spaces import UniformTrial, check_params

__all__ = ["fails"]
Call = Callable[..., Outcome]

# tiny's parameters moved: other ranges, other choices, one more, one less
OTHER = replace(
    TINY,
    name="other",
    parameters=(
        Parameter("k", Range(4, 8, log=True)),
        Parameter("kernel_1", Choice((3, 5))),
        Parameter("outputs_per_class", Range(9, 16)),
        Parameter("tau_c", Range(0.5, 1.0)),
        Parameter("parametrization", Choice(("softmax", "iwp"))),
        Parameter("lr", Range(0.005, 0.05, log=True), when=("parametrization", ("softmax",))),
        Parameter("lr_iwp", Range(0.02, 0.3, log=True), when=("parametrization", ("iwp",))),
        Parameter("dropout", Choice((0.0, 0.5))),
    ),
    known=(replace(TINY.known[0], params={**BASELINE, "dropout": 0.5}),),
)


# Mapping


@pytest.mark.parametrize("source", SPACES)
@pytest.mark.parametrize("target", SPACES)
def test_whatever_comes_is_in_the_space_and_optuna_takes_it(source: str, target: str) -> None:
    study = optuna.create_study()
    for seed in range(10):
        params = SPACES[source].sample(UniformTrial(seed))
        result = mapped(params, SPACES[target])
        study.enqueue_trial(result.params)
        trial = study.ask()
        asked = SPACES[target].sample(trial)  # out of a range it would warn, and a warning is an error here
        check_params(SPACES[target], asked)
        assert asked.items() >= result.params.items()
        assert asked.keys() - result.params.keys() == set(result.sampled)
        if source == target:
            assert (result.params, result.changed) == (params, {})
            assert result.filled + result.sampled + result.left_out == ()


def test_from_mnist_small_to_mnist_medium() -> None:
    params = {**SPACES["mnist_small"].known[1].params, "k": 8, "outputs_per_class": 64, "tau_c": 0.35}
    result = mapped(params, SPACES["mnist_medium"])
    assert result.changed == {"k": (8, 16), "outputs_per_class": (64, 256)}
    assert result.params == {**params, "k": 16, "outputs_per_class": 256}


def test_from_digits_to_mnist() -> None:
    result = mapped(SPACES["digits_small"].known[1].params, SPACES["mnist_small"])
    assert result.changed == {"batch_size": (32, 128)}
    assert result.params["lr_iwp"] == 0.1
    assert (result.filled, result.params["shift"]) == (("shift",), 0)  # as in the baseline
    assert result.sampled + result.left_out == ()


def test_what_is_lacking_and_what_has_no_place() -> None:
    params: dict[str, Value] = {"k": 2, "kernel_1": 7, "parametrization": "iwp", "tau_c": 2.0, "lr": 0.01, "width": 3}
    result = mapped(params, OTHER)
    assert result.params == {
        "k": 4,
        "kernel_1": 5,
        "outputs_per_class": 12,
        "tau_c": 1.0,
        "parametrization": "iwp",
        "dropout": 0.5,
    }
    assert result.changed == {"k": (2, 4), "kernel_1": (7, 5), "tau_c": (2.0, 1.0)}
    assert (result.filled, result.sampled) == (("outputs_per_class", "dropout"), ("lr_iwp",))
    assert result.left_out == ("lr", "width")


@pytest.mark.parametrize(
    ("value", "domain", "expected"),
    [
        (0.0, Range(1e-4, 1e-2, log=True), 1e-4),  # a choice of 0 in another space; Optuna raises on 0 in a log range
        (0, Range(1, 8, log=True), 1),
        (3.7, Range(1, 8), 4),
        (9.2, Range(1, 8), 8),
        (3, Range(0.5, 4.0), 3.0),
        ("x", Range(1, 8), None),
        (True, Range(1, 8), None),
        (32, Choice((128, 256, 512)), 128),
        (300, Choice((128, 256, 512)), 256),
        (0.0, Choice((0, 5)), 0),
        (1, Choice((True, False)), None),
        (True, Choice((1, 2)), None),
        (True, Choice((False, True)), True),
        ("gumbel", Choice(("soft", "ste")), None),
        ("soft", Choice((1, "soft")), "soft"),
        (7, Choice((1, "soft")), 1),
    ],
)
def test_nearest(value: Value, domain: Range | Choice, expected: Value | None) -> None:
    found = nearest(value, domain)
    assert (found, type(found)) == (expected, type(expected))


# Choosing


def test_the_best_are_of_the_front_and_feasible(run: Runs) -> None:
    views = run(FakeExecutor(), trials=25, max_gates=1400)
    members = front(views)
    chosen = best(views, ("accuracy", "gates"))
    assert {view.number for view in chosen[: len(members)]} == {view.number for view in members}
    assert chosen[0].acc_discrete == max(view.acc_discrete or 0 for view in members)
    assert chosen[1] == members[0]  # the smallest
    assert any(view.is_infeasible for view in views)
    assert not any(view.is_infeasible for view in chosen)
    by_accuracy = [view.acc_discrete or 0 for view in best(views, ("accuracy",))]
    assert by_accuracy == sorted(by_accuracy, reverse=True)


# The study


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The folder of a study "first", with two trials of no use. Made once: sqlite takes its time."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(SPACES, TINY.name, TINY)
        executor = FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial in (3, 7) else events)
        Runs(dataset, None)(executor, study="first", trials=12, seed=5)
    return folder / "studies" / "first"


@pytest.fixture
def source(first: Path, run_sqlite: Runs) -> list[TrialView]:
    """The trials of "first", which lies in the workspace."""
    shutil.copytree(first, "studies/first")
    return stored_trials("first", "")


@pytest.fixture
def other_space(monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setitem(SPACES, OTHER.name, OTHER)
    return OTHER


def config_of(runs: Runs, **options: Any) -> StudyConfig:
    return runs.config(**{"space": "other", "study": "second", "warm_start": ("first",), "seed": 1, **options})


def session(study: optuna.Study, config: StudyConfig, executor: FakeExecutor | None = None) -> list[TrialView]:
    prepare(study, config)
    StudyDriver(config, study, INFO, executor or FakeExecutor(), []).run()
    return trial_views(study, config.gates)


def opened(config: StudyConfig) -> optuna.Study:
    directions = [DIRECTIONS[name] for name in config.objectives]
    return create_or_resume(config.storage, config.study, directions, config.metric_names, config.identity())


def check_started(views: list[TrialView], starts: list[Start]) -> None:
    """The baseline, then what the study starts from, once each and in order; the rest is sampled."""
    assert [view.known for view in views] == ["published", *[None] * (len(views) - 1)]
    assert [view.warm_start for view in views[1 : len(starts) + 1]] == [start.source for start in starts]
    assert not any(view.warm_start for view in views[len(starts) + 1 :])
    for view, start in zip(views[1:], starts, strict=False):
        assert view.params.items() >= start.params.items()


def test_the_best_of_another_study_are_tried_first_and_once(
    run_sqlite: Runs, source: list[TrialView], other_space: Space
) -> None:
    config = config_of(run_sqlite, trials=3)
    study = opened(config)
    (line,) = prepare(study, config)
    starts = left_to_ask(study, [])
    assert len(starts) == 5
    assert line.startswith(f"warm start from first: its trials {starts[0].source.removeprefix('first/')}, ")
    assert "; lacking, as known here: dropout" in line
    assert "made to fit: " in line
    for start in starts:
        view = source[int(start.source.removeprefix("first/"))]
        assert view.state == "complete"
        assert start.params == mapped(view.params, OTHER).params
    assert prepare(study, config) != []  # no trial yet: chosen again
    assert left_to_ask(study, []) == starts
    check_started(session(study, config), starts[:2])
    run_sqlite(FakeExecutor(), study="first", trials=14, seed=5)  # it goes on, and other trials are its best
    more = config_of(run_sqlite, trials=9)
    study = opened(more)
    assert prepare(study, more) == []
    views = session(study, more)
    check_started(views, starts)
    assert len(views) == 9
    Path("studies/first/study.db").unlink()
    again = config_of(run_sqlite, trials=11)
    check_started(session(opened(again), again), starts)


def test_nothing_is_tried_twice(run_sqlite: Runs, source: list[TrialView]) -> None:
    """Of two studies that hold the same, and of what this space knows already, one of each."""
    run_sqlite(FakeExecutor(), study="same", trials=5, seed=5)
    config = run_sqlite.config(study="third", trials=20, warm_start=("first", "same", "first"))
    study = run_sqlite.study(config)
    lines = prepare(study, config)
    assert len(lines) == 2
    starts = left_to_ask(study, [])
    params = [start.params for start in starts]
    assert all(params.count(each) == 1 for each in params)
    assert BASELINE not in params
    assert {start.source.split("/")[0] for start in starts} == {"first", "same"}


def test_another_study_in_the_same_storage_comes_first(run_sqlite: Runs, source: list[TrialView]) -> None:
    url = "sqlite:///shared.db"
    run_sqlite(FakeExecutor(), study="first", storage=url, trials=4, seed=9)
    config = run_sqlite.config(study="third", storage=url, warm_start=("first",))
    study = run_sqlite.study(config)
    prepare(study, config)
    numbers = [int(start.source.removeprefix("first/")) for start in left_to_ask(study, [])]
    assert numbers
    assert max(numbers) < 4


def test_a_study_not_begun_forgets_what_it_was_to_start_from(
    run_sqlite: Runs, source: list[TrialView], other_space: Space
) -> None:
    config = config_of(run_sqlite)
    prepare(opened(config), config)
    without = config_of(run_sqlite, warm_start=(), trials=3)
    assert {view.warm_start for view in session(opened(without), without)} == {None}


@pytest.mark.parametrize("limit", [{}, {"gates": "raw", "max_gates": 1500}])
def test_a_kill_before_any_write_loses_and_repeats_none(
    run_sqlite: Runs, source: list[TrialView], monkeypatch: pytest.MonkeyPatch, limit: Mapping[str, Any]
) -> None:
    """Those that are rejected, being too large for a limit on raw gates, are as much tried as the others."""
    config = run_sqlite.config(study="third", sampler="random", trials=8, warm_start=("first",), **limit)
    run = Runs(run_sqlite.dataset, InMemoryStorage())

    def fresh() -> optuna.Study:
        run.memory = InMemoryStorage()
        study = run.study(config)
        prepare(study, config)
        return study

    study = fresh()
    wanted = [(start.source, start.params) for start in left_to_ask(study, [])]
    with monkeypatch.context() as patch:
        written = kill_after(1_000_000, patch)
        StudyDriver(config, study, INFO, FakeExecutor(num_workers=2), []).run()
    created = [number for number, name in enumerate(written) if name == "create_new_trial"][: len(wanted) + 2]
    for number in [before + offset for before in created for offset in (0, 1, 2)]:  # to be queued, queued, asked
        study = fresh()
        with monkeypatch.context() as patch:
            kill_after(number, patch)
            with pytest.raises(Killed):
                StudyDriver(config, study, INFO, FakeExecutor(num_workers=2), []).run()
        StudyDriver(config, study, INFO, FakeExecutor(), []).run()
        views = trial_views(study, config.gates)
        assert [(view.warm_start, view.params) for view in views if view.warm_start] == wanted
        assert sum(view.counts for view in views) == 8
        assert any(view.warm_start and view.state == "rejected" for view in views) == bool(limit)


# What people see


def test_the_report_says_where_a_trial_comes_from(
    run_sqlite: Runs, source: list[TrialView], capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_sqlite.config(study="third", trials=8, warm_start=("first",))
    views = session(run_sqlite.study(config), config)
    print_report(Console(width=200), "third", views, 9, "published", None, "next")
    out = capsys.readouterr().out
    for view in views:
        if view.warm_start:
            assert f"(from {view.warm_start}" in out
    assert len([view for view in views if view.warm_start]) == 5


def test_the_command(run_sqlite: Runs, source: list[TrialView], command: Call, tracking_uri: str) -> None:
    arguments = ("--space", "tiny", "--study", "third", "--executor", "inline", "--trials", 2, "--epochs", 1)
    data = ("--limit-train", 100, "--tracking-uri", tracking_uri, "--warm-start", "first")
    outcome = command(search_run, *arguments, *data, "--dry-run")
    assert "\nwarm start from first: its trials " in outcome.out
    assert not Path("studies/third").exists()
    outcome = command(search_run, *arguments, *data)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("warm start from first: its trials ") == 1
    assert "(from first/" in outcome.out
    assert "warm start" not in command(search_run, *arguments, *data).out


@pytest.mark.parametrize(
    ("warm_start", "part"),
    [
        ("third", "study 'third' cannot start from itself: give --warm-start others"),
        ("first,no/where", "study name 'no/where' must be 1 to 64 letters"),
        ("first,", "--warm-start 'first,' lacks a name before or after a comma: write STUDY or STUDY,STUDY"),
        (" ", "--warm-start ' ' lacks a name"),
        ("fisrt , first", "no study 'fisrt' to start from"),
        (
            "first,fisrt",
            "no study 'fisrt' to start from in sqlite:///studies/third/study.db or sqlite:///studies/fisrt/",
        ),
        (
            "failed",
            "study 'failed' has no complete trial within its limits to start from: leave it out of --warm-start",
        ),
    ],
)
def test_what_cannot_be_started_from(
    run_sqlite: Runs, source: list[TrialView], fails: Callable[..., str], warm_start: str, part: str
) -> None:
    run_sqlite(FakeExecutor(lambda job, events: broken(job, False, "nan")), study="failed", trials=1)
    arguments = ("--space", "tiny", "--study", "third", "--executor", "inline")
    assert part in fails(USAGE, search_run, *arguments, "--warm-start", warm_start)


def test_a_space_that_has_changed_and_the_way_out(
    run_sqlite: Runs, fails: Callable[..., str], command: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sqlite(FakeExecutor(), trials=3)
    grown = (*TINY.parameters, Parameter("dropout", Choice((0.0, 0.5))))
    known = (replace(TINY.known[0], params={**BASELINE, "dropout": 0.5}),)
    monkeypatch.setitem(SPACES, "tiny", replace(TINY, parameters=grown, known=known))
    options = ("--space", "tiny", "--executor", "inline", "--dry-run")
    message = fails(USAGE, search_run, *options)
    assert "configuration (parameters.dropout: None -> {'values': [0.0, 0.5], 'when': None}): space tiny has" in message
    assert message.endswith(
        "changed since: give --study another name, and --warm-start tiny to begin with its best trials"
    )
    outcome = command(search_run, *options, "--study", "NEW", "--warm-start", "tiny")
    assert outcome.code == 0 and "tiny" in outcome.out
