"""MLflow as a view of a study: one experiment, one parent run, one child a trial. The only file that imports mlflow.

Everything is written with the worker's timestamps, which MLflow stores once however often it is told: logging a trial
again changes nothing, so the whole view can be rebuilt from the storage at any time.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's seven retries wait four minutes for a server that is down, and the search with them
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from .candidate_file import CandidateFile
from .errors import one_line
from .sqlite import log_ahead
from .storage import TrialView
from .training import EpochRecord

if TYPE_CHECKING:
    from .final_training import FinalResult

# a fresh store otherwise tells of every table it makes
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.ERROR)

TAG_STUDY: Final = "optuna.study"
TAG_UID: Final = "optuna.study_uid"
TAG_TRIAL: Final = "optuna.trial"
TAG_LOGGED_EPOCH: Final = "logged_epoch"
STATUS: Final = {"running": "RUNNING", "complete": "FINISHED"}  # of a trial's run; FAILED in every other state
MAX_BATCH: Final = 1000
FINAL_METRICS: Final = (
    "test/acc_soft",
    "test/acc_discrete",
    "gates/raw",
    "gates/core",
    "gates/total",
    "gates/depth",
)


class Tracker:
    """Observer that mirrors trials to MLflow. A tracking server that fails is reported once and never stops a search.

    Args:
        study: experiment and parent run carry this name.
        uid: tells it from studies of the same name in other storages: every run carries it, and only those are read.
        uri: tracking URI; None is MLflow's own default.
        warn: told once, in one line, if tracking stops.
    """

    def __init__(self, study: str, uid: str, uri: str | None, warn: Callable[[str], None]) -> None:
        self.study, self.uid, self._warn, self._down = study, uid, warn, False
        self._runs: dict[int, Run] = {}
        self._logged: dict[int, int] = {}  # last epoch that a run has; absent before its parameters are there
        self.uri = uri or mlflow.get_tracking_uri()
        self._try(self._connect)

    def trial_changed(self, trial: TrialView) -> None:
        self._try(lambda: self._log(trial))

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None:
        """Nothing: epochs are logged once their rung is stored."""

    def tick(self) -> None:
        """Nothing to do."""

    def sync(self, trials: Sequence[TrialView]) -> None:
        """Bring every trial's run up to date; those that are cost nothing."""
        for trial in trials:
            if trial.state != "waiting" and not self._is_shown(trial):
                self.trial_changed(trial)

    def finish(self, best: TrialView | None) -> None:
        """Close the parent run, naming the best trial."""

        def close() -> None:
            if best is not None:
                self._client.set_tag(self._parent, "best_trial", str(best.number))
                last = best.records[-1]
                metric = Metric("best/val/acc_discrete", last.acc_discrete, last.timestamp_ms, last.epoch)
                self._client.log_batch(self._parent, metrics=[metric])
            self._client.set_terminated(self._parent)

        self._try(close)

    def _is_shown(self, trial: TrialView) -> bool:
        """Whether its run, as it was found, shows it: the status comes after the tags, and they with all else."""
        run = self._runs.get(trial.number)
        return (
            run is not None
            and (bool(run.data.params) or not logged_params(trial))
            and (run.data.tags.get("state"), run.data.tags.get(TAG_LOGGED_EPOCH)) == (trial.state, str(trial.epoch))
            and (run.info.status, run.info.end_time) == (STATUS.get(trial.state, "FAILED"), _end_ms(trial))
        )

    def _try(self, action: Callable[[], None]) -> None:
        if self._down:
            return
        try:
            action()
        except Exception as error:  # whatever a tracking store does, it never stops a search
            self._down = True
            self._warn(
                f"MLflow at {self.uri} failed ({one_line(error)}): the search goes on without it; "
                f"`python -m search.sync --study {self.study}` makes up for it later"
            )

    def _connect(self) -> None:
        if self.uri.startswith("sqlite:///"):
            with contextlib.suppress(sqlite3.OperationalError):  # somebody looks at it: it stays as it is, and slower
                log_ahead(Path(self.uri.removeprefix("sqlite:///")), timeout_s=1)
        self._client = MlflowClient(self.uri)
        experiment = self._client.get_experiment_by_name(self.study)
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(self.study)
        token: str | None = None
        parent: str | None = None
        while True:
            own = f"tags.`{TAG_UID}` = '{self.uid}'"
            page = self._client.search_runs([self._experiment], own, page_token=token, max_results=1000)
            for run in page:
                tags = run.data.tags
                if TAG_TRIAL in tags:
                    self._runs[int(tags[TAG_TRIAL])] = run
                elif tags.get("role") == "study":
                    parent = run.info.run_id
            token = page.token
            if not token:
                break
        if parent is None:
            tags = {TAG_STUDY: self.study, TAG_UID: self.uid, "role": "study"}
            parent = self._client.create_run(self._experiment, run_name=self.study, tags=tags).info.run_id
        else:
            self._client.update_run(parent, status="RUNNING")
        self._parent = parent

    def _log(self, trial: TrialView) -> None:
        run = self._run_of(trial)
        if trial.state == "running" and trial.candidate is None:
            return  # killed as it was asked: its parameters and gates come with the next change
        params: list[Param] = []
        metrics: list[Metric] = []
        if trial.number not in self._logged:  # perhaps killed in between: what is there already stays as it is
            params = [Param(name, str(value)) for name, value in logged_params(trial).items()]
        is_measured = trial.epoch > 0 or trial.state != "running"  # a batch of one metric costs what one of fifty does
        if is_measured and not self._logged.get(trial.number) and trial.raw_gates is not None:
            # Optuna's own time would be another one where the time zone has changed, and the metric be there twice
            metrics.append(Metric("gates/raw", trial.raw_gates, run.info.start_time, 0))
        metrics += _metrics([record for record in trial.records if record.epoch > self._logged.get(trial.number, 0)])
        tags = {"state": trial.state, TAG_LOGGED_EPOCH: str(trial.epoch)}
        for name in ("warm_start", "stopped_at_rung", "rejected"):
            if name in trial.attrs:
                tags[name] = str(trial.attrs[name])
        if trial.cause is not None:
            tags |= {"cause": trial.cause, "message": trial.message}
        if trial.is_infeasible:
            tags["infeasible"] = "True"
        changed = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        _log(self._client, run.info.run_id, metrics, params, [RunTag(name, value) for name, value in changed.items()])
        run.data.tags.update(changed)
        self._logged[trial.number] = trial.epoch
        if trial.state != "running":
            self._client.set_terminated(
                run.info.run_id,
                status=STATUS.get(trial.state, "FAILED"),
                end_time=_end_ms(trial),
            )

    def _run_of(self, trial: TrialView) -> Run:
        """The trial's run, made where there is none."""
        run = self._runs.get(trial.number)
        if run is not None:
            if run.data.params and TAG_LOGGED_EPOCH in run.data.tags:
                self._logged.setdefault(trial.number, int(run.data.tags[TAG_LOGGED_EPOCH]))
            return run
        tags = {
            TAG_STUDY: self.study,
            TAG_UID: self.uid,
            TAG_TRIAL: str(trial.number),
            "mlflow.parentRunId": self._parent,
            "known": trial.known or "",
            "state": "running",
            TAG_LOGGED_EPOCH: "0",
        }
        name = f"trial {trial.number}" + (f" ({trial.known})" if trial.known else "")
        run = self._client.create_run(self._experiment, start_time=started_ms(trial), run_name=name, tags=tags)
        self._runs[trial.number] = run
        return run


