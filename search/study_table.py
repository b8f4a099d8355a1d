"""A whole study as a table, a row a trial, and back: all but the checkpoints of trials that still ran.

Columns: `number`, `state`, `datetime_start`, `datetime_complete`; one for every name under `value:`, `param:`,
`constraint:`, `attr:` (what this project stores) and `system_attr:` (what Optuna stores, of samplers and its queue);
`distributions` and `intermediate_values` as JSON; `study`, in one row, what the study itself holds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter, ValidationError

from convlogic_core.model import Strict

from .config import first_problem
from .database import open_storage, shown, storage_errors
from .errors import UsageError, one_line
from .storage import TrialView, experimental
from .table_file import Table, from_cell, to_cell

FORMAT: Final = "convlogic-study"
FORMAT_VERSION: Final = 2
REQUIRED: Final = ("number", "state", "datetime_start", "datetime_complete", "distributions", "study")
VALUE, PARAM, CONSTRAINT, ATTR, SYSTEM_ATTR = "value:", "param:", "constraint:", "attr:", "system_attr:"
_OPTUNA_CONSTRAINT: Final = "constraints:"  # where Optuna keeps a constraint among its attributes
_OPTUNA_METRIC_NAMES: Final = "study:metric_names"
_OPTUNA_PARENTS: Final = ":parent:"  # in the names of attributes that hold a generation's trials by their ids


@dataclass(frozen=True)
class StudyCell(Strict):
    """What a study holds beside its trials. `version` is the table's. Of trials numbers stand here, no ids."""

    format: Literal["convlogic-study"]
    version: int
    name: str
    directions: list[Literal["maximize", "minimize"]]
    metric_names: list[str] | None
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]


@dataclass(frozen=True)
class StoredStudy:
    """A study out of a table: `trials` by number, none missing."""

    cell: StudyCell
    trials: list[FrozenTrial]


_CELL = TypeAdapter(StudyCell)


def study_table(study: optuna.Study) -> Table:
    """The whole study.

    Raises:
        UsageError: it has no trials yet.
    """
    trials = study.get_trials(deepcopy=False)
    if not trials:
        raise UsageError(f"study {study.study_name!r} has no trials yet: there is nothing to export")
    system_attrs = dict(study._storage.get_study_system_attrs(study._study_id))
    names = system_attrs.pop(_OPTUNA_METRIC_NAMES, None)
    system_attrs = _with_parents(system_attrs, {trial._trial_id: trial.number for trial in trials})
    cell = StudyCell(
        FORMAT,
        FORMAT_VERSION,
        study.study_name,
        ["maximize" if direction.name == "MAXIMIZE" else "minimize" for direction in study.directions],
        names,
        study.user_attrs,
        system_attrs,
    )
    rows = [_row(trial, _value_columns(cell)) for trial in trials]
    rows[0]["study"] = _CELL.dump_python(cell)
    columns = sorted({name for row in rows for name in row}, key=_column_order(rows))
    return {name: [to_cell(row[name]) if name in row else None for row in rows] for name in columns}


