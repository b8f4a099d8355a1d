"""MLflow as a view: what it shows, that it can be told again and rebuilt, and that a search does without it."""

import copy
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from search.data import Dataset
from search.export import export
from search.run import run as search_run
from search.storage import TrialView, study_uid
from search.sync import sync
from search.tracking import Tracker
from search.train import train
from spaces import SPACES
from tests.search.conftest import Outcome
from tests.search.tiny import RUNGS, TINY, FakeExecutor, Runs, broken, no_warning

Call = Callable[..., Outcome]
RUNG_METRICS = {"gates/core", "gates/total", "gates/depth"}
EPOCH_METRICS = {"train/loss", "val/acc_soft", "val/acc_discrete", "val/gap", "images_per_second"}


def runs(uri: str, experiment_name: str = "tiny") -> tuple[list[Run], dict[int, Run]]:
    """(those without a trial, those of trials by number)."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    children = {int(run.data.tags["optuna.trial"]): run for run in found if "optuna.trial" in run.data.tags}
    others = [run for run in found if "optuna.trial" not in run.data.tags]
    assert len(found) == len(children) + len(others)
    return others, children


def histories(uri: str, run: Run) -> dict[str, list[tuple[int, float, int]]]:
    """(step, value, timestamp) of every metric, by step."""
    client = MlflowClient(uri)
    return {
        name: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def everything(uri: str) -> dict[int, Any]:
    """What MLflow shows of the trials, but for the ids it gave."""
    own = {"mlflow.parentRunId", "mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit"}
    return {
        number: (
            run.info.run_name,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            {name: value for name, value in run.data.tags.items() if name not in own},
            histories(uri, run),
        )
        for number, run in runs(uri)[1].items()
    }


@dataclass
class Tracked:
    """A study that was logged as it ran: its storage, its trials, and the store."""

    storage: str
    uid: str
    views: list[TrialView]
    uri: str


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, empty_store: Path) -> Iterator[Tracked]:
    """Trials, stopped, failed, rejected and infeasible ones among them. No test leaves the store other than it was."""
    folder = tmp_path_factory.mktemp("tracked")
    uri, storage = f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/study.db"
    shutil.copy(empty_store, folder / "mlflow.db")
    executor = FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial == 1 else events, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(SPACES, TINY.name, TINY)
        sessions, options = Runs(dataset, None), {"trials": 8, "max_gates": 1300, "seed": 1, "storage": storage}
        uid = study_uid(sessions.study(sessions.config(**options)))
        tracker = Tracker("tiny", uid, uri, no_warning)
        views = sessions(executor, [tracker], **options)
        tracker.finish(views[0])
    assert {view.state for view in views} == {"complete", "failed", "rejected"}
    assert {view.epoch for view in views if view.state == "complete"} >= {1, 9}
    assert {view.is_infeasible for view in views if view.state == "complete"} == {True, False}
    yield Tracked(storage, uid, views, uri)


def test_a_parent_and_a_child_a_trial(tracked: Tracked) -> None:
    others, children = runs(tracked.uri)
    (parent,) = others
    assert parent.info.run_name == "tiny"
    assert (parent.info.status, parent.data.tags["best_trial"]) == ("FINISHED", "0")
    assert parent.data.tags["optuna.study"] == "tiny"
    assert set(children) == {view.number for view in tracked.views}
    for view in tracked.views:
        child = children[view.number]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["optuna.study"] == "tiny"
        assert child.data.tags["state"] == view.state
        assert child.info.status == ("FINISHED" if view.state == "complete" else "FAILED")
        assert child.data.tags.get("cause") == view.cause
        assert child.data.tags.get("message", "") == view.message
        for name in ("stopped_at_rung", "rejected"):
            assert child.data.tags.get(name) == (str(view.attrs[name]) if name in view.attrs else None)
        assert child.data.tags.get("infeasible") == ("True" if view.is_infeasible else None)
    assert children[0].info.run_name == "trial 0 (published)"


def test_searched_values_under_their_names_and_tau_as_used(tracked: Tracked) -> None:
    _, children = runs(tracked.uri)
    for view in tracked.views:
        params = children[view.number].data.params
        assert {name: params[name] for name in view.params} == {n: str(v) for n, v in view.params.items()}
        if view.candidate is not None:
            assert params["tau"] == str(view.candidate.model.tau)
            assert params["lr"] == str(view.candidate.train.lr)
            assert params["seed"] == str(view.attrs["seed"])
    assert children[0].data.params["tau"] == "2.0"
    assert {"k", "kernel_1", "outputs_per_class", "tau_c", "lr"} <= children[0].data.params.keys()


def test_a_metric_an_epoch_with_the_worker_s_clock(tracked: Tracked) -> None:
    _, children = runs(tracked.uri)
    for view in tracked.views:
        found = histories(tracked.uri, children[view.number])
        expected = EPOCH_METRICS | RUNG_METRICS if view.records else set()
        assert set(found) == expected | ({"gates/raw"} if view.raw_gates else set())
        for name in EPOCH_METRICS & found.keys():
            assert found[name] == [(each.epoch, each.metrics()[name], each.timestamp_ms) for each in view.records]
        if view.raw_gates:
            rungs = [each for each in view.records if each.epoch in RUNGS]
            for name in RUNG_METRICS & found.keys():
                assert found[name] == [(each.epoch, each.metrics()[name], each.timestamp_ms) for each in rungs]
            assert found["gates/raw"] == [(0, view.raw_gates, children[view.number].info.start_time)]


def test_told_again_nothing_changes(tracked: Tracked) -> None:
    before = everything(tracked.uri)
    for _ in range(2):
        Tracker("tiny", tracked.uid, tracked.uri, no_warning).sync(tracked.views)
    assert everything(tracked.uri) == before
    assert len(runs(tracked.uri)[0]) == 1


def test_a_store_that_missed_the_last_tag_gets_no_step_twice(tracked: Tracked) -> None:
    """Killed between the metrics and the tag that says they are there: they are sent again."""
    _, children = runs(tracked.uri)
    client = MlflowClient(tracked.uri)
    for child in children.values():
        client.set_tag(child.info.run_id, "logged_epoch", "0")
    Tracker("tiny", tracked.uid, tracked.uri, no_warning).sync(tracked.views)
    for view in tracked.views:
        for name, epochs in (("train/loss", range(1, view.epoch + 1)), ("gates/total", RUNGS)):
            steps = Counter(step for step, *_ in histories(tracked.uri, children[view.number]).get(name, []))
            assert steps == Counter(epoch for epoch in epochs if epoch <= view.epoch)


def test_a_run_that_was_made_and_no_more_gets_its_parameters(
    tracked: Tracked, empty_store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind each run's making: what its tags say does not count without parameters."""
    (workspace / "other.db").write_bytes(empty_store.read_bytes())
    other = f"sqlite:///{workspace}/other.db"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: None)
        Tracker("tiny", tracked.uid, other, no_warning).sync(tracked.views)
    assert all(child.data.tags["state"] == "running" for child in runs(other)[1].values())
    Tracker("tiny", tracked.uid, other, no_warning).sync(tracked.views)
    assert everything(other) == everything(tracked.uri)


