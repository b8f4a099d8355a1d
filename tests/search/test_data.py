import gzip
import hashlib
import os
import socket
import struct
import subprocess
import sys
import types
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from search import data
from search.data import load_dataset, load_test
from search.errors import Failure, UsageError
from tests.search.dataset_files import assert_one_line_failure, numbers, place

REAL_ROOT = Path(__file__).parents[2].parent / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (REAL_ROOT / "MNIST" / "raw").is_dir(), reason="MNIST's files are not beside the repository, in shared/data"
)
NUM_IMAGES = {"train": 60_000, "t10k": 10_000}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MNIST's four files, unpacked: every image starts with its own number, labels go round 0..9."""
    folder = tmp_path_factory.mktemp("fakes")
    for prefix, num in NUM_IMAGES.items():
        pixels = np.zeros((num, 784), np.uint8)
        pixels[:, :4] = np.arange(num, dtype=">u4")[:, None].view(np.uint8)
        images = struct.pack(">4I", 0x803, num, 28, 28) + pixels.tobytes()
        labels = struct.pack(">2I", 0x801, num) + bytes(i % 10 for i in range(num))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return {path.name: path for path in folder.iterdir()}


# digits


def test_digits_are_three_fixed_disjoint_stratified_splits() -> None:
    digits, test = load_dataset("digits"), load_test("digits")
    splits = [digits.train, digits.validation, test]
    assert [len(split) for split in splits] == [1197, 300, 300]
    counts = np.array([np.bincount(split.labels, minlength=10) for split in splits])
    assert (np.abs(counts - counts.sum(axis=0) * np.array([[1197], [300], [300]]) / 1797) <= 2).all()
    # Every one of scikit-learn's images is in exactly one split (they are all distinct).
    assert len({image.tobytes() for split in splits for image in split.images}) == 1797
    again = load_dataset("digits")
    assert np.array_equal(again.train.images, digits.train.images)
    assert np.array_equal(again.validation.labels, digits.validation.labels)


def test_the_digits_split_is_the_one_that_studies_were_run_on() -> None:
    digits = load_dataset("digits")
    labels = np.concatenate([digits.train.labels, digits.validation.labels, load_test("digits").labels])
    assert hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()[:16] == "2fa6fd87fda8e518"


def test_digits_are_shown_as_28x28_bytes() -> None:
    from sklearn.datasets import load_digits

    train = load_dataset("digits").train
    assert train.images.shape == (1197, 1, 28, 28)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    border = np.ones((28, 28), bool)
    border[2:26, 2:26] = False
    assert train.images[:, 0, border].max() == 0
    assert (train.images.min(), train.images.max()) == (0, 255)
    cells = train.images[:, 0, 2:26, 2:26].reshape(-1, 8, 3, 8, 3)
    assert (cells == cells[:, :, :1, :, :1]).all()
    originals = {tuple(pixels): label for pixels, label in zip(*load_digits(return_X_y=True), strict=True)}
    sixteenths = np.rint(cells[:, :, 0, :, 0] * (16 / 255)).reshape(-1, 64)
    assert [originals[tuple(pixels)] for pixels in sixteenths] == train.labels.tolist()


def test_limit_keeps_the_first_training_images_and_all_validation_images() -> None:
    whole, limited = load_dataset("digits"), load_dataset("digits", limit_train=100)
    assert np.array_equal(limited.train.images, whole.train.images[:100])
    assert np.array_equal(limited.train.labels, whole.train.labels[:100])
    assert np.array_equal(limited.validation.images, whole.validation.images)
    # In random order, not by class: a limit must leave a usable set.
    assert set(limited.train.labels) == set(range(10))


@pytest.mark.parametrize("limit", [-1, 0, 9, 1198])
def test_limit_out_of_range(limit: int) -> None:
    with pytest.raises(
        UsageError, match=rf"--limit-train {limit}: digits has 1,197 .* in 10 classes; choose 10 to 1,197"
    ):
        load_dataset("digits", limit_train=limit)


