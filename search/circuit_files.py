"""The files that a circuit is written as, and the folder of a trained model that it comes from."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from convlogic_core import build_model
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.aiger import aiger
from convlogic_core.circuit.blif import blif
from convlogic_core.circuit.c_source import c_source
from convlogic_core.circuit.json_netlist import json_netlist
from convlogic_core.circuit.netlist import check_thresholds
from convlogic_core.circuit.verilog import verilog

from .candidate_file import CandidateFile, load_candidate_file
from .checkpoints import write_atomically
from .errors import Failure, UsageError, one_line

WEIGHTS: Final = "model.safetensors"
SAVED: Final = "circuit.safetensors"
FORMATS: Final[dict[str, Callable[[Circuit, str], bytes]]] = {
    ".v": lambda circuit, name: verilog(circuit, name).encode(),
    ".c": lambda circuit, name: c_source(circuit, name).encode(),
    ".blif": lambda circuit, name: blif(circuit, name).encode(),
    ".aig": lambda circuit, name: aiger(circuit),
    ".json": lambda circuit, name: json_netlist(circuit, name).encode(),
}


def dump_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """As safetensors, with their SHA-256 in the header: with a flipped bit they would load, as another network."""
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(whole, {"sha256": _sha256(whole)})


def load_model(folder: Path) -> tuple[CandidateFile, nn.Module, Tensor]:
    """A folder of `search.train`: its configuration, the discrete model and the (C, T) thresholds.

    Raises:
        UsageError: it is none, or its configuration is damaged; one line with the way out.
        Failure: its weights are damaged; likewise.
    """
    weights = folder / WEIGHTS
    if not weights.is_file() or not (folder / "config.yaml").is_file():
        raise UsageError(
            f"{folder} lacks config.yaml or model.safetensors: give a seed's folder of `python -m search.train`, such "
            "as runs/best/seed_0"
        )
    file = load_candidate_file(folder / "config.yaml")
    try:
        tensors = _read_weights(weights)
        thresholds = tensors.pop("thresholds")
        check_thresholds(thresholds.numpy(), file.candidate.model.input_shape)
        model = build_model(file.candidate.model, seed=0)
        model.load_state_dict(tensors)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise Failure(
            f"{weights} is damaged ({one_line(error)}): delete it and run `search.train` again (`search.run` for a "
            "finalist)"
        ) from error
    return file, model.eval(), thresholds


def _read_weights(path: Path) -> dict[str, Tensor]:
    """What `dump_weights` gave; files of earlier versions say no SHA-256."""
    with safetensors.safe_open(path, framework="pt") as file:
        stated = (file.metadata() or {}).get("sha256")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if stated not in (None, _sha256(tensors)):
        raise ValueError("its tensors are not those that its SHA-256 was taken of")
    return tensors


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and content: not of the file, in which the header's order is left open."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def circuit_of(file: CandidateFile, model: nn.Module, thresholds: Tensor) -> Circuit:
    """The circuit as it is unrolled; its counts know both forms."""
    return Circuit.from_model(model, file.candidate.model.input_shape, thresholds)


def write_circuit_files(folder: Path) -> None:
    """Write those of circuit.safetensors and circuit.* that a trained model's folder lacks: the simplified circuit.

    One that is empty counts as lacking, as where a disk was full when the folder was copied.

    Raises:
        Failure: the weights are damaged, or the files cannot be written.
    """
    missing = [suffix for suffix in FORMATS if not _has_content(folder / f"circuit{suffix}")]
    if (folder / SAVED).exists() and not missing:
        return
    simplified = circuit_of(*load_model(folder)).simplify()
    for suffix in missing:
        write_atomically(folder / f"circuit{suffix}", FORMATS[suffix](simplified, "circuit"))
    if not (folder / SAVED).exists():
        try:
            simplified.save(folder / SAVED)
        except OSError as error:
            raise Failure(f"cannot write {folder / SAVED}: {error.strerror}; make room") from error


def remove_circuit_files(folder: Path) -> None:
    """So that those of earlier weights are not taken for those of the next."""
    for name in (SAVED, *(f"circuit{suffix}" for suffix in FORMATS)):
        (folder / name).unlink(missing_ok=True)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
