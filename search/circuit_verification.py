"""Exported circuits against the discrete PyTorch model, image by image and bit by bit."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from convlogic_core.circuit import Circuit
from convlogic_core.encoding import thermometer_encode

from .candidate_file import CandidateFile
from .circuit_check import Pixels, Results, c_compiler, run_c, run_verilog
from .errors import Failure
from .final_training import source_for


def verify_exports(
    file: CandidateFile,
    model: nn.Module,
    thresholds: Tensor,
    circuit: Circuit,
    verilog: Path | None,
    c_file: Path | None,
    num_images: int,
    data_dir: str | None,
) -> str:
    """Run the files on validation and random images; the line that says they agree. The test set is not opened.

    Raises:
        Failure: a tool is missing or refuses a file, or the first image on which sums or class differ.
    """
    limit_train = file.candidate.data.limit_train
    validation = source_for(file.candidate).load(data_dir, limit_train, "limit_train").validation
    real = validation.images[: num_images // 2]
    random = np.random.default_rng(0).integers(0, 256, (num_images - len(real), *real.shape[1:]), np.uint8)
    images = np.concatenate([real, random])
    expected = _of_model(model, images, thresholds, circuit.tau)
    files = []
    if verilog is not None:
        files.append(("Verilog (iverilog)", verilog, run_verilog))
    if c_file is not None:
        files.append((f"C ({Path(c_compiler()).name})", c_file, run_c))
    agreeing = []
    with tempfile.TemporaryDirectory() as folder:
        for label, path, run in files:
            results = run(path, path.stem, circuit, images.reshape(num_images, -1), Path(folder))
            _compare(f"{label} of {path}", results, expected, len(real))
            agreeing.append(label)
    return f"verified: {num_images} images, {' = '.join([*agreeing, 'PyTorch'])}"


@torch.no_grad()
def _of_model(model: nn.Module, images: Pixels, thresholds: Tensor, tau: float) -> Results:
    bits = thermometer_encode(torch.from_numpy(images), thresholds.cpu())
    logits = torch.cat([model(part.float()) for part in bits.split(64)])
    sums = (logits.double() * tau).round().long().numpy()
    return Results(sums, sums.argmax(1))  # NumPy's gives the lowest of equal ones


def _compare(what: str, results: Results, expected: Results, num_real: int) -> None:
    if results.sums.shape != expected.sums.shape:
        raise Failure(f"{what} gave results of {len(results.classes)} images, not of {len(expected.classes)}")
    wrong = (results.sums != expected.sums).any(1) | (results.classes != expected.classes)
    if wrong.any():
        first = int(wrong.argmax())
        kind = "validation" if first < num_real else "random"
        raise Failure(
            f"{what} differs from PyTorch on {int(wrong.sum())} of {len(wrong)} images, first on image {first} "
            f"({kind}): class {results.classes[first]} and sums {results.sums[first].tolist()}, PyTorch "
            f"{expected.classes[first]} and {expected.sums[first].tolist()}"
        )
