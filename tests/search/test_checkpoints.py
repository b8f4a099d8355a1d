"""Checkpoints on disk: whole or not at all, the one before kept, a full disk said in one line."""

import errno
import os
from pathlib import Path

import pytest

from search import checkpoints
from search.checkpoints import Checkpoints
from search.config import study_config
from search.errors import Failure


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Of trial 3: the rungs at epochs 1, 3 and 9."""
    kept = Checkpoints(tmp_path / "checkpoints")
    for epoch in (1, 3, 9):
        kept.write(3, epoch, b"weights after %d" % epoch)
    kept.write(30, 1, b"of trial 30")
    return kept


def file(kept: Checkpoints, epoch: int) -> Path:
    return kept.folder / f"trial_00003_epoch_{epoch}.checkpoint"


def test_the_last_two_rungs_are_kept(kept: Checkpoints) -> None:
    assert kept.read(3, 9) == b"weights after 9"
    assert kept.read(3, 3) == b"weights after 3"
    assert not file(kept, 1).exists()
    assert kept.read(30, 1) == b"of trial 30"
    assert kept.read(4, 9) is None


@pytest.mark.parametrize("size", [0, 1, 31, 40, -1])
def test_a_truncated_one_is_not_read_but_the_one_before(kept: Checkpoints, size: int) -> None:
    file(kept, 9).write_bytes(file(kept, 9).read_bytes()[:size])
    assert kept.read(3, 9) == b"weights after 3"
    file(kept, 3).unlink()
    assert kept.read(3, 9) is None


@pytest.mark.parametrize("position", [0, 7, -33, -32, -1])
def test_a_changed_byte_is_noticed(kept: Checkpoints, position: int) -> None:
    content = bytearray(file(kept, 9).read_bytes())
    content[position] ^= 1
    file(kept, 9).write_bytes(content)
    assert kept.read(3, 9) == b"weights after 3"


def test_a_rung_that_is_not_stored_yet_is_not_read(kept: Checkpoints) -> None:
    """Killed after the checkpoint and before its result: the trial repeats that rung."""
    assert kept.read(3, 8) == b"weights after 3"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(kept: Checkpoints, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(kept.folder.iterdir())
    monkeypatch.setattr(checkpoints.os, failing, full)
    with pytest.raises(Failure, match=r"^cannot write .*epoch_27.checkpoint: No space left on device; make room or "):
        kept.write(3, 27, b"weights after 27")
    assert sorted(kept.folder.iterdir()) == before
    assert kept.read(3, 27) == b"weights after 9"


def test_a_storage_of_one_s_own_has_a_folder_of_its_own(workspace: Path) -> None:
    own = study_config(study="a").folder
    assert own == Path("studies/a")
    assert study_config(study="a", storage=f"sqlite:///{workspace}/studies/a/study.db").folder == own
    storages = [
        "sqlite:///other.db",
        "sqlite:///studies/b/study.db",
        "postgresql://me:secret@host/optuna",
        "postgresql://me:secret@host/optuna?options=-csearch_path%3Da",
    ]
    folders = {study_config(study="a", storage=storage).folder for storage in storages}
    assert len(folders) == len(storages)
    assert all(folder.parent == own for folder in folders)
    changed = "postgresql+psycopg://me:changed@host/optuna"
    assert study_config(study="a", storage=changed).folder in folders
