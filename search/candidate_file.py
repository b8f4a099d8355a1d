"""Candidates from outside: stored JSON and exported YAML, validated strictly, never unpickled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from convlogic_core.model import Strict
from spaces.candidate import Candidate

from .config import first_problem
from .errors import UsageError, one_line

FORMAT: Final = "convlogic-candidate"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Origin(Strict):
    """Where a candidate came from, and what it measured there after `epoch` epochs.

    Files of earlier versions tell raw gates alone.
    """

    study: str
    trial: int
    known: str | None
    epoch: int
    acc_discrete: float
    acc_soft: float
    raw_gates: int
    params: dict[str, bool | int | float | str]
    core_gates: int | None = None
    total_gates: int | None = None
    depth: int | None = None


@dataclass(frozen=True)
class CandidateFile(Strict):
    """What `search.export` writes: a candidate, its seed, and where it came from.

    Args:
        candidate: enough, with the seed, to train it again.
        seed: of wiring, weights and data order; below 2**32.
        origin: for people, and for MLflow.
    """

    candidate: Candidate
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    origin: Origin


_CANDIDATE = TypeAdapter(Candidate)
_FILE = TypeAdapter(CandidateFile)


def parse_candidate(stored: Mapping[str, Any], where: str) -> Candidate:
    """A candidate from its JSON.

    Raises:
        UsageError: not a candidate; says what is wrong and where.
    """
    try:
        return _CANDIDATE.validate_python(stored)
    except ValidationError as error:
        raise UsageError(f"{where} holds no valid configuration: {first_problem(error)}") from error


def dump_candidate_file(file: CandidateFile) -> str:
    """As YAML, with a header that says what it is and how to use it."""
    body = {"format": FORMAT, "version": FORMAT_VERSION, **_FILE.dump_python(file, mode="json")}
    header = "# A logic network and its training, found by search. Train it: python -m search.train THIS_FILE\n"
    return header + yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=110)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            first, line = lines.get(key.value), key.start_mark.line + 1
            if first is not None:
                where = f"twice in line {line}" if first == line else f"in line {first} and again in line {line}"
                raise _DuplicateKey(f"gives {key.value!r} {where}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


class _DuplicateKey(yaml.YAMLError):
    """Its message says which and where."""


def load_candidate_file(path: Path) -> CandidateFile:
    """Read an exported YAML.

    Raises:
        UsageError: missing, not YAML, not such a file, or with a key twice; one line with the way out.
    """
    way_out = "write one with `python -m search.export`"
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; {way_out}") from error
    except _DuplicateKey as error:
        raise UsageError(f"{path} {error}: leave one of them out") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML ({one_line(error)}); {way_out}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise UsageError(f"{path} is not an exported configuration (no `format: {FORMAT}`); {way_out}")
    if body.get("version") != FORMAT_VERSION:
        raise UsageError(f"{path} has version {body.get('version')!r}, this program reads {FORMAT_VERSION}; {way_out}")
    content = {name: value for name, value in body.items() if name not in ("format", "version")}
    try:
        return _FILE.validate_python(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}; {way_out}") from error