def _with_parents(system_attrs: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """The attributes with a sampler's parents, trials by id or by number, named anew."""
    return {
        name: [new[trial] for trial in value if trial in new] if _OPTUNA_PARENTS in name else value
        for name, value in system_attrs.items()
    }


def _value_columns(cell: StudyCell) -> list[str]:
    names = cell.metric_names or [str(index) for index in range(len(cell.directions))]
    return [f"{VALUE}{name}" for name in names]


def _column_order(rows: list[dict[str, Any]]) -> Any:
    """By kind, within a kind as they first appear: a reader meets numbers first and long texts last."""
    kinds = ("number", "state", VALUE, CONSTRAINT, PARAM, "datetime_", ATTR, SYSTEM_ATTR)
    first = {name: place for place, name in enumerate(dict.fromkeys(name for row in rows for name in row))}

    def key(name: str) -> tuple[int, int]:
        kind = next((place for place, prefix in enumerate(kinds) if name.startswith(prefix)), len(kinds))
        return kind, first[name]

    return key


def _row(trial: FrozenTrial, value_columns: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"number": trial.number, "state": trial.state.name}
    row |= zip(value_columns, trial.values or (), strict=False)
    row |= {f"{CONSTRAINT}{name}": value for name, value in trial.constraints.items()}
    row |= {f"{PARAM}{name}": value for name, value in trial.params.items()}
    if trial.datetime_start is not None:
        row["datetime_start"] = trial.datetime_start.isoformat()
    if trial.datetime_complete is not None:
        row["datetime_complete"] = trial.datetime_complete.isoformat()
    row |= {f"{ATTR}{name}": value for name, value in trial.user_attrs.items()}
    row |= {
        f"{SYSTEM_ATTR}{name}": value
        for name, value in trial.system_attrs.items()
        if not name.startswith(_OPTUNA_CONSTRAINT)
    }
    row["distributions"] = {name: distribution_to_json(each) for name, each in trial.distributions.items()}
    if trial.intermediate_values:
        row["intermediate_values"] = {str(step): value for step, value in trial.intermediate_values.items()}
    return row


def study_of(table: Table, where: str) -> StoredStudy:
    """The study in a table, checked as far as another session will read it.

    Raises:
        UsageError: not such a table, of another version, or damaged; says where.
    """
    if missing := [name for name in REQUIRED if name not in table]:
        raise UsageError(
            f"{where} is not an exported study (no column {', '.join(map(repr, missing))}): "
            "write one with `python -m search.export --all`"
        )
    cell = _study_cell([value for value in table["study"] if value is not None], where)
    trials, distributions = [], dict[str, BaseDistribution]()
    for index in range(len(table["number"])):
        row = {name: cells[index] for name, cells in table.items()}
        try:
            trial = _trial({name: from_cell(text) for name, text in row.items() if text is not None}, cell)
            view = TrialView(trial, "raw")
            _ = view.candidate, view.records  # what the next session reads
            for name, distribution in trial.distributions.items():
                check_distribution_compatibility(distributions.setdefault(name, distribution), distribution)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UsageError(
                f"{where}, row {index + 1} (trial {row['number']}) is damaged: {one_line(error)}; export it again"
            ) from error
        trials.append(trial)
    _check_numbers([trial.number for trial in trials], where)
    return StoredStudy(cell, sorted(trials, key=lambda trial: trial.number))


def _study_cell(cells: list[str], where: str) -> StudyCell:
    if len(cells) != 1:
        raise UsageError(f"{where} holds {len(cells)} studies in its column 'study', not one: export it again")
    try:
        stored = from_cell(cells[0])
        if isinstance(stored, dict) and stored.get("format") == FORMAT and stored.get("version") != FORMAT_VERSION:
            raise UsageError(
                f"{where} has version {stored.get('version')}, this program reads {FORMAT_VERSION}: "
                "export the study with this program"
            )
        cell = _CELL.validate_python(stored)
        if not isinstance(cell.user_attrs.get("identity", {}), dict):
            raise ValueError("user_attrs.identity is no object")
        if not cell.directions or len(_value_columns(cell)) != len(cell.directions):
            raise ValueError(f"{len(cell.directions)} directions for {len(_value_columns(cell))} metrics")
    except ValidationError as error:
        raise UsageError(f"{where} is not an exported study: study.{first_problem(error)}; export it again") from error
    except ValueError as error:
        raise UsageError(f"{where} is not an exported study: study: {error}; export it again") from error
    return cell


def _check_numbers(numbers: Iterable[int], where: str) -> None:
    ordered = sorted(numbers)
    for expected, number in enumerate(ordered):
        if number != expected:
            what = f"trial {number} twice" if number < expected else f"no trial {expected}"
            raise UsageError(f"{where} holds {what}: a study's rows are its trials 0 to n-1; export it again")


def _trial(row: dict[str, Any], cell: StudyCell) -> FrozenTrial:
    """One row's trial.

    Raises:
        ValueError, TypeError, AttributeError, KeyError: it is none.
    """
    number, state = row["number"], row["state"]
    if type(number) is not int or state not in TrialState.__members__:
        raise ValueError(f"number {number!r}, state {state!r}")
    params, values = _under(PARAM, row), [row[name] for name in _value_columns(cell) if name in row]
    if values and (len(values) != len(cell.directions) or not all(type(value) is float for value in values)):
        raise ValueError(f"values {values} for {len(cell.directions)} objectives")
    distributions = {name: json_to_distribution(text) for name, text in row["distributions"].items()}
    if params.keys() != distributions.keys():
        raise ValueError(f"parameters and distributions differ in {sorted(params.keys() ^ distributions.keys())}")
    constraints = _under(CONSTRAINT, row)
    if not all(type(value) in (int, float) for value in constraints.values()):
        raise ValueError(f"constraints {constraints} are no numbers")
    times = {name: row.get(name) for name in ("datetime_start", "datetime_complete")}
    trial = FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState[state],
        value=None,
        values=values or None,
        datetime_start=None if times["datetime_start"] is None else datetime.fromisoformat(times["datetime_start"]),
        datetime_complete=(
            None if times["datetime_complete"] is None else datetime.fromisoformat(times["datetime_complete"])
        ),
        params={name: params[name] for name in distributions},  # in the order in which they were drawn
        distributions=distributions,
        user_attrs=_under(ATTR, row),
        system_attrs=_under(SYSTEM_ATTR, row),
        intermediate_values={int(step): value for step, value in row.get("intermediate_values", {}).items()},
    )
    for name, value in constraints.items():
        trial.set_constraint(name, value)
    trial._validate()
    return trial


def _under(prefix: str, row: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def restore(stored: StoredStudy, url: str, name: str) -> None:
    """Write the study under a name into a storage, trials as they were: same numbers, states and all else.

    A trial that ran stays running and one that waited waits: the next session re-adopts the first, from its first epoch
    as its checkpoint stayed behind, and asks the second. What the study was made with, its
    `identity`, is written last: a restoring that was killed leaves a study that every command refuses.

    Raises:
        UsageError: the storage has a study of this name.
        Failure: the storage fails; then nothing of the study is left there.
    """
    cell = stored.cell
    storage = open_storage(url, create=True)
    with storage_errors(url):
        try:
            study = optuna.create_study(study_name=name, storage=storage, directions=list(cell.directions))
        except optuna.exceptions.DuplicatedStudyError as error:
            raise UsageError(
                f"there is a study {name!r} in {shown(url)} already: give --study another name, or another --storage"
            ) from error
        try:
            for trial in stored.trials:
                study.add_trial(trial)
            if cell.metric_names is not None:
                with experimental():
                    study.set_metric_names(cell.metric_names)
            ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
            for attr, value in _with_parents(cell.system_attrs, ids).items():
                storage.set_study_system_attr(study._study_id, attr, value)
            for attr, value in sorted(cell.user_attrs.items(), key=lambda item: item[0] == "identity"):
                study.set_user_attr(attr, value)
        except BaseException:
            optuna.delete_study(study_name=name, storage=storage)
            raise
