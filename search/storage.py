"""What a study keeps in Optuna's storage, and how it reads back: the truth that everything else is a view of.

Trial attributes: `candidate`, `seed`, `known`, `warm_start`, `gates_raw`, `rung_<epoch>` (that rung's epoch records),
`goes_on_after` and `stopped_at_rung` (the decisions at rungs), `failure` (attempts so far, and once it is given up
cause and message), `rejected`. Study attributes: `identity`, `uid`, `warm_start`, `finalists`, `verdict` (of a
deterministic study's last round: trials' rungs and fates), `raw_limit` (the last session's, on raw gates), `session`
(the last one's sampler and early stopping, which may change). Limits on accuracy and on core or total gates are
Optuna's own constraints, set when a trial is told.
"""

import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from spaces.candidate import Candidate

from .candidate_file import parse_candidate
from .config import GateCount, check_study_name, default_storage
from .database import has_tables, open_storage, parse_url, shown, storage_errors
from .errors import UsageError
from .identity import identity_differences
from .training import EpochRecord

RUNG_PREFIX = "rung_"
FAILURE = "failure"
VERDICT = "verdict"
RAW_LIMIT = "raw_limit"
SESSION = "session"


class ForeignStudy(UsageError):
    """A study in the storage that another program made, or that is not wholly imported."""


@dataclass(frozen=True)
class TrialView:
    """A trial as stored, read-only. `gate_count` says which of its counts the study looks at."""

    frozen: FrozenTrial
    gate_count: GateCount

    @property
    def number(self) -> int:
        return self.frozen.number

    @property
    def params(self) -> dict[str, Any]:
        return self.frozen.params

    @property
    def attrs(self) -> dict[str, Any]:
        return self.frozen.user_attrs

    @property
    def state(self) -> str:
        """ "running", "complete", "failed", "rejected" or "waiting"."""
        if "rejected" in self.attrs and "candidate" not in self.attrs and self.frozen.state == TrialState.FAIL:
            return "rejected"
        return {"COMPLETE": "complete", "FAIL": "failed"}.get(self.frozen.state.name, self.frozen.state.name.lower())

    @property
    def counts(self) -> bool:
        """Whether it is one of the study's `--trials`: rejected candidates and those still to be asked are not."""
        return self.state not in ("rejected", "waiting")

    @property
    def attempts(self) -> int:
        """How often a job of it broke."""
        return int(self.attrs.get(FAILURE, {}).get("attempts", 0))

    @property
    def cause(self) -> str | None:
        """Why it was given up."""
        cause: str | None = self.attrs.get(FAILURE, {}).get("cause")
        return cause

    @property
    def message(self) -> str:
        """What it was given up with."""
        return str(self.attrs.get(FAILURE, {}).get("message", ""))

    @cached_property
    def candidate(self) -> Candidate | None:
        stored = self.attrs.get("candidate")
        return None if stored is None else parse_candidate(stored, f"trial {self.number}")

    @cached_property
    def records(self) -> tuple[EpochRecord, ...]:
        """Every epoch of every completed rung, in order."""
        rungs = sorted((name for name in self.attrs if name.startswith(RUNG_PREFIX)), key=rung_epoch)
        return tuple(EpochRecord(**record) for name in rungs for record in self.attrs[name])

    @property
    def epoch(self) -> int:
        """Last epoch of the last completed rung; 0 before the first."""
        return self.records[-1].epoch if self.records else 0

    @property
    def known(self) -> str | None:
        return self.attrs.get("known")

    @property
    def warm_start(self) -> str | None:
        """ "STUDY/NUMBER" of the trial that it was started from."""
        return self.attrs.get("warm_start")

    @property
    def raw_gates(self) -> int | None:
        return self.attrs.get("gates_raw")

    @property
    def gates(self) -> int | None:
        """The count that the study looks at, after the last completed rung; None where it is not known yet."""
        return self.gates_at(self.epoch)

    def gates_at(self, epoch: int) -> int | None:
        """The count that the study looks at, at a rung's last epoch: raw gates never change."""
        if self.gate_count == "raw":
            return self.raw_gates
        record = self.at_rung(epoch)
        if record is None:
            return None
        return record.core_gates if self.gate_count == "core" else record.total_gates

    @property
    def is_infeasible(self) -> bool:
        """Whether it was told beyond one of the study's limits."""
        return any(excess > 0 for excess in self.frozen.constraints.values())

    @property
    def acc_discrete(self) -> float | None:
        return self.records[-1].acc_discrete if self.records else None

    def at_rung(self, epoch: int) -> EpochRecord | None:
        """What the trial measured at a rung's last epoch."""
        stored = self.attrs.get(f"{RUNG_PREFIX}{epoch}")
        return EpochRecord(**stored[-1]) if stored else None


def rung_epoch(attribute: str) -> int:
    return int(attribute.removeprefix(RUNG_PREFIX))


def trial_views(study: optuna.Study, gate_count: GateCount) -> list[TrialView]:
    """Every trial of the study, by number."""
    return [TrialView(trial, gate_count) for trial in study.get_trials(deepcopy=False)]