@pytest.mark.parametrize("load", [load_dataset, load_test])
def test_unknown_name_lists_the_known_ones(load: Any) -> None:
    for name in ("nmist", "npz", "npz:", "png:x", "digits:x"):
        with pytest.raises(UsageError) as caught:
            load(name)
        assert str(caught.value) == (
            f"no dataset {name!r}: choose one of digits, mnist, fashion_mnist, cifar10, npz:FILE, folder:DIR"
        )


# MNIST's files


@needs_mnist
def test_real_mnist_from_a_read_only_folder_of_published_files() -> None:
    mnist, test = load_dataset("mnist", REAL_ROOT), load_test("mnist", REAL_ROOT)
    assert [part.images.shape for part in (mnist.train, mnist.validation, test)] == [
        (50_000, 1, 28, 28),
        (10_000, 1, 28, 28),
        (10_000, 1, 28, 28),
    ]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    # Class counts of the official training set, and the mean pixel that is always quoted.
    counts = np.bincount(np.concatenate([mnist.train.labels, mnist.validation.labels]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.validation.labels) == pytest.approx(counts / 6, abs=1)
    assert mnist.train.images.mean() / 255 == pytest.approx(0.1307, abs=0.0005)


def test_split_is_a_partition_in_random_order(tmp_path: Path, fakes: dict[str, Path]) -> None:
    place(tmp_path / "FashionMNIST" / "raw", fakes)
    fashion = load_dataset("fashion_mnist", tmp_path)
    train, validation = numbers(fashion.train), numbers(fashion.validation)
    assert (len(train), len(validation)) == (50_000, 10_000)
    assert sorted(train + validation) == list(range(60_000))
    assert [number % 10 for number in train] == fashion.train.labels.tolist()
    assert [number % 10 for number in validation] == fashion.validation.labels.tolist()
    for order in (train, validation):
        assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.05


def test_a_study_needs_no_test_files_and_the_test_no_training_files(tmp_path: Path, fakes: dict[str, Path]) -> None:
    for prefix in NUM_IMAGES:
        place(tmp_path / prefix / "MNIST" / "raw", {name: fakes[name] for name in fakes if name.startswith(prefix)})
    assert len(load_dataset("mnist", tmp_path / "train").train) == 50_000
    assert numbers(load_test("mnist", tmp_path / "t10k")) == list(range(10_000))


def test_root_is_the_argument_else_the_environment_else_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchvision_datasets: types.ModuleType
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVLOGIC_DATA", "from_environment")
    assert_one_line_failure("mnist", Path("argument"), str(Path("argument/MNIST/raw")))
    with pytest.raises(Failure, match=r"^from_environment/FashionMNIST/raw lacks"):
        load_dataset("fashion_mnist")
    monkeypatch.delenv("CONVLOGIC_DATA")
    with pytest.raises(Failure, match=r"^data/MNIST/raw lacks"):
        load_test("mnist")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[:-1000], "cannot be read"),
        (lambda packed: b"", "damaged"),
        (lambda packed: b"<html>404</html>", "cannot be read"),
        (lambda packed: packed[:500] + b"\0" * 500 + packed[1000:], "cannot be read"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1], 1), "60007 bytes of content; 60008 make"),
        (lambda packed: gzip.compress(b"\0" * len(gzip.decompress(packed)), 1), "damaged"),
    ],
    ids=["truncated", "empty", "not gzip", "overwritten", "short", "no header"],
)
def test_damaged_files_fail_in_one_line(tmp_path: Path, fakes: dict[str, Path], damage: Any, reason: str) -> None:
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    rng = np.random.default_rng(0)
    packed = gzip.compress(fakes[labels].read_bytes()[:8] + rng.integers(0, 10, 60_000, np.uint8).tobytes(), 1)
    place(tmp_path / "MNIST" / "raw", {images: fakes[images], f"{labels}.gz": damage(packed)})
    assert_one_line_failure("mnist", tmp_path, str(tmp_path / "MNIST" / "raw" / f"{labels}.gz"), reason, "delete it")


