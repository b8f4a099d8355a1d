"""Limits on counts that only training tells: who is infeasible, and what becomes of those trials."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console

from search import session
from search.candidate_file import CandidateFile, dump_candidate_file, load_candidate_file
from search.display import Display
from search.export import export
from search.jobs import Job
from search.plot import plot
from search.report import best_trial, front, report
from search.run import run as search_run
from search.storage import TrialView, stored_trials
from search.sync import sync
from search.workers import Event, Progress
from tests.search.conftest import Outcome
from tests.search.tiny import FakeExecutor, Runs, broken, tiny_candidate, tiny_origin

Call = Callable[..., Outcome]


def the_larger_the_better(job: Job, events: list[Event]) -> list[Event]:
    """Accuracy rises with the total: the best trials are those over a limit."""
    return [
        Progress(job, replace(event.record, acc_discrete=event.record.total_gates / 2000))
        if isinstance(event, Progress) and event.record.total_gates
        else event
        for event in events
    ]


def complete(views: list[TrialView]) -> list[TrialView]:
    return [view for view in views if view.state == "complete"]


@pytest.mark.parametrize("objectives", [("accuracy", "gates"), ("accuracy",)])
@pytest.mark.parametrize(("gates", "limit"), [("core", 600), ("total", 1300)])
def test_over_the_limit_is_infeasible_for_optuna_too(
    run: Runs, objectives: tuple[str, ...], gates: str, limit: int
) -> None:
    options = {"objectives": objectives, "gates": gates, "max_gates": limit}
    views = run(FakeExecutor(), trials=20, **options)
    assert sum(view.counts for view in views) == 20
    assert not any("exceed" in view.attrs.get("rejected", "") for view in views)
    for view in complete(views):
        assert view.frozen.constraints == {f"gates/{gates}": (view.gates or 0) - limit}
        assert view.is_infeasible == ((view.gates or 0) > limit)
    feasible = [view for view in complete(views) if not view.is_infeasible]
    assert 0 < len(feasible) < len(complete(views))
    best = max(feasible, key=lambda view: view.acc_discrete or 0)
    assert best_trial(views) == best
    assert best in front(views)
    assert {view.number for view in front(views)} <= {view.number for view in feasible}
    study = run.study(run.config(**options))
    assert {trial.number for trial in study.best_trials} <= {view.number for view in feasible}


def test_without_a_limit_there_is_no_constraint(run: Runs) -> None:
    assert not any(view.frozen.constraints for view in run(FakeExecutor()))
    raw = run(FakeExecutor(), trials=12, study="raw", gates="raw", max_gates=2000)
    assert not any(view.frozen.constraints for view in raw)


def test_a_failed_trial_has_no_constraint(run: Runs) -> None:
    executor = FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial == 1 else events)
    views = run(executor, trials=3, max_gates=1300)
    assert views[1].state == "failed"
    assert (views[1].frozen.constraints, views[1].is_infeasible) == ({}, False)


def test_at_a_rung_those_within_the_limit_go_first(run: Runs) -> None:
    """With accuracy alone and without the limit the largest would go on."""
    views = complete(run(FakeExecutor(the_larger_the_better), trials=20, objectives=("accuracy",), max_gates=1300))
    judged = []
    for rung in (1, 3):  # with one worker trials reach rungs in the order of their numbers
        reached = [view for view in views if view.at_rung(rung)]
        for index, view in enumerate(reached):
            num_fitting = sum((peer.gates_at(rung) or 0) <= 1300 for peer in reached[:index])
            if view.number and (view.gates_at(rung) or 0) > 1300 and num_fitting >= index // 3 + 1:
                judged.append(view.epoch > rung)
    assert len(judged) > 5
    assert not any(judged)


# What people see


@pytest.fixture
def over(run_sqlite: Runs) -> list[TrialView]:
    """The published network and the most accurate trials are over the limit."""
    views = run_sqlite(FakeExecutor(the_larger_the_better), trials=12, max_gates=1300)
    best = max(complete(views), key=lambda view: view.acc_discrete or 0)
    assert best.is_infeasible
    return views


def test_the_best_that_is_exported_is_feasible(over: list[TrialView], command: Call) -> None:
    expected = max((v for v in complete(over) if not v.is_infeasible), key=lambda view: view.acc_discrete or 0)
    assert command(export, "--study", "tiny", "-o", "best.yaml").code == 0
    assert load_candidate_file(Path("best.yaml")).origin.trial == expected.number
    infeasible = next(view for view in over if view.is_infeasible)
    outcome = command(export, "--study", "tiny", "-o", "best.yaml", "--pick", f"trial={infeasible.number}")
    assert f"{infeasible.gates:,} total gates (infeasible) -> best.yaml" in outcome.out


def test_a_session_marks_them(command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor(the_larger_the_better))
    arguments = ("--space", "tiny", "--trials", 12, "--max-gates", 1300, "--tracking-uri", tracking_uri)
    outcome = command(search_run, *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    ranked, _, members = outcome.out.partition("Front: none")
    ranked = ranked.partition("Best by")[2]
    assert "total gates" in ranked and "raw gates" not in ranked
    lines = [line for line in ranked.splitlines() if "k=" in line]
    marks = ["infeasible)" in line for line in lines]
    assert marks == sorted(marks) and {*marks} == {True, False}
    assert "infeasible" not in members
    assert " total gates, infeasible [" in outcome.out  # as each is told
    # The same again adds nothing, with another limit it is refused.
    assert "trial 1 " not in command(search_run, *arguments).out.partition("Best by")[0]
    outcome = command(search_run, *arguments, "--max-gates", 1400)
    assert outcome.code == 2
    assert "another configuration (--max-gates 1300 -> 1400)" in outcome.err


def test_a_limit_on_raw_gates_holds_for_whoever_looks_later(
    command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline is trained however large it is, and is never the best beyond the last session's limit."""
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor(the_larger_the_better))
    arguments = ("--space", "tiny", "--gates", "raw", "--tracking-uri", tracking_uri)

    def named() -> list[str]:
        def best_in_mlflow() -> str:
            client = MlflowClient(tracking_uri)
            experiment = client.get_experiment_by_name("tiny")
            (parent,) = client.search_runs([experiment.experiment_id], "tags.role = 'study'")
            return str(parent.data.tags["best_trial"])

        by_session = best_in_mlflow()
        assert command(export, "--study", "tiny", "-o", "best.yaml").code == 0
        assert command(sync, "--study", "tiny", "--tracking-uri", tracking_uri).code == 0
        table = command(report, "--study", "tiny").out.partition("Best by")[2].splitlines()
        exported = str(load_candidate_file(Path("best.yaml")).origin.trial)
        return [by_session, best_in_mlflow(), exported, table[2].split()[0]]

    assert command(search_run, *arguments, "--trials", 8, "--max-gates", 1500).code == 0
    views = stored_trials("tiny", "")
    assert (views[0].raw_gates or 0) > 1500
    (best,) = {*named()}
    assert 0 < (views[int(best)].raw_gates or 0) <= 1500
    assert command(search_run, *arguments, "--trials", 9).code == 0  # without a limit it is the largest again
    assert {*named()} == {str(max(stored_trials("tiny", ""), key=lambda view: view.acc_discrete or 0).number)}