def _end_ms(trial: TrialView) -> int | None:
    """When it was told, as this process's time zone has it."""
    end = trial.frozen.datetime_complete
    return int(end.timestamp() * 1000) if end else None


def started_ms(trial: TrialView) -> int:
    """When the trial was asked."""
    asked = trial.frozen.datetime_start
    return int(asked.timestamp() * 1000) if asked else 0


def log_epochs(client: MlflowClient, run_id: str, records: Sequence[EpochRecord]) -> None:
    """Every metric of every epoch."""
    _log(client, run_id, _metrics(records))


def _metrics(records: Sequence[EpochRecord]) -> list[Metric]:
    return [
        Metric(name, value, record.timestamp_ms, record.epoch)
        for record in records
        for name, value in record.metrics().items()
    ]


def _log(
    client: MlflowClient,
    run_id: str,
    metrics: list[Metric],
    params: Sequence[Param] = (),
    tags: Sequence[RunTag] = (),
) -> None:
    """In as few batches as MLflow takes; it writes the tags of the last one, which say what is there, at the end."""
    in_last = MAX_BATCH - len(params) - len(tags)
    while len(metrics) > in_last:
        client.log_batch(run_id, metrics=metrics[:MAX_BATCH])
        metrics = metrics[MAX_BATCH:]
    client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def logged_params(trial: TrialView) -> dict[str, Any]:
    """Every searched value under its own name; tau, lr and the number of outputs as used."""
    params = dict(trial.params)
    if trial.candidate is not None:
        model, train = trial.candidate.model, trial.candidate.train
        params |= {"tau": model.tau, "lr": train.lr, "seed": trial.attrs.get("seed")}
        if model.dense:
            params["num_outputs"] = model.dense[-1].out_dim
    return params


def log_final_training(
    study: str,
    name: str,
    file: CandidateFile,
    results: Sequence["FinalResult"],
    uri: str | None,
    warn: Callable[[str], None],
    kind: str = "final",
    is_winner: bool = False,
) -> None:
    """One run a seed in the study's experiment, tagged `kind`; what is there already is not logged again."""
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(study)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(study)
        candidate = file.candidate
        tags = {TAG_STUDY: study} | ({"winner": "True"} if is_winner else {})
        for result in results:
            key = hashlib.sha256(json.dumps([candidate.to_json(), result.seed]).encode()).hexdigest()
            if client.search_runs([experiment_id], f"tags.{kind} = '{key}'"):
                continue
            run_name = f"{kind} {name} seed {result.seed}"
            run = client.create_run(experiment_id, run_name=run_name, tags=tags)
            params = {**file.origin.params, "tau": candidate.model.tau, "lr": candidate.train.lr, "seed": result.seed}
            client.log_batch(run.info.run_id, params=[Param(param, str(value)) for param, value in params.items()])
            log_epochs(client, run.info.run_id, result.records)
            last = result.records[-1]
            ended = [
                Metric(metric, result.metrics[metric], last.timestamp_ms, last.epoch)
                for metric in FINAL_METRICS
                if metric in result.metrics
            ]
            client.log_batch(run.info.run_id, metrics=ended)
            for file_name in ("config.yaml", "metrics.json"):
                if (result.folder / file_name).exists():
                    client.log_artifact(run.info.run_id, str(result.folder / file_name))
            client.set_tag(run.info.run_id, kind, key)
            client.set_terminated(run.info.run_id)
    except Exception as error:  # the results are on disk; MLflow is a view of them
        warn(f"MLflow failed ({one_line(error)}): the results in {results[0].folder.parent} are complete")
