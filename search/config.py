"""StudyConfig: everything the command line says about a study, validated once."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spaces import SPACES, Budget, DataSpec, Space

from .data import DATASETS, is_dataset
from .errors import UsageError

STUDIES_DIR: Final = Path("studies")
RESERVED_STUDIES: Final = ("results",)

Objective = Literal["accuracy", "gates"]
GateCount = Literal["raw", "core", "total"]


class StudyConfig(BaseModel):
    """A study as it was asked for. Field by field the options of `python -m search.run`.

    `images_sha256` alone is none: a session adds it where the images are a user's own, once it has read them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str = "digits_small"
    study: str = ""
    storage: str = ""
    data: str = ""
    data_dir: str | None = None
    trials: int = Field(20, ge=1)
    timeout_s: float | None = Field(None, gt=0)
    workers: int = Field(0, ge=0)
    trial_timeout_s: float | None = Field(None, gt=0)
    gpus_per_trial: float | Literal["auto"] | None = None
    address: str | None = None
    executor: Literal["ray", "inline"] = "ray"
    objectives: tuple[Objective, ...] = ("accuracy", "gates")
    gates: GateCount = "total"
    max_gates: int | None = Field(None, ge=1)
    min_accuracy: float | None = Field(None, gt=0, lt=1)
    early_stopping: Literal["halving", "none"] = "halving"
    sampler: Literal["tpe", "nsga2", "gp", "random", "qmc"] = "tpe"
    deterministic: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    epochs: int | None = Field(None, ge=1)
    limit_train: int | None = Field(None, ge=1)
    warm_start: tuple[str, ...] = ()
    finalists: int = Field(0, ge=0)
    tracking_uri: str | None = None
    images_sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What follows from other options: the study's name from the space's, the storage from the study's."""
        space = values.get("space") or "digits_small"
        study = values.get("study") or space
        storage = values.get("storage") or default_storage(study)
        return {**values, "space": space, "study": study, "storage": storage}

    @model_validator(mode="after")
    def _check(self) -> "StudyConfig":
        if self.space not in SPACES:
            raise ValueError(f"unknown space {self.space!r}: choose one of {', '.join(SPACES)}")
        if self.data and not is_dataset(self.data):
            raise ValueError(f"unknown dataset {self.data!r}: choose one of {DATASETS}")
        check_study_name(self.study)
        for name in self.warm_start:
            if check_study_name(name) == self.study:
                raise ValueError(f"study {name!r} cannot start from itself: give --warm-start others")
        if self.objectives not in (("accuracy", "gates"), ("accuracy",)):
            raise ValueError(f"objectives {','.join(self.objectives)!r} must be accuracy,gates or accuracy")
        if isinstance(self.gpus_per_trial, float) and not 0 <= self.gpus_per_trial < math.inf:
            raise ValueError(f"--gpus-per-trial={self.gpus_per_trial}: it must be a number of at least 0, or auto")
        if self.address is not None:
            if self.executor == "inline":
                raise ValueError("--address joins a Ray cluster: leave out --executor inline")
            check_address(self.address)
        if "://" not in self.storage:
            raise ValueError(f"storage {self.storage!r} is not a URL: write sqlite:///FILE or postgresql://...")
        return self

    @property
    def search_space(self) -> Space:
        return SPACES[self.space]

    @property
    def dataset(self) -> str:
        return self.data or self.search_space.data.dataset

    @property
    def data_spec(self) -> DataSpec:
        """The space's data, with the dataset and limit that were asked for."""
        return replace(
            self.search_space.data,
            dataset=self.dataset,
            limit_train=self.limit_train,
            images_sha256=self.images_sha256,
        )

    @property
    def budget(self) -> Budget:
        return self.search_space.budget.with_epochs(self.epochs)

    @property
    def metric_names(self) -> list[str]:
        """What each objective is logged as."""
        names: dict[Objective, str] = {"accuracy": "val/acc_discrete", "gates": f"gates/{self.gates}"}
        return [names[objective] for objective in self.objectives]

    @property
    def constraint(self) -> int | None:
        """The limit on a count that only training tells; one on raw gates rejects candidates untrained instead."""
        return None if self.gates == "raw" else self.max_gates

    @property
    def folder(self) -> Path:
        """Where the study keeps what does not go into the storage: checkpoints.

        A study of the same name in another storage is another study, and has its own folder within.
        """
        own = STUDIES_DIR / self.study
        url = _without_spelling(self.storage)
        if url == _without_spelling(default_storage(self.study)):
            return own
        return own / f"storage_{hashlib.sha256(url.encode()).hexdigest()[:12]}"

    def identity(self) -> dict[str, Any]:
        """What must stay as it is for trials to be comparable: a study resumes only with the same."""
        identity: dict[str, Any] = {
            "space": self.space,
            "data": asdict(self.data_spec),
            "rungs": list(self.budget.rungs),
            "reduction": self.budget.reduction,
            "objectives": list(self.objectives),
            "gates": self.gates,
            "max_gates": self.constraint,
            "min_accuracy": self.min_accuracy,
            "seed": self.seed,
            "parameters": self.search_space.fingerprint(),
        }
        as_stored: dict[str, Any] = json.loads(json.dumps(identity))  # a database gives tuples back as lists
        return as_stored


def default_storage(study: str) -> str:
    """URL of a study's own sqlite file."""
    return f"sqlite:///{STUDIES_DIR / study / 'study.db'}"


def _without_spelling(url: str) -> str:
    """What two URLs of one storage have in common: no password, no driver, files by their whole path."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # which is said where it is opened
        return url
    backend, file = parsed.get_backend_name(), parsed.database
    if backend == "sqlite" and file:
        file = str(Path(file).resolve())
    return parsed.set(drivername=backend, database=file, password=None).render_as_string()


def check_study_name(name: str) -> str:
    """The name itself: it becomes a folder and an MLflow experiment.

    Raises:
        ValueError: not 1 to 64 letters, digits, dots, dashes and underscores, or reserved.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"study name {name!r} must be 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    if name in RESERVED_STUDIES:
        raise ValueError(f"study name {name!r} is reserved: choose another")
    return name


def check_address(address: str) -> None:
    """Whether a Ray cluster may be there.

    Raises:
        ValueError: neither "auto" nor HOST:PORT, or Ray Client's, which cannot stream what a worker measures.
    """
    if address.startswith("ray://"):
        raise ValueError(
            f"address {address!r} is Ray Client's, through which workers cannot stream their results: run on a node "
            "of the cluster with --address auto, or give its GCS as HOST:PORT (6379 by default)"
        )
    if address != "auto" and not re.fullmatch(r"[^/\s]+:\d{1,5}", address):
        raise ValueError(f"address {address!r} must be HOST:PORT of a Ray cluster, or auto")


def study_config(**options: Any) -> StudyConfig:
    """A validated configuration.

    Raises:
        UsageError: the first thing wrong, in one line.
    """
    try:
        return StudyConfig(**options)
    except ValidationError as error:
        raise UsageError(first_problem(error, _option)) from error


def _option(field: str) -> str:
    """A field as it is typed."""
    return f"--{field.removesuffix('_s').replace('_', '-')}"


def first_problem(error: ValidationError, named: Callable[[str], str] = str) -> str:
    """The first problem of a validation in one line: where, what, and the value. `named` is told the outermost name."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if where:
        outermost, dot, inner = where.partition(".")
        where = named(outermost) + dot + inner
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return message
    if isinstance(problem["input"], dict | list | tuple):
        return f"{where}: {message[0].lower()}{message[1:]}"
    return f"{where}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