def test_a_limit_that_no_trial_keeps(command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor())
    arguments = ("--space", "tiny", "--trials", 3, "--max-gates", 900, "--tracking-uri", tracking_uri)
    outcome = command(search_run, *arguments)
    assert outcome.code == 0
    smallest = min(stored_trials("tiny", ""), key=lambda view: view.gates or 0)
    assert (
        f"No trial keeps to the study's limit: at most 900 total gates (the smallest, trial {smallest.number}, has "
        f"{smallest.gates:,}).\n"
    ) in outcome.out
    assert "Front" not in outcome.out and "published baseline" not in outcome.out
    outcome = command(export, "--study", "tiny", "-o", "best.yaml")
    assert outcome.code == 2
    assert "no complete trial keeps to the study's limit: the smallest has 1," in outcome.err
    assert command(plot, "--study", "tiny", "-o", "front.svg").code == 0
    assert "infeasible" in Path("front.svg").read_text()


@pytest.mark.parametrize("more", [(), ("--max-gates", 900)])
def test_each_limit_that_no_trial_keeps_is_named_and_what_next_exports_all_the_same(
    command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor())
    arguments = ("--space", "tiny", "--trials", 3, "--min-accuracy", 0.99, "--tracking-uri", tracking_uri)
    outcome = command(search_run, *arguments, *more)
    best = max(stored_trials("tiny", ""), key=lambda view: view.acc_discrete or 0)
    limit = f"accuracy of at least 99.00% (the best, trial {best.number}, has {best.acc_discrete:.2%})"
    line = next(line for line in outcome.out.splitlines() if line.startswith("No trial keeps"))
    if more:
        assert line.startswith(f"No trial keeps to the study's limits: {limit} and at most 900 total gates (the smalle")
    else:
        assert line == f"No trial keeps to the study's limit: {limit}."
    (call,) = [line for line in outcome.out.splitlines() if "search.export" in line]
    assert call.endswith(f" -m search.export --study tiny --pick trial={best.number} -o best.yaml")
    assert command(export, *call.split()[call.split().index("--study") :]).code == 0


