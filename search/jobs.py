"""The work of a worker: train one trial to its next rung. Shared by every executor; needs PyTorch alone."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from spaces.candidate import Candidate, DataSpec

from .data import Dataset
from .errors import Failure, one_line
from .packages import code_digest
from .training import Diverged, EncodedDataset, EpochRecord, TrainingRun, check_memory, encode_dataset


@dataclass(frozen=True)
class Job:
    """Train trial `trial` up to epoch `until_epoch`, from `checkpoint` or from the start."""

    trial: int
    candidate: Candidate
    seed: int
    until_epoch: int
    checkpoint: bytes | None


@dataclass(frozen=True)
class Failed:
    """A job that ended by itself. cause: "nan" or "error", or "out of memory", which others may have taken."""

    cause: str
    message: str


class JobRunner:
    """Runs jobs on one device, keeping the encoded dataset from one to the next."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self._encoded: dict[DataSpec, EncodedDataset] = {}

    def run(self, job: Job) -> Iterator[EpochRecord | bytes | Failed]:
        """Every epoch's record as it is measured, the last one with gates, then the checkpoint; or a `Failed`.

        Raises:
            Failure: this process can no longer use its GPU; the job itself may be sound.
        """
        try:
            yield from self._run(job)
        except Diverged as error:
            yield Failed("nan", str(error))
        except MemoryError as error:
            yield Failed("out of memory", str(error) or "out of memory")
        except Exception as error:
            self._check_device(error)
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
            yield Failed("out of memory" if out_of_memory else "error", f"{type(error).__name__}: {one_line(error)}")

    def _check_device(self, cause: Exception) -> None:
        """An illegal access or a failed assertion in a kernel ends a process's use of its GPU: all later jobs fail."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            message = f"this process cannot use its GPU any longer: {one_line(cause)}"
            raise Failure(message) from cause

    def _run(self, job: Job) -> Iterator[EpochRecord | bytes]:
        if self.device.type == "cpu":
            try:
                check_memory(job.candidate.model, job.candidate.train.batch_size)
            except Failure as error:
                raise MemoryError(str(error)) from error
        spec = job.candidate.data
        if spec not in self._encoded:
            self._encoded = {spec: encode_dataset(self.dataset, spec, self.device)}
        run = TrainingRun(job.candidate, self._encoded[spec], job.seed)
        if job.checkpoint is not None:
            try:
                run.restore(job.checkpoint)
            except Failure:  # damaged: from the start the trial measures the same, later
                run = TrainingRun(job.candidate, self._encoded[spec], job.seed)
        while run.epoch < job.until_epoch:
            record = run.run_epoch()
            yield run.with_gates(record) if run.epoch == job.until_epoch else record
        yield run.checkpoint()


class Worker:
    """A process that trains one job at a time and opens no database: what a Ray actor is.

    Args:
        dataset: of the study.
        threads: of PyTorch.
        gpus: its share: 0 is the CPU; below 1 it is refused memory beyond its part of the GPU.

    Raises:
        Failure: a GPU is asked for and PyTorch has none.
    """

    def __init__(self, dataset: Dataset, threads: int, gpus: float) -> None:
        torch.set_num_threads(threads)
        if gpus and not torch.cuda.is_available():
            raise Failure("a GPU was assigned to this worker and PyTorch cannot use it")
        if 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        self._runner = JobRunner(dataset, torch.device("cuda" if gpus else "cpu"))

    def ready(self) -> tuple[str, str]:
        """Once the worker is up: its machine's name, and what tells its code from other code."""
        return platform.node(), code_digest()

    def run(self, job: Job) -> Iterator[EpochRecord | bytes | Failed]:
        yield from self._runner.run(job)

    def gpu_memory(self) -> tuple[int, int]:
        """Bytes that PyTorch took of the GPU at most, and that the GPU has."""
        return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
