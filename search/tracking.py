"""MLflow as a view of a study: one experiment, one parent run, one child a trial. The only file that imports mlflow.

Everything is written with the worker's timestamps, which MLflow stores once however often it is told: logging a trial
again changes nothing, so the whole view can be rebuilt from the storage at any time.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from .candidate_file import CandidateFile
from .storage import TrialView
from .training import EpochRecord

if TYPE_CHECKING:
    from .final_training import FinalResult

TAG_STUDY: Final = "optuna.study"
TAG_TRIAL: Final = "optuna.trial"
TAG_LOGGED_EPOCH: Final = "logged_epoch"
MAX_BATCH: Final = 1000
FINAL_METRICS: Final = ("test/acc_soft", "test/acc_discrete", "gates/raw")


class Tracker:
    """Observer that mirrors trials to MLflow. A tracking server that fails is reported once and never stops a search.

    Args:
        study: experiment and parent run carry this name.
        uri: tracking URI; None is MLflow's own default.
        warn: told once, in one line, if tracking stops.
    """

    def __init__(self, study: str, uri: str | None, warn: Callable[[str], None]) -> None:
        self.study, self._warn, self._down = study, warn, False
        self._runs: dict[int, str] = {}
        self._logged: dict[int, int] = {}
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self.uri = uri or mlflow.get_tracking_uri()
        self._try(self._connect)

    def trial_changed(self, trial: TrialView) -> None:
        self._try(lambda: self._log(trial))

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None:
        """Nothing: epochs are logged once their rung is stored."""

    def tick(self) -> None:
        """Nothing to do."""

    def sync(self, trials: Sequence[TrialView]) -> None:
        """Bring every trial's run up to date."""
        for trial in trials:
            if trial.state != "waiting":
                self.trial_changed(trial)

    def finish(self, best: TrialView | None) -> None:
        """Close the parent run, naming the best trial."""

        def close() -> None:
            if best is not None:
                self._client.set_tag(self._parent, "best_trial", str(best.number))
                self._client.log_metric(self._parent, "best/val/acc_discrete", best.acc_discrete or 0.0)
            self._client.set_terminated(self._parent)

        self._try(close)

    def _try(self, action: Callable[[], None]) -> None:
        if self._down:
            return
        try:
            action()
        except (MlflowException, OSError) as error:
            self._down = True
            reason = str(error).splitlines()[0]
            self._warn(
                f"MLflow at {self.uri} failed ({reason}): the search goes on without it; "
                f"`python -m search.sync --study {self.study}` makes up for it later"
            )

    def _connect(self) -> None:
        self._client = MlflowClient(self.uri)
        experiment = self._client.get_experiment_by_name(self.study)
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(self.study)
        token: str | None = None
        parent: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], page_token=token, max_results=1000)
            for run in page:
                tags = run.data.tags
                if TAG_TRIAL in tags:
                    self._runs[int(tags[TAG_TRIAL])] = run.info.run_id
                    self._logged[int(tags[TAG_TRIAL])] = int(tags.get(TAG_LOGGED_EPOCH, 0))
                elif tags.get(TAG_STUDY) == self.study and tags.get("role") == "study":
                    parent = run.info.run_id
            token = page.token
            if not token:
                break
        if parent is None:
            tags = {TAG_STUDY: self.study, "role": "study"}
            parent = self._client.create_run(self._experiment, run_name=self.study, tags=tags).info.run_id
        else:
            self._client.update_run(parent, status="RUNNING")
        self._parent = parent

    def _log(self, trial: TrialView) -> None:
        run_id = self._runs.get(trial.number) or self._create(trial)
        metrics = [
            Metric(name, value, record.timestamp_ms, record.epoch)
            for record in trial.records
            if record.epoch > self._logged.get(trial.number, 0)
            for name, value in record.metrics().items()
        ]
        for start in range(0, len(metrics), MAX_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
        tags = {"state": trial.state, TAG_LOGGED_EPOCH: str(trial.epoch)}
        for name in ("stopped_at_rung", "cause", "message", "rejected"):
            if name in trial.attrs:
                tags[name] = str(trial.attrs[name])
        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self._logged[trial.number] = trial.epoch
        if trial.state != "running":
            end = trial.frozen.datetime_complete
            self._client.set_terminated(
                run_id,
                status="FINISHED" if trial.state == "complete" else "FAILED",
                end_time=int(end.timestamp() * 1000) if end else None,
            )

    def _create(self, trial: TrialView) -> str:
        started_ms: int = trial.attrs.get("started_ms", 0)
        tags = {
            TAG_STUDY: self.study,
            TAG_TRIAL: str(trial.number),
            "mlflow.parentRunId": self._parent,
            "known": trial.known or "",
        }
        name = f"trial {trial.number}" + (f" ({trial.known})" if trial.known else "")
        run = self._client.create_run(self._experiment, start_time=started_ms or None, run_name=name, tags=tags)
        run_id: str = run.info.run_id
        self._runs[trial.number] = run_id
        params = [Param(name, str(value)) for name, value in logged_params(trial).items()]
        metrics = [] if trial.raw_gates is None else [Metric("gates/raw", trial.raw_gates, started_ms, 0)]
        self._client.log_batch(run_id, metrics=metrics, params=params)
        return run_id


def logged_params(trial: TrialView) -> dict[str, Any]:
    """Every searched value under its own name, and tau and lr as used."""
    params = dict(trial.params)
    if trial.candidate is not None:
        params |= {"tau": trial.candidate.model.tau, "lr": trial.candidate.train.lr, "seed": trial.attrs.get("seed")}
    return params


def default_store_hint() -> str | None:
    """Why a bare `mlflow ui` may not show this study: an old ./mlruns makes MLflow fall back to it."""
    if Path("mlruns").is_dir() and not os.environ.get("MLFLOW_TRACKING_URI"):
        return "an old ./mlruns is in this folder and MLflow falls back to it: `mlflow ui` shows that one"
    return None


def log_final_training(
    study: str,
    name: str,
    file: CandidateFile,
    results: Sequence["FinalResult"],
    uri: str | None,
    warn: Callable[[str], None],
) -> None:
    """One run a seed in the study's experiment, tagged `final`; a seed that is there already is not logged again."""
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(study)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(study)
        for result in results:
            key = f"{name} {result.seed}"
            if client.search_runs([experiment_id], f"tags.final = '{key}'"):
                continue
            run = client.create_run(experiment_id, run_name=f"final {key}", tags={TAG_STUDY: study, "final": key})
            params = {**file.origin.get("params", {}), "tau": file.candidate.model.tau, "lr": file.candidate.train.lr}
            client.log_batch(
                run.info.run_id,
                metrics=[
                    Metric(metric, value, record.timestamp_ms, record.epoch)
                    for record in result.records
                    for metric, value in record.metrics().items()
                ][-MAX_BATCH:],
                params=[Param(param, str(value)) for param, value in params.items()],
            )
            last = result.records[-1]
            ended = [Metric(metric, result.metrics[metric], last.timestamp_ms, last.epoch) for metric in FINAL_METRICS]
            client.log_batch(run.info.run_id, metrics=ended)
            for file_name in ("config.yaml", "metrics.json"):
                client.log_artifact(run.info.run_id, str(result.folder / file_name))
            client.set_terminated(run.info.run_id)
    except (MlflowException, OSError) as error:
        warn(f"MLflow failed ({str(error).splitlines()[0]}): the results in {results[0].folder.parent} are complete")
