"""Final training: full budget, one seed or several, then, once, the test set. One self-sufficient folder a seed."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from convlogic_core.circuit import Circuit
from spaces.candidate import Candidate

from .candidate_file import CandidateFile, dump_candidate_file, load_candidate_file
from .checkpoints import write_atomically
from .circuit_files import SAVED, WEIGHTS, dump_weights, load_model, remove_circuit_files, write_circuit_files
from .command import make_console
from .config import first_problem
from .data import Source, find_source
from .errors import Failure, UsageError, one_line
from .training import (
    Diverged,
    EncodedDataset,
    EpochRecord,
    TrainingRun,
    check_memory,
    derived_seed,
    encode,
    encode_dataset,
    soft_and_discrete_accuracy,
)

CHECKPOINT_EVERY_S: Final = 20.0
CHECKPOINT: Final = "checkpoint.safetensors"
CONFIG: Final = "config.yaml"
HISTORY: Final = "epochs.json"
METRICS: Final = "metrics.json"
REPORTED: Final = ("val/acc_soft", "val/acc_discrete", "test/acc_soft", "test/acc_discrete")
REPORTED_GATES: Final = ("gates/raw", "gates/core", "gates/total", "gates/depth")
_RECORDS = TypeAdapter(tuple[EpochRecord, ...])
_METRICS = TypeAdapter(dict[str, int | float])


@dataclass(frozen=True)
class FinalResult:
    """What one seed gave: metrics under their logged names (test figures only after `with_test`), epochs, folder."""

    seed: int
    metrics: dict[str, float]
    records: tuple[EpochRecord, ...]
    folder: Path


def final_training(
    file: CandidateFile, name: str, num_seeds: int, data_dir: str | None, output: Path, tracking_uri: str | None
) -> list[FinalResult]:
    """Train every seed, measure it on the test set, save, log to MLflow, print. A killed run goes on when repeated.

    Raises:
        UsageError: `output` holds another configuration's results.
        Failure: data, memory, disk, or a loss that is not finite.
    """
    console = make_console()
    seeds = [file.seed, *further_seeds(file.seed, num_seeds - 1)]
    try:
        trained = train_seeds(console, file, seeds, data_dir, output)
    except Diverged as error:
        raise Failure(str(error)) from error
    results = [with_test(file, result, data_dir) for result in trained]
    for result in results:
        _print_result(console, result)
    if num_seeds > 1:
        _print_summary(console, results)
    _log(name, file, results, tracking_uri, console)
    return results


def further_seeds(seed: int, number: int) -> list[int]:
    """Those that follow on a configuration's own seed."""
    return [derived_seed(seed, 1_000_000 + i) for i in range(1, number + 1)]


