"""A study's identity, what it was made with, in words and as options of `search.run`: pure functions of it."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from spaces import SPACES

from .command import interpreter
from .config import StudyConfig, default_storage

# by the full name of what is stored; the epochs, the last of `rungs`, are told apart from other rungs of as many
OPTIONS: Final = {
    "space": "--space",
    "data.dataset": "--data",
    "epochs": "--epochs",
    "objectives": "--objectives",
    "gates": "--gates",
    "max_gates": "--max-gates",
    "min_accuracy": "--min-accuracy",
    "seed": "--seed",
    "data.limit_train": "--limit-train",
}


def identity_differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs: "--option stored -> asked", or "name: stored -> asked" of what no option says."""
    return [
        f"{OPTIONS[name]} {_typed(old)} -> {_typed(new)}" if name in OPTIONS else f"{name}: {old} -> {new}"
        for name, old, new in _differing(stored, asked, "")
    ]


def run_options(identity: Mapping[str, Any]) -> str:
    """The options that make a study of this identity, those left out that are as `search.run` has them anyway."""
    defaults: dict[str, object] = {name: field.default for name, field in StudyConfig.model_fields.items()}
    space = SPACES.get(identity["space"])
    if space is not None:
        defaults |= {"data.dataset": space.data.dataset, "epochs": space.budget.epochs}
    data = identity["data"]
    values = {**identity, **{f"data.{name}": value for name, value in data.items()}, "epochs": identity["rungs"][-1]}
    given = {option: _typed(values.get(name)) for name, option in OPTIONS.items()}
    usual = {option: _typed(defaults.get(name)) for name, option in OPTIONS.items()}
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in given.items() if value != usual[option])


def run_call(study: str, storage: str, identity: Mapping[str, Any], num_trials: int) -> str:
    """The command that goes on with a study.

    Args:
        study: its name.
        storage: its storage's URL as people may see it.
        identity: on raw gates the limit is the last session's.
        num_trials: that it has; a total below is refused.
    """
    total: int = StudyConfig.model_fields["trials"].default
    parts = [
        f"{interpreter()} -m search.run --study {study}",
        "" if storage == default_storage(study) else f"--storage {shlex.quote(storage)}",
        run_options(identity),
        f"--trials {num_trials}" if num_trials > total else "",
    ]
    return " ".join(filter(None, parts))


def described(identity: Mapping[str, Any], max_gates: int | None) -> str:
    """One line; the limit on gates apart, as that on raw gates is no part of the identity."""
    data = identity["data"]
    images = "" if data.get("limit_train") is None else f" ({data['limit_train']:,} training images)"
    limits = [] if max_gates is None else [f"at most {max_gates:,} {identity['gates']} gates"]
    if identity.get("min_accuracy") is not None:
        limits.append(f"accuracy of at least {identity['min_accuracy']:.2%}")
    return (
        f"space {identity['space']}, data {data['dataset']}{images}, {identity['rungs'][-1]} epochs, objectives "
        f"{_typed(identity['objectives'])}, {identity['gates']} gates, {' and '.join(limits) or 'no limits'}, seed "
        f"{identity['seed']}"
    )


def _differing(
    stored: Mapping[str, Any], asked: Mapping[str, Any], within: str
) -> Iterator[tuple[str, object, object]]:
    for name in sorted(stored.keys() | asked.keys()):
        old, new = stored.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differing(old, new, f"{within}{name}.")
        elif name == "rungs" and old and new and old[-1] != new[-1]:
            yield "epochs", old[-1], new[-1]
        elif json.dumps(old) != json.dumps(new):  # 4 and 4.0 are bounds of other parameters
            yield f"{within}{name}", old, new


def _typed(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
