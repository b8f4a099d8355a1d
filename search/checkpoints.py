"""Checkpoints of running trials on the driver's disk: written whole or not at all."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from .errors import Failure


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    Raises:
        Failure: the disk is full or the folder may not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Failure(f"cannot write {path}: {error.strerror}; make room or run in another folder") from error


class Checkpoints:
    """One file a trial and rung, under one folder; gone once the trial is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, trial: int, epoch: int, checkpoint: bytes) -> None:
        """Keep the checkpoint of a rung; the one before stays until the trial is told."""
        write_atomically(self._path(trial, epoch), checkpoint)

    def read(self, trial: int, epoch: int) -> bytes | None:
        """The checkpoint, or None where it is lost: the trial then starts again and measures the same."""
        try:
            return self._path(trial, epoch).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, trial: int) -> None:
        for path in self.folder.glob(f"trial_{trial:05d}_epoch_*.safetensors"):
            path.unlink(missing_ok=True)

    def keep_only(self, trials: Iterable[int]) -> None:
        """Remove what a driver killed while writing or after telling a trial has left."""
        kept = tuple(f"trial_{trial:05d}_" for trial in trials)
        for path in self.folder.glob("*"):
            if not path.name.startswith(kept):
                path.unlink(missing_ok=True)

    def _path(self, trial: int, epoch: int) -> Path:
        return self.folder / f"trial_{trial:05d}_epoch_{epoch}.safetensors"
