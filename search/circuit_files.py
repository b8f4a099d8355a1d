"""The files that a circuit is written as, and the folder of a trained model that it comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
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

SAVED: Final = "circuit.safetensors"
FORMATS: Final[dict[str, Callable[[Circuit, str], bytes]]] = {
    ".v": lambda circuit, name: verilog(circuit, name).encode(),
    ".c": lambda circuit, name: c_source(circuit, name).encode(),
    ".blif": lambda circuit, name: blif(circuit, name).encode(),
    ".aig": lambda circuit, name: aiger(circuit),
    ".json": lambda circuit, name: json_netlist(circuit, name).encode(),
}


def load_model(folder: Path) -> tuple[CandidateFile, nn.Module, Tensor]:
    """A folder of `search.train`: its configuration, the discrete model and the (C, T) thresholds.

    Raises:
        UsageError: it is none, or damaged; one line with the way out.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file() or not (folder / "config.yaml").is_file():
        raise UsageError(
            f"{folder} lacks config.yaml or model.safetensors: give a seed's folder of `python -m search.train`, such "
            "as runs/best/seed_0"
        )
    file = load_candidate_file(folder / "config.yaml")
    try:
        tensors = safetensors.torch.load(weights.read_bytes())
        thresholds = tensors.pop("thresholds")
        check_thresholds(thresholds.numpy(), file.candidate.model.input_shape)
        model = build_model(file.candidate.model, seed=0)
        model.load_state_dict(tensors)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise UsageError(
            f"{weights} does not hold the weights of config.yaml ({one_line(error)}): train again"
        ) from error
    return file, model.eval(), thresholds


def circuit_of(file: CandidateFile, model: nn.Module, thresholds: Tensor) -> Circuit:
    """The circuit as it is unrolled; its counts know both forms."""
    return Circuit.from_model(model, file.candidate.model.input_shape, thresholds)


def write_circuit_files(folder: Path) -> None:
    """Write those of circuit.safetensors and circuit.* that a trained model's folder lacks: the simplified circuit.

    Raises:
        Failure: they cannot be written.
    """
    missing = [suffix for suffix in FORMATS if not (folder / f"circuit{suffix}").exists()]
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