def test_raw_gates_come_with_the_first_epochs(
    tracked: Tracked, empty_store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "other.db").write_bytes(empty_store.read_bytes())
    tracker = Tracker("tiny", tracked.uid, f"sqlite:///{workspace}/other.db", no_warning)
    view = tracked.views[0]
    attrs = {name: value for name, value in view.attrs.items() if not name.startswith("rung_")}
    sent = []
    log_batch = MlflowClient.log_batch

    def noted(client: MlflowClient, run_id: str, **data: Any) -> None:
        sent.append((len(data["params"]) > 0, {metric.key for metric in data["metrics"]}))
        log_batch(client, run_id, **data)

    monkeypatch.setattr(MlflowClient, "log_batch", noted)
    for rungs in ((), (1,), (1, 3)):
        frozen = copy.copy(view.frozen)
        frozen.state, frozen.values, frozen.datetime_complete = TrialState.RUNNING, None, None
        frozen.user_attrs = attrs | {f"rung_{rung}": view.attrs[f"rung_{rung}"] for rung in rungs}
        tracker.trial_changed(TrialView(frozen, view.gate_count))
    assert [params for params, _ in sent] == [True, False, False]
    assert sent[0][1] == set()
    assert sent[1][1] == {"gates/raw", *EPOCH_METRICS, *RUNG_METRICS}
    assert "gates/raw" not in sent[2][1]


