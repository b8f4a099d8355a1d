"""Warm start: the best of other studies, mapped into this space and tried before anything is sampled.

What a study starts from is chosen once and stored in it (its attribute `warm_start`) before the first is enqueued: a
session after a kill, or after the other study went on, starts from the same. Each becomes one trial, with the attribute
`warm_start`, "STUDY/NUMBER".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import optuna

from spaces.space import Choice, Range, Space, Value

from .config import StudyConfig, default_storage
from .database import shown
from .errors import UsageError
from .report import accuracy, complete, gates
from .rungs import best_first
from .storage import ForeignStudy, TrialView, stored_trials

MAX_STARTS: Final = 5
_ATTR: Final = "warm_start"


@dataclass(frozen=True)
class Start:
    """A trial of another study as this space takes it. source: "STUDY/NUMBER"."""

    source: str
    params: dict[str, Value]


@dataclass(frozen=True)
class Mapped:
    """Parameters in this space, and what mapping took.

    Args:
        params: every parameter that applies, but those to be sampled.
        changed: (old, new) of values that this space does not have.
        filled: parameters that the other study lacks, or whose values mean nothing here: as in this space's baseline,
            or in the first known configuration that has them.
        sampled: likewise, where no known configuration has them.
        left_out: parameters that have no place here.
    """

    params: dict[str, Value]
    changed: dict[str, tuple[Value, Value]]
    filled: tuple[str, ...]
    sampled: tuple[str, ...]
    left_out: tuple[str, ...]


def mapped(params: Mapping[str, Value], space: Space) -> Mapped:
    """Values out of a range are clamped, others take the nearest choice; parameters go by their names."""
    new: dict[str, Value] = {}
    changed: dict[str, tuple[Value, Value]] = {}
    filled: list[str] = []
    sampled: list[str] = []
    for parameter in space.parameters:
        if not parameter.applies(new):
            continue
        name, value = parameter.name, None
        if name in params:
            value = nearest(params[name], parameter.domain)
        if value is None:
            value = next((known.params[name] for known in space.known if name in known.params), None)
            (sampled if value is None else filled).append(name)
        elif value != params[name]:
            changed[name] = params[name], value
        if value is not None:
            new[name] = value
    return Mapped(new, changed, tuple(filled), tuple(sampled), tuple(sorted(params.keys() - new.keys())))


def nearest(value: Value, domain: Range | Choice) -> Value | None:
    """The domain's value that is nearest, of the domain's type; None where there is no telling, as of names."""
    if isinstance(domain, Choice):
        for choice in domain.values:
            if choice == value and _is_number(choice) == _is_number(value):  # True == 1, and they are not the same
                return choice
        numbers = [choice for choice in domain.values if _is_number(choice)]
        return (
            min(numbers, key=lambda choice: abs(float(choice) - float(value)))
            if _is_number(value) and numbers
            else None
        )
    if not _is_number(value):
        return None
    clamped = min(max(float(value), domain.low), domain.high)
    return round(clamped) if isinstance(domain.low, int) and isinstance(domain.high, int) else float(clamped)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def best(views: Sequence[TrialView], objectives: Sequence[str]) -> list[TrialView]:
    """Complete and feasible trials, best first as successive halving ranks them: the front first, its ends foremost."""
    done = [view for view in complete(views) if view.gates is not None and not view.is_infeasible]
    if not done:
        return []
    points = np.array([(accuracy(view), -gates(view)) for view in done], np.float64)
    if "gates" not in objectives:
        points = points[:, :1]
    return [done[row] for row in best_first(points)]


def prepare(study: optuna.Study, config: StudyConfig) -> list[str]:
    """Choose and store what the study starts from, where that was not done before; says so, in one line a study.

    Raises:
        UsageError: there is no such study, or none of its trials is any use.
    """
    stored, lines = chosen(study, config)
    if stored != study.user_attrs.get(_ATTR, {}):
        study.set_user_attr(_ATTR, stored)
    return lines


def chosen(study: optuna.Study | None, config: StudyConfig) -> tuple[dict[str, Any], list[str]]:
    """What a study, which need not be there yet, starts from, and a line for each other study that is new to it.

    Raises:
        UsageError: as `prepare`.
    """
    # a study without trials is not bound to what was said before
    bound = study is not None and study.get_trials(deepcopy=False)
    stored: dict[str, Any] = study.user_attrs.get(_ATTR, {}) if study is not None and bound else {}
    lines = []
    for name in config.warm_start:
        if name not in stored:
            taken = [known.params for known in config.search_space.known]
            taken += [start["params"] for starts in stored.values() for start in starts]
            starts, line = _starts(name, config, taken)
            stored = {**stored, name: starts}
            lines.append(line)
    return stored, lines


def left_to_ask(study: optuna.Study, views: Sequence[TrialView]) -> list[Start]:
    """What no trial, asked or waiting, was started from yet."""
    used = {view.warm_start for view in views}
    stored = [Start(**start) for starts in study.user_attrs.get(_ATTR, {}).values() for start in starts]
    return [start for start in stored if start.source not in used]


def _starts(name: str, config: StudyConfig, taken: list[dict[str, Value]]) -> tuple[list[dict[str, object]], str]:
    """At most MAX_STARTS of a study's best that differ in this space, and what was done to them."""
    views = best(_other_trials(name, config), config.objectives)
    if not views:
        raise UsageError(
            f"study {name!r} has no complete trial within its limits to start from: leave it out of --warm-start"
        )
    starts: list[tuple[TrialView, Mapped]] = []
    for view in views:
        each = mapped(view.params, config.search_space)
        if len(starts) < MAX_STARTS and each.params not in taken:
            taken = [*taken, each.params]
            starts.append((view, each))
    stored: list[dict[str, object]] = [
        {"source": f"{name}/{view.number}", "params": each.params} for view, each in starts
    ]
    return stored, _described(name, starts)


def _other_trials(name: str, config: StudyConfig) -> list[TrialView]:
    """The other study's, from this study's storage or else from its own sqlite file."""
    urls = list(dict.fromkeys((config.storage, default_storage(name))))
    for url in urls:
        try:
            return stored_trials(name, url)
        except ForeignStudy:
            raise
        except UsageError:
            continue
    raise UsageError(f"no study {name!r} to start from in {' or '.join(map(shown, urls))}: --warm-start takes studies")


def _described(name: str, starts: list[tuple[TrialView, Mapped]]) -> str:
    if not starts:
        return f"warm start from {name}: its best are this space's known configurations or taken already"
    changes = {
        f"{parameter} {_short(old)} -> {_short(new)}"
        for _, each in starts
        for parameter, (old, new) in each.changed.items()
    }
    parts = {
        "made to fit": changes,
        "lacking, as known here": {parameter for _, each in starts for parameter in each.filled},
        "lacking, sampled": {parameter for _, each in starts for parameter in each.sampled},
        "left out": {parameter for _, each in starts for parameter in each.left_out},
    }
    numbers = ", ".join(str(view.number) for view, _ in starts)
    noted = "".join(f"; {what}: {', '.join(sorted(which))}" for what, which in parts.items() if which)
    return f"warm start from {name}: its trials {numbers}{noted}"


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