def test_a_plot_is_over_the_study_s_count(over: list[TrialView], command: Call) -> None:
    assert command(plot, "--study", "tiny", "-o", "front.svg").code == 0
    text = Path("front.svg").read_text()
    assert "<!-- total gates -->" in text and "<!-- infeasible -->" in text


class Shown(Display):
    """The live table as text, about once a second."""

    def tick(self) -> None:
        self.console.print(self._table())


def test_the_live_table_tells_raw_gates_and_those_of_the_last_rung(run: Runs) -> None:
    text = StringIO()
    views = run(FakeExecutor(), [Shown(Console(file=text, width=150), 1, [], 9)], trials=1)
    head, row = next(
        (head, row)
        for head, row in pairwise(text.getvalue().splitlines())
        if "raw gates  total gates" in head and "3/3 of 9" in row
    )
    assert head.split()[-1] == "network"
    assert f" 2,280        {views[0].gates_at(3):,} " in row


# Studies from before there was a choice


def without_counts(job: Job, events: list[Event]) -> list[Event]:
    return [
        Progress(job, replace(event.record, core_gates=None, total_gates=None, depth=None))
        if isinstance(event, Progress)
        else event
        for event in events
    ]


@pytest.fixture
def older(run_sqlite: Runs) -> list[TrialView]:
    """A study as it was stored then: raw gates its objective, no other count."""
    views = run_sqlite(FakeExecutor(without_counts), gates="raw")
    study = run_sqlite.study(run_sqlite.config(gates="raw"))
    identity = study.user_attrs["identity"]
    study.set_user_attr("identity", {name: identity[name] for name in identity.keys() - {"gates", "max_gates"}})
    assert not any("core_gates" in record for view in views for record in view.attrs["rung_1"])
    return views


def test_an_older_study_is_read_with_its_raw_gates(older: list[TrialView], command: Call, tracking_uri: str) -> None:
    outcome = command(export, "--study", "tiny", "-o", "best.yaml", "--max-gates", 100_000)
    assert (outcome.code, outcome.err) == (0, "")
    origin = load_candidate_file(Path("best.yaml")).origin
    best = older[origin.trial]
    assert f"{best.raw_gates:,} raw gates -> " in outcome.out
    assert (origin.raw_gates, origin.core_gates, origin.total_gates) == (best.raw_gates, None, None)
    assert command(plot, "--study", "tiny", "-o", "front.svg").code == 0
    assert "<!-- raw gates -->" in Path("front.svg").read_text()
    assert command(sync, "--study", "tiny", "--tracking-uri", tracking_uri).code == 0


def test_an_older_study_goes_on_as_it_was_made(
    older: list[TrialView], command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor())
    arguments = ("--space", "tiny", "--trials", 6, "--tracking-uri", tracking_uri)
    outcome = command(search_run, *arguments)
    assert outcome.code == 2
    assert "was made with another configuration (--gates raw -> total): " in outcome.err
    outcome = command(search_run, *arguments, "--gates", "raw")
    assert (outcome.code, outcome.err) == (0, "")
    assert "6 complete" in outcome.out and "raw gates" in outcome.out and "total gates" not in outcome.out


def test_a_file_of_before_is_read(workspace: Path) -> None:
    body = yaml.safe_load(dump_candidate_file(CandidateFile(tiny_candidate(), 11, tiny_origin())))
    for name in ("core_gates", "total_gates", "depth"):
        del body["origin"][name]
    Path("old.yaml").write_text(yaml.safe_dump(body))
    assert load_candidate_file(Path("old.yaml")) == CandidateFile(tiny_candidate(), 11, tiny_origin())
