"""Checkpoints of running trials on the driver's disk: written whole or not at all, and read only if whole."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .errors import Failure

DIGEST_BYTES: Final = 32
NUM_KEPT: Final = 2


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a kill or a power cut at any moment leaves the old one or the new one.

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
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Failure(f"cannot write {path}: {error.strerror}; make room or run in another folder") from error


def _sync_folder(folder: Path) -> None:
    """A renamed file survives a power cut once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints:
    """One file a trial and rung under one folder, SHA-256 behind the content; gone once the trial is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, trial: int, epoch: int, checkpoint: bytes) -> None:
        """Keep the checkpoint of a rung, and the one before it: this rung's result is stored only after this."""
        write_atomically(self._path(trial, epoch), checkpoint + hashlib.sha256(checkpoint).digest())
        for older in self._epochs(trial)[NUM_KEPT:]:
            self._path(trial, older).unlink(missing_ok=True)

    def read(self, trial: int, epoch: int) -> bytes | None:
        """The newest whole checkpoint of this rung or an earlier one.

        None where all are lost or damaged: the trial then starts again. It measures the same either way.
        """
        for stored in self._epochs(trial):
            if stored <= epoch and (checkpoint := self._read_whole(self._path(trial, stored))) is not None:
                return checkpoint
        return None

    def remove(self, trial: int) -> None:
        for path in self.folder.glob(f"trial_{trial:05d}_epoch_*.checkpoint"):
            path.unlink(missing_ok=True)

    def keep_only(self, trials: Iterable[int]) -> None:
        """Remove what a driver killed while writing or after telling a trial has left."""
        kept = tuple(f"trial_{trial:05d}_" for trial in trials)
        for path in self.folder.glob("*"):
            if not path.name.startswith(kept):
                path.unlink(missing_ok=True)

    def _read_whole(self, path: Path) -> bytes | None:
        try:
            stored = path.read_bytes()
        except OSError:  # gone, or on a bad sector
            return None
        content, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else None

    def _epochs(self, trial: int) -> list[int]:
        """Of the checkpoints there are, newest first."""
        paths = self.folder.glob(f"trial_{trial:05d}_epoch_*.checkpoint")
        return sorted((int(path.stem.rpartition("_")[2]) for path in paths), reverse=True)

    def _path(self, trial: int, epoch: int) -> Path:
        return self.folder / f"trial_{trial:05d}_epoch_{epoch}.checkpoint"