def test_another_time_zone_changes_nothing(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna stores local times without their zone. A run without the tag is logged from its parameters on."""
    before = everything(tracked.uri)
    client = MlflowClient(tracked.uri)
    child = runs(tracked.uri)[1][0]
    client.delete_tag(child.info.run_id, "logged_epoch")
    monkeypatch.setenv("TZ", "UTC-9")
    time.tzset()
    try:
        Tracker("tiny", tracked.uid, tracked.uri, no_warning).sync(tracked.views[:1])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert histories(tracked.uri, child)["gates/raw"] == before[0][-1]["gates/raw"]
    Tracker("tiny", tracked.uid, tracked.uri, no_warning).sync(tracked.views)  # with the end times it had
    assert everything(tracked.uri) == before


def test_two_storages_with_a_study_of_one_name_do_not_mix(command: Call, workspace: Path, tracking_uri: str) -> None:
    arguments = ("--space", "tiny", "--executor", "inline", "--epochs", 1, "--limit-train", 50)
    for storage, trials in (("sqlite:///a.db", 1), ("sqlite:///b.db", 2), ("sqlite:///a.db", 3)):
        options = ("--storage", storage, "--trials", trials, "--tracking-uri", tracking_uri)
        assert command(search_run, *arguments, *options).code == 0
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    numbers: dict[str, list[int]] = {}
    for each in client.search_runs([experiment.experiment_id]):
        if "optuna.trial" in each.data.tags:
            numbers.setdefault(each.data.tags["mlflow.parentRunId"], []).append(int(each.data.tags["optuna.trial"]))
    assert sorted(sorted(children) for children in numbers.values()) == [[0, 1], [0, 1, 2]]


def test_the_view_is_rebuilt_in_an_empty_store(
    tracked: Tracked, empty_store: Path, workspace: Path, command: Call
) -> None:
    (workspace / "other.db").write_bytes(empty_store.read_bytes())
    other = f"sqlite:///{workspace}/other.db"
    outcome = command(sync, "--study", "tiny", "--storage", tracked.storage, "--tracking-uri", other)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{len(tracked.views)} trials of study tiny" in outcome.out
    assert everything(other) == everything(tracked.uri)
    assert len(everything(other)) == len(tracked.views)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///file/mlflow.db"], ids=["no server", "no folder"])
def test_a_search_goes_on_without_mlflow(
    command: Call, workspace: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (workspace / "file").touch()
    arguments = ("--space", "tiny", "--executor", "inline", "--trials", 2, "--epochs", 1, "--limit-train", 50)
    outcome = command(search_run, *arguments, "--tracking-uri", uri)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("warning:") == 1
    assert "python -m search.sync --study tiny" in outcome.out
    assert "2 complete" in outcome.out


def test_a_session_shows_up_whole(command: Call, tracking_uri: str) -> None:
    """Search in two sessions, export, final training: all in one experiment."""
    for trials in (1, 3):
        arguments = ("--space", "tiny", "--executor", "inline", "--epochs", 3, "--limit-train", 50)
        assert command(search_run, *arguments, "--trials", trials, "--tracking-uri", tracking_uri).code == 0
    others, children = runs(tracking_uri)
    assert set(children) == {0, 1, 2}
    assert [(each.info.run_name, each.info.status) for each in others] == [("tiny", "FINISHED")]
    assert command(export, "--study", "tiny", "-o", "best.yaml").code == 0
    for _ in range(2):
        assert command(train, "best.yaml", "--seeds", 2, "--tracking-uri", tracking_uri).code == 0
    others, children = runs(tracking_uri)
    final = [each for each in others if "final" in each.data.tags]
    assert len(final) == 2
    for each in final:
        test_metrics = {"test/acc_soft", "test/acc_discrete", "gates/raw"}
        assert EPOCH_METRICS | RUNG_METRICS | test_metrics <= each.data.metrics.keys()
        assert [step for step, *_ in histories(tracking_uri, each)["train/loss"]] == [1, 2, 3]
        assert {"k", "tau", "lr"} <= each.data.params.keys()
        artifacts = MlflowClient(tracking_uri).list_artifacts(each.info.run_id)
        assert {artifact.path for artifact in artifacts} == {"config.yaml", "metrics.json"}


def test_the_default_store_is_mlflow_s_own(workspace: Path) -> None:
    """So a bare `mlflow ui` in the folder shows the study."""
    assert mlflow.get_tracking_uri().endswith("mlflow.db")