def train_seeds(
    console: Console, file: CandidateFile, seeds: Sequence[int], data_dir: str | None, output: Path
) -> list[FinalResult]:
    """Train every seed at the full budget, one after the other; what each measured on validation, and its gates.

    The test set stays closed (see `with_test`). A killed run goes on when repeated; finished seeds are only read.

    Raises:
        UsageError: `output` holds another configuration's results.
        Diverged: a loss is not finite.
        Failure: data, memory or disk, or a finished seed's file is damaged.
    """
    candidate = file.candidate
    _refuse_other_results(output, candidate)
    folders = [output / f"seed_{seed}" for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        if _is_trained(folder):  # damage is told now, not after hours of training the other seeds
            _check_trained(replace(file, seed=seed), folder)
    if not all(_is_trained(folder) for folder in folders):
        device = _device()
        if device.type == "cpu":
            check_memory(candidate.model, candidate.train.batch_size)
        dataset = source_for(candidate).load(data_dir, candidate.data.limit_train, "limit_train")
        data = encode_dataset(dataset, candidate.data, device)
        for seed, folder in zip(seeds, folders, strict=True):
            if not _is_trained(folder):
                _train(console, replace(file, seed=seed), data, folder)
    for folder in folders:
        write_circuit_files(folder)
    return [_load_trained(file, seed, folder) for seed, folder in zip(seeds, folders, strict=True)]


def with_test(file: CandidateFile, trained: FinalResult, data_dir: str | None) -> FinalResult:
    """The result with the test figures of its network. Opens the test set, once: metrics.json keeps them.

    Raises:
        Failure: data, memory or disk, or metrics.json is damaged.
    """
    measured = _load_measured(trained.folder)
    if measured is None:
        soft, discrete = _test_accuracies(file, trained.folder, data_dir)
        measured = {**trained.metrics, "test/acc_soft": soft, "test/acc_discrete": discrete}
        write_atomically(trained.folder / METRICS, json.dumps(measured, indent=2).encode())
    return replace(trained, metrics=measured)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _is_trained(folder: Path) -> bool:
    return (folder / WEIGHTS).exists() and (folder / HISTORY).exists()


def _check_trained(file: CandidateFile, folder: Path) -> None:
    """That what is not trained again is whole.

    Raises:
        Failure: a file is damaged; names it and says the way out.
    """
    if not (folder / CONFIG).exists():
        raise Failure(
            f"{folder} has weights and no {CONFIG}, which says of which network: move it away, or bring it back"
        )
    load_model(folder)
    _load_records(file, folder)
    _load_measured(folder)


def _refuse_other_results(output: Path, candidate: Candidate) -> None:
    """Only weights and checkpoints are results: a training that failed at its start may be corrected in place.

    Raises:
        UsageError: `output` holds another configuration's.
    """
    for config in output.glob(f"seed_*/{CONFIG}"):
        has_results = any((config.parent / name).exists() for name in (WEIGHTS, CHECKPOINT))
        if has_results and load_candidate_file(config).candidate != candidate:
            raise UsageError(
                f"{config.parent} holds results of another configuration: move it away or give -o another folder"
            )


def source_for(candidate: Candidate) -> Source:
    """Where a network's images come from.

    Raises:
        UsageError: it was made for images of another shape, or a user's own are not those that it was found on.
    """
    source, model = find_source(candidate.data.dataset), candidate.model
    channels, rows, columns = source.info.image_shape
    shape = (channels * candidate.data.num_thresholds, rows, columns)
    if model.input_shape != shape or model.num_classes != source.info.num_classes:
        num_thresholds, remainder = divmod(model.input_shape[0], channels)
        fits = (num_thresholds * channels, rows, columns), source.info.num_classes
        way_out = (
            f"set num_thresholds, now {candidate.data.num_thresholds}, to {num_thresholds}, or change input_shape"
            if not remainder and (model.input_shape, model.num_classes) == fits
            else "change input_shape and num_classes, or the dataset"
        )
        raise UsageError(
            f"the model takes {model.input_shape} planes and {model.num_classes} classes, {source.name} has "
            f"{shape} and {source.info.num_classes}: {way_out}"
        )
    if candidate.data.images_sha256 not in (None, source.images_sha256):
        raise UsageError(
            f"{source.name} has changed: its training images have the SHA-256 {source.images_sha256}, those of the "
            f"configuration {candidate.data.images_sha256}; bring them back, or set images_sha256 to null there"
        )
    return source


def _train(console: Console, file: CandidateFile, data: EncodedDataset, folder: Path) -> None:
    """Up to the full budget, from the folder's checkpoint where there is one; then the weights are saved."""
    write_atomically(folder / CONFIG, dump_candidate_file(file).encode())
    checkpoint, history = folder / CHECKPOINT, folder / HISTORY
    epochs = file.candidate.train.epochs
    run, records = _begun(console, file, data, folder)
    saved_at = time.monotonic()
    while run.epoch < epochs:
        try:
            record = run.run_epoch()
            records.append(run.with_gates(record) if run.epoch == epochs else record)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Failure(f"out of memory ({one_line(error)}): lower batch_size or k") from error
        console.print(
            f"seed {file.seed} epoch {record.epoch}/{epochs}: loss {record.loss:.4f}, validation discrete "
            f"{record.acc_discrete:.2%}, soft {record.acc_soft:.2%}, {record.images_per_second:,.0f} images/s"
        )
        if time.monotonic() - saved_at > CHECKPOINT_EVERY_S and run.epoch < epochs:
            # history first: a kill between the two leaves a history that is longer, which is cut when read
            write_atomically(history, _to_json(records))
            write_atomically(checkpoint, run.checkpoint())
            saved_at = time.monotonic()
    # where weights or history were deleted: on another device the next may differ, and so all that is made from them
    remove_circuit_files(folder)
    for name in (METRICS, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    write_atomically(history, _to_json(records))
    write_atomically(folder / WEIGHTS, dump_weights({**run.model.state_dict(), "thresholds": data.thresholds}))
    checkpoint.unlink(missing_ok=True)


def _begun(
    console: Console, file: CandidateFile, data: EncodedDataset, folder: Path
) -> tuple[TrainingRun, list[EpochRecord]]:
    """The seed's training where its checkpoint left it, and the epochs until then; at its start where that is damaged.

    It measures the same either way.
    """
    seed = file.seed
    run = TrainingRun(file.candidate, data, seed)
    checkpoint, history = folder / CHECKPOINT, folder / HISTORY
    if not checkpoint.exists():
        return run, []
    try:
        run.restore(checkpoint.read_bytes())
        records = [EpochRecord(**record) for record in json.loads(history.read_text())][: run.epoch]
        if len(records) < run.epoch:
            raise ValueError(f"{HISTORY} ends at epoch {len(records)}")
    except (Failure, OSError, ValueError, TypeError) as error:
        console.print(f"seed {seed}: {checkpoint} is damaged ({one_line(error)}): starts again", soft_wrap=True)
        return TrainingRun(file.candidate, data, seed), []
    console.print(f"seed {seed}: goes on after epoch {run.epoch}")
    return run, records


def _to_json(records: list[EpochRecord]) -> bytes:
    return json.dumps([record.to_json() for record in records]).encode()


def _load_trained(file: CandidateFile, seed: int, folder: Path) -> FinalResult:
    """A trained seed without test figures, whether they are known or not."""
    records = _load_records(file, folder)
    metrics = {**records[-1].metrics(), **_counts(folder / SAVED)}
    return FinalResult(seed, metrics, records, folder)


def _load_records(file: CandidateFile, folder: Path) -> tuple[EpochRecord, ...]:
    """A trained seed's epochs.

    Raises:
        Failure: epochs.json is damaged.
    """
    path, epochs = folder / HISTORY, file.candidate.train.epochs
    try:
        records = _RECORDS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, error) from error
    if [record.epoch for record in records] != [*range(1, epochs + 1)]:
        raise _damaged(path, ValueError(f"its epochs are not 1 to {epochs}"))
    return records


def _load_measured(folder: Path) -> dict[str, float] | None:
    """A trained seed's figures; None where it has none, or those of versions that knew no circuits.

    Raises:
        Failure: metrics.json is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return None
    try:
        metrics = _METRICS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, error) from error
    if "gates/core" not in metrics:
        return None
    missing = [name for name in (*REPORTED, *REPORTED_GATES) if name not in metrics]
    if missing:
        raise _damaged(path, ValueError(f"it lacks {missing[0]}"))
    return dict(metrics)


def _damaged(path: Path, error: Exception) -> Failure:
    reason = first_problem(error) if isinstance(error, ValidationError) else one_line(error)
    return Failure(f"{path} is damaged ({reason}): delete it and run the same command again")


def _test_accuracies(file: CandidateFile, folder: Path, data_dir: str | None) -> tuple[float, float]:
    """Soft and discrete."""
    device = _device()
    _, model, thresholds = load_model(folder)
    test = encode(source_for(file.candidate).load_test(data_dir), thresholds, device)
    return soft_and_discrete_accuracy(model.to(device), test)


def _counts(path: Path) -> dict[str, float]:
    try:
        return Circuit.load(path).counts.metrics()
    except ValueError as error:
        raise Failure(f"{one_line(error)}: delete it and run the same command again") from error


def _print_result(console: Console, result: FinalResult) -> None:
    m = result.metrics
    console.print(
        f"seed {result.seed}: test discrete {m['test/acc_discrete']:.2%}, soft {m['test/acc_soft']:.2%}; "
        f"validation discrete {m['val/acc_discrete']:.2%}, soft {m['val/acc_soft']:.2%}; "
        f"gates {m['gates/raw']:,} raw, {m['gates/core']:,} core, {m['gates/total']:,} total, depth {m['gates/depth']} "
        f"-> {result.folder}",
        soft_wrap=True,
    )


def _print_summary(console: Console, results: list[FinalResult]) -> None:
    console.print(f"\nover {len(results)} seeds, mean and standard deviation:")
    for name in REPORTED:
        values = [result.metrics[name] for result in results]
        console.print(f"  {name:18} {statistics.mean(values):.2%} ± {100 * statistics.stdev(values):.2f}")


def _log(
    name: str, file: CandidateFile, results: list[FinalResult], tracking_uri: str | None, console: Console
) -> None:
    from .tracking import log_final_training

    study = file.origin.study
    log_final_training(
        study, name, file, results, tracking_uri, lambda line: console.print(f"warning: {line}", soft_wrap=True)
    )
