import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import data
from search.data import load_dataset, load_test
from spaces.space import InputInfo
from tests.search.dataset_files import assert_one_line_failure, numbers, place

BATCH = 40


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Its six binary files with 40 images each; red starts with the image's number, green is 100, blue 200."""
    monkeypatch.setattr(data, "CIFAR10_BATCH", BATCH)
    files = {}
    for position, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = np.zeros((BATCH, 3073), np.uint8)
        records[:, 0] = np.arange(BATCH) % 10
        records[:, 1:5] = np.arange(position * BATCH, (position + 1) * BATCH, dtype=">u4")[:, None].view(np.uint8)
        records[:, 1025:2049] = 100
        records[:, 2049:] = 200
        files[name] = records.tobytes()
    return files


@pytest.fixture
def sixth_held(monkeypatch: pytest.MonkeyPatch) -> None:
    source = data.SOURCES["cifar10"]
    monkeypatch.setitem(data.SOURCES, "cifar10", replace(source, num_validation=5 * BATCH // 6))


def test_cifar10_holds_a_sixth_of_its_training_images_back() -> None:
    assert data.SOURCES["cifar10"].num_validation == 50_000 // 6
    assert data.CIFAR10_BATCH == 10_000


@pytest.mark.usefixtures("sixth_held")
def test_cifar10_is_read_from_its_binary_version(tmp_path: Path, cifar10: dict[str, bytes]) -> None:
    place(tmp_path / "cifar-10-batches-bin", cifar10)
    dataset, test = load_dataset("cifar10", tmp_path), load_test("cifar10", tmp_path)
    assert dataset.info == InputInfo((3, 32, 32), 10)
    assert [len(split) for split in (dataset.train, dataset.validation, test)] == [167, 33, 40]
    assert sorted(numbers(dataset.train) + numbers(dataset.validation)) == list(range(200))
    assert numbers(test) == list(range(200, 240))
    for split in (dataset.train, dataset.validation, test):
        assert split.images.shape[1:] == (3, 32, 32)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert [number % 10 for number in numbers(split)] == split.labels.tolist()
        assert (split.images[:, 1] == 100).all() and (split.images[:, 2] == 200).all()


@pytest.mark.usefixtures("sixth_held", "torchvision_datasets")
def test_cifar10_opens_only_the_files_of_the_asked_split(tmp_path: Path, cifar10: dict[str, bytes]) -> None:
    test = {"test_batch.bin": cifar10.pop("test_batch.bin")}
    place(tmp_path / "train" / "cifar-10-batches-bin", cifar10)
    place(tmp_path / "test" / "cifar-10-batches-bin", test)
    assert len(load_dataset("cifar10", tmp_path / "train").train) == 167
    assert len(load_test("cifar10", tmp_path / "test")) == 40


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1], "damaged or another file (122919 bytes; 40 records of 3073 bytes make 122920)"),
        (lambda content: content + b"\0", "damaged or another file"),
        (lambda content: b"", "damaged or another file"),
        (lambda content: content[:3073] + b"\x0a" + content[3074:], "label 10: classes are 0 to 9"),
    ],
    ids=["short", "long", "empty", "label"],
)
def test_damaged_cifar10_files_fail_in_one_line(
    tmp_path: Path, cifar10: dict[str, bytes], damage: Any, reason: str
) -> None:
    name = "data_batch_4.bin"
    place(tmp_path / "cifar-10-batches-bin", cifar10 | {name: damage(cifar10[name])})
    assert_one_line_failure("cifar10", tmp_path, str(tmp_path / "cifar-10-batches-bin" / name), reason, "delete it")


def archived(path: Path, files: Mapping[str, bytes]) -> str:
    """CIFAR-10's archive of these files; its MD5."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in ({"../outside": b"evil", "cifar-10-batches-bin/readme.html": b"hello"} | files).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("sixth_held")
def test_cifar10_is_downloaded_silently_and_only_its_six_files_unpacked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cifar10: dict[str, bytes],
    serve: Callable[[Path], str],
) -> None:
    mirror, folder = tmp_path / "mirror", tmp_path / "root" / "cifar-10-batches-bin"
    mirror.mkdir()
    kept = {"data_batch_1.bin": b"\3" + cifar10["data_batch_1.bin"][1:]}
    place(folder, kept)
    files = {f"cifar-10-batches-bin/{name}": content for name, content in cifar10.items()}
    monkeypatch.setattr(data, "CIFAR10_MD5", archived(mirror / "cifar-10-binary.tar.gz", files))
    monkeypatch.setattr(data, "CIFAR10_URL", serve(mirror) + "cifar-10-binary.tar.gz")
    assert len(load_dataset("cifar10", tmp_path / "root").train) == 167
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == cifar10 | kept
    assert sorted(path.name for path in (tmp_path / "root").rglob("*")) == sorted([*cifar10, folder.name])
    assert capfd.readouterr() == ("", "")

    monkeypatch.setattr(data, "CIFAR10_MD5", "0" * 32)
    other = tmp_path / "other"
    assert_one_line_failure("cifar10", other, str(other / folder.name), "CIFAR-10", "corrupted", "six *.bin files")
    assert list(other.iterdir()) == []