def test_labels_beyond_the_classes_fail_in_one_line(tmp_path: Path, fakes: dict[str, Path]) -> None:
    name = "train-labels-idx1-ubyte"
    place(tmp_path / "MNIST" / "raw", fakes | {name: fakes[name].read_bytes()[:-1] + b"\x0a"})
    assert_one_line_failure("mnist", tmp_path, "train-labels-idx1-ubyte", "label 10", "0 to 9")


# Downloading


def test_no_network_fails_in_one_line_and_leaves_no_file(
    tmp_path: Path, torchvision_datasets: types.ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_one_line_failure("mnist", tmp_path, str(tmp_path / "MNIST" / "raw"), "no route to host", "CONVLOGIC_DATA")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_root_that_cannot_be_written_fails_in_one_line(
    tmp_path: Path, torchvision_datasets: types.ModuleType
) -> None:
    (tmp_path / "file").touch()
    assert_one_line_failure("mnist", tmp_path / "file", str(tmp_path / "file" / "MNIST" / "raw"), "File exists")


def test_without_torchvision_fails_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert_one_line_failure("mnist", tmp_path, "torchvision")


def test_a_broken_off_download_leaves_the_next_run_intact(
    tmp_path: Path, torchvision_datasets: types.ModuleType, fakes: dict[str, Path]
) -> None:
    timeouts_s = []

    class BreaksOffFirst:
        def __init__(self, root: str, download: bool) -> None:
            timeouts_s.append(socket.getdefaulttimeout())
            print("noise")
            if len(timeouts_s) == 1:
                place(Path(root) / "MNIST" / "raw", {"train-images-idx3-ubyte": b"part"})
                raise TimeoutError("timed out")
            place(Path(root) / "MNIST" / "raw", fakes)

    torchvision_datasets.MNIST = BreaksOffFirst  # type: ignore[attr-defined]
    assert_one_line_failure("mnist", tmp_path, "timed out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert len(load_dataset("mnist", tmp_path).train) == 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    assert timeouts_s == [data.DOWNLOAD_TIMEOUT_S] * 2
    assert socket.getdefaulttimeout() is None


def test_a_download_does_not_replace_what_is_there(
    tmp_path: Path, torchvision_datasets: types.ModuleType, fakes: dict[str, Path]
) -> None:
    kept = "train-labels-idx1-ubyte"
    place(tmp_path / "MNIST" / "raw", {kept: fakes[kept].read_bytes()[:8] + b"\3" * 60_000})

    class Downloads:
        def __init__(self, root: str, download: bool) -> None:
            place(Path(root) / "MNIST" / "raw", fakes)

    torchvision_datasets.MNIST = Downloads  # type: ignore[attr-defined]
    assert set(load_dataset("mnist", tmp_path).train.labels) == {3}


def test_torchvision_itself_downloads_silently(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fakes: dict[str, Path],
    serve: Callable[[Path], str],
) -> None:
    """The real class, its mirror a folder: what it is called with and what it leaves must stay as assumed."""
    from torchvision import datasets

    packed = {f"{name}.gz": gzip.compress(path.read_bytes(), 1) for name, path in fakes.items()}
    place(tmp_path / "mirror", packed)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [serve(tmp_path / "mirror")])
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", checksums)
    assert len(load_dataset("fashion_mnist", tmp_path / "root").train) == 50_000
    assert datasets.FashionMNIST(tmp_path / "root", train=False).data.shape == (10_000, 28, 28)

    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert_one_line_failure("mnist", tmp_path / "other", "<urlopen error no route to host>")
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_imports_no_dataset_library() -> None:
    libraries = {"sklearn", "torchvision", "PIL", "optuna", "ray", "mlflow"}
    code = f"import sys, search.data; print(*{libraries} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[1])}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert loaded.stdout.strip() == ""
