"""Space: named parameters, what they build, the configurations known beforehand, and the budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from .candidate import Candidate, DataSpec

Value = int | float | str | bool


class Trial(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """A number in [low, high]; an integer if both bounds are."""

    low: int | float
    high: int | float
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> Value:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]

    def suggest(self, trial: Trial, name: str) -> Value:
        value: Value = trial.suggest_categorical(name, list(self.values))
        return value

    def __str__(self) -> str:
        return " | ".join(map(str, self.values))


@dataclass(frozen=True)
class Parameter:
    """A named domain; with `when`, it exists only where an earlier parameter has one of the values given."""

    name: str
    domain: Range | Choice
    when: tuple[str, tuple[Value, ...]] | None = None

    def applies(self, params: Mapping[str, Value]) -> bool:
        return self.when is None or params[self.when[0]] in self.when[1]


@dataclass(frozen=True)
class Budget:
    """Epochs of the full budget, and the rungs at which successive halving looks before that.

    Args:
        epochs: the last rung.
        num_rungs: rungs in all; each is 1/reduction of the next.
        reduction: of the trials at a rung, 1/reduction go on.
    """

    epochs: int
    num_rungs: int = 3
    reduction: int = 3

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of the rungs, rising, the full budget last."""
        return tuple(sorted({max(1, round(self.epochs / self.reduction**i)) for i in range(self.num_rungs)}))

    def with_epochs(self, epochs: int | None) -> "Budget":
        return self if epochs is None else replace(self, epochs=epochs)


@dataclass(frozen=True)
class Known:
    """A configuration from outside the study, run before anything is sampled."""

    name: str
    source: str
    params: dict[str, Value] = field(hash=False)


@dataclass(frozen=True)
class InputInfo:
    """What a dataset's images are: (channels, rows, columns), and how many classes."""

    image_shape: tuple[int, int, int]
    num_classes: int


@dataclass(frozen=True)
class Space:
    """What may be searched under one name.

    Args:
        name, description: for people.
        data: the dataset and its encoding.
        parameters: in order; conditional ones after what they depend on.
        build: (params, data, input_info, epochs) -> Candidate; ValueError if the parameters do not fit together.
        known: configurations run first; number 0 is the published baseline, never stopped early.
        budget: full budget and rungs.
    """

    name: str
    description: str
    data: DataSpec
    parameters: tuple[Parameter, ...]
    build: Callable[[Mapping[str, Value], DataSpec, InputInfo, int], Candidate] = field(compare=False)
    known: tuple[Known, ...]
    budget: Budget

    def sample(self, trial: Trial) -> dict[str, Value]:
        """Ask the trial for every parameter that applies."""
        params: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.applies(params):
                params[parameter.name] = parameter.domain.suggest(trial, parameter.name)
        return params

    def fingerprint(self) -> dict[str, Any]:
        """What must not change within a study: every parameter's domain and condition, as JSON."""
        return {
            p.name: {**asdict(p.domain), "when": None if p.when is None else [p.when[0], list(p.when[1])]}
            for p in self.parameters
        }