@contextmanager
def experimental() -> Iterator[None]:
    """Optuna calls metric names and grouped TPE experimental; a user need not be told each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def open_study(url: str, name: str) -> optuna.Study:
    """An existing study, to read.

    Raises:
        UsageError: no such study; names those there are.
    """
    storage = open_storage(url, create=False)
    with storage_errors(url):
        names = sorted(storage.get_study_name_from_id(study._study_id) for study in storage.get_all_studies())
        if name not in names:
            known = f"there are: {', '.join(names)}" if names else "it holds none yet"
            raise UsageError(f"no study {name!r} in {shown(url)}; {known}")
        return optuna.load_study(study_name=name, storage=storage)


def to_read(name: str, url: str) -> tuple[str, optuna.Study]:
    """The URL of a study's storage, and the study, to read; an empty URL is the study's own sqlite file.

    Raises:
        UsageError: no such name, file or study, or not one of this program.
        Failure: the database does not answer.
    """
    try:
        check_study_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    url = url or default_storage(name)
    study = open_study(url, name)
    with storage_errors(url):
        _refuse_without_identity(study, url)
    return url, study


def _refuse_without_identity(study: optuna.Study, url: str) -> None:
    """What a study was made with is the first that is stored of it, and the last of one that is imported.

    Raises:
        UsageError: it is not there.
    """
    if "identity" not in study.user_attrs:
        raise ForeignStudy(
            f"study {study.study_name!r} in {shown(url)} does not say what it was made with: another program made it, "
            "or its import was cut short; give another --study, or import it again under another name"
        )


def stored_trials(name: str, url: str) -> list[TrialView]:
    """The trials of a study, to read; an empty URL is the study's own sqlite file.

    Raises:
        UsageError: no such name, file or study, or not one of this program.
        Failure: the database does not answer.
    """
    url, study = to_read(name, url)
    with storage_errors(url):
        return trial_views(study, full_identity(study)["gates"])


def find_study(url: str, name: str) -> optuna.Study | None:
    """The study of this name, to read, where there is one. Creates nothing: neither folder nor file nor tables.

    Raises:
        UsageError: not a URL of a database.
        Failure: the file is no database, or the database does not answer.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        file = Path(parsed.database or ":memory:")
        if not file.exists():
            return None
    if not has_tables(url, parsed):
        return None
    storage = open_storage(url, create=False)
    with storage_errors(url):
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            return None


def refuse_another_configuration(study: optuna.Study, url: str, identity: dict[str, Any]) -> None:
    """A study binds to its configuration with its first trial.

    Raises:
        UsageError: it was made with another space, dataset, budget, seed or objectives; lists what differs. Or it is
            not one of this program.
    """
    with storage_errors(url):
        trials = study.get_trials(deepcopy=False)
        if not trials:
            return
        _refuse_without_identity(study, url)
        stored = full_identity(study)
    if differences := identity_differences(stored, identity):
        way_out = "give --study another name, or the options and images it was made with"
        if stored.get("space") == identity["space"] and stored.get("parameters") != identity["parameters"]:
            way_out = f"space {identity['space']} has changed since: give --study another name"
            if any(trial.state == TrialState.COMPLETE for trial in trials):
                way_out += f", and --warm-start {study.study_name} to begin with its best trials"
        raise UsageError(
            f"study {study.study_name!r} was made with another configuration ({'; '.join(differences)}): {way_out}"
        )


def create_or_resume(
    url: str,
    name: str,
    directions: Sequence[Literal["maximize", "minimize"]],
    metric_names: Sequence[str],
    identity: dict[str, Any],
) -> optuna.Study:
    """The study of this name, new or as it stands.

    Raises:
        UsageError: as `refuse_another_configuration`.
        Failure: as `open_storage`.
    """
    storage = open_storage(url, create=True)
    with storage_errors(url):
        study = optuna.create_study(study_name=name, storage=storage, directions=list(directions), load_if_exists=True)
        if not study.get_trials(deepcopy=False):
            if [direction.name.lower() for direction in study.directions] != list(directions):
                optuna.delete_study(study_name=name, storage=storage)
                study = optuna.create_study(study_name=name, storage=storage, directions=list(directions))
            with experimental():
                study.set_metric_names(list(metric_names))
            study.set_user_attr("identity", identity)
            study.set_user_attr("uid", study_uid(study) or uuid.uuid4().hex)
    refuse_another_configuration(study, url, identity)
    return study


def gate_limit(study_attrs: dict[str, Any]) -> int | None:
    """A study's limit on its gates. One on raw gates may change from session to session: the last one's."""
    identity = {"gates": "raw", **study_attrs["identity"]}
    limit: int | None = study_attrs.get(RAW_LIMIT) if identity["gates"] == "raw" else identity.get("max_gates")
    return limit


def study_uid(study: optuna.Study) -> str:
    """What tells a study from every other, whatever its name and wherever its storage is moved to."""
    uid: str = study.user_attrs.get("uid", "")
    return uid


def full_identity(study: optuna.Study) -> dict[str, Any]:
    """What a study was made with; before there was a choice of gates, they were raw."""
    return {"gates": "raw", **study.user_attrs["identity"]}


def running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
