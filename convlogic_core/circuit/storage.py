"""Circuits as safetensors files: arrays, and everything else as JSON in the header. Nothing is ever unpickled."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import safetensors
import safetensors.numpy

if TYPE_CHECKING:
    from .netlist import Circuit

FORMAT: Final = "convlogic-circuit"
VERSION: Final = "1"
ARRAYS: Final = ("a", "b", "gate", "outputs", "inverted")
FIELDS: Final = ("input_shape", "num_classes", "tau", "layers")


def write_circuit(circuit: "Circuit", path: Path) -> None:
    """Write a file, whole or not at all."""
    arrays = {name: np.ascontiguousarray(getattr(circuit, name)) for name in ARRAYS}
    if circuit.thresholds is not None:
        arrays["thresholds"] = np.ascontiguousarray(circuit.thresholds)
    description = {
        "input_shape": circuit.input_shape,
        "num_classes": circuit.num_classes,
        "tau": circuit.tau,
        "layers": [(layer.name, layer.num_gates, layer.raw_histogram) for layer in circuit.layers],
    }
    metadata = {"format": FORMAT, "version": VERSION, "circuit": json.dumps(description)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(safetensors.numpy.save(arrays, metadata))
    os.replace(temporary, path)


def read_circuit(path: Path) -> dict[str, Any]:
    """The fields of a `Circuit`, layers as they were written.

    Raises:
        ValueError: not a circuit file, or a damaged one.
        OSError: it cannot be read.
    """
    path.stat()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            is_known = (metadata.get("format"), metadata.get("version")) == (FORMAT, VERSION)
            arrays = {name: file.get_tensor(name) for name in file.keys()} if is_known else {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or no circuit file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no circuit file: it does not say `format: {FORMAT}`")
    if metadata.get("version") != VERSION:
        raise ValueError(f"{path} has version {metadata.get('version')}, this program reads {VERSION}")
    try:
        stored = json.loads(metadata["circuit"])
        fields = {name: stored[name] for name in FIELDS} | {name: arrays[name] for name in ARRAYS}
        fields["input_shape"] = tuple(int(size) for size in stored["input_shape"])
        fields["num_classes"], fields["tau"] = int(stored["num_classes"]), float(stored["tau"])
        fields["layers"] = [(str(name), int(num), [int(n) for n in raw]) for name, num, raw in stored["layers"]]
        fields["thresholds"] = arrays.get("thresholds")
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    return fields
