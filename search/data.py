"""Datasets: training, validation and, apart from them, test images as bytes.

A new dataset is a function that reads one official split, and its line in `SOURCES`. A user's own images need none:
`npz:FILE` and `folder:DIR` name them, paths being relative to the working directory.
Shapes: N images, C channels, H height, W width.
"""

import contextlib
import gzip
import hashlib
import http.client
import io
import math
import os
import socket
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spaces.space import InputInfo

from .errors import Failure, UsageError
from .own_images import HELD_BACK, Labels, Pixels, Split, read_folder, read_npz, shown_shape

SPLIT_SEED = 20_241_112
DOWNLOAD_TIMEOUT_S = 15.0
WAY_ON = "or go on with the bundled digits: `search.run --space digits_small`"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as its page gives it
CIFAR10_BATCH = 10_000


@dataclass(frozen=True)
class Images:
    """images (N, C, H, W) uint8 and labels (N,) int64, in the same order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Images":
        return Images(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """What a search and a final training may learn and choose from; the test set is not here (see `load_test`)."""

    name: str
    info: InputInfo
    train: Images
    validation: Images


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Args:
        name: as it is typed.
        info: what its images are.
        num_validation: so many of the training images are held back.
        read: (root, is_test) gives one official split, as it stands.
        images_sha256: of a user's own training images and labels, which may change from day to day; None of others.
        folder: below the root, of files that are downloaded where they are missing.
        names: (is_test) gives these files' names.
    """

    name: str
    info: InputInfo
    num_validation: int
    read: Callable[[Path, bool], Images]
    images_sha256: str | None = None
    folder: str = ""
    names: Callable[[bool], Sequence[str]] = lambda is_test: ()

    def lacking(self, data_dir: str | Path | None) -> Path | None:
        """The folder that training images would be downloaded to; None where they are here."""
        folder = _root(data_dir) / self.folder
        return folder if None in (_find(folder, name) for name in self.names(False)) else None

    def load(self, data_dir: str | Path | None, limit_train: int | None, limit_name: str = "--limit-train") -> Dataset:
        """Training and validation images. Arguments and errors as in `load_dataset`; `limit_name` is for people."""
        train, validation = _split(self.read(_root(data_dir), False), self.num_validation)
        if limit_train is not None:
            num_classes = self.info.num_classes
            if not num_classes <= limit_train <= len(train):
                raise UsageError(
                    f"{limit_name} {limit_train}: {self.name} has {len(train):,} training images in {num_classes} "
                    f"classes; choose {num_classes} to {len(train):,}"
                )
            train = Images(train.images[:limit_train], train.labels[:limit_train])
        return Dataset(self.name, self.info, train, validation)

    def load_test(self, data_dir: str | Path | None) -> Images:
        """The test images. Arguments and errors as in `load_dataset`."""
        return self.read(_root(data_dir), True)


def load_dataset(name: str, data_dir: str | Path | None = None, limit_train: int | None = None) -> Dataset:
    """Training and validation images, split off the official training set by a fixed seed, each class in proportion.

    Args:
        name: one of `SOURCES`, or npz:FILE or folder:DIR.
        data_dir: the folder of all datasets (torchvision's root); None means the environment's CONVLOGIC_DATA, else
            "data". A user's own images are not looked for there.
        limit_train: keep only the first so many training images (they are in a fixed random order); the validation
            images stay the same.

    Raises:
        UsageError: unknown `name`, a user's own images that are not as they must be (see `own_images`), or
            `limit_train` below the number of classes or above the training set.
        Failure: the files are damaged, or absent and not to be downloaded.
    """
    return find_source(name).load(data_dir, limit_train)


def load_test(name: str, data_dir: str | Path | None = None) -> Images:
    """The official test set, for the final figure only. Arguments and errors as in `load_dataset`."""
    return find_source(name).load_test(data_dir)


def is_dataset(name: str) -> bool:
    """Whether a name is one of `DATASETS`; what it names need not be there."""
    kind, _, path = name.partition(":")
    return name in SOURCES or (kind in OWN and path != "")


def find_source(name: str) -> Source:
    """What a name stands for. A user's own training images are read now: what they are is in them alone.

    Raises:
        UsageError: unknown `name`, or own training images that are not as they must be.
    """
    if not is_dataset(name):
        raise UsageError(f"no dataset {name!r}: choose one of {DATASETS}")
    return SOURCES[name] if name in SOURCES else _own_source(name)


def _own_source(name: str) -> Source:
    kind, _, path = name.partition(":")
    read_split = partial(OWN[kind], Path(os.path.expanduser(path)))
    training = Images(*read_split("train"))
    channels, rows, columns = training.images.shape[1:]
    info = InputInfo((channels, rows, columns), int(training.labels.max()) + 1)

    def read(root: Path, is_test: bool) -> Images:
        del root
        if not is_test:
            return training
        test = Images(*read_split("test"))
        if test.images.shape[1:] != info.image_shape:
            raise UsageError(
                f"the test images of {name} are {shown_shape(test.images.shape[1:])} (channels x rows x columns), its "
                f"training images {shown_shape(info.image_shape)}: give both one size and mode"
            )
        if test.labels.max() >= info.num_classes:
            raise UsageError(
                f"{name} has the test label {test.labels.max()}: by its training images classes are 0 to "
                f"{info.num_classes - 1}; leave such images out"
            )
        return test

    digest = hashlib.sha256(repr(training.images.shape).encode())
    digest.update(training.images.data)
    digest.update(training.labels.astype("<i8").data)
    num_validation = -(-len(training) // HELD_BACK)  # rounded up, so that no HELD_BACK neighbours in a class all stay
    return Source(name, info, num_validation, read, digest.hexdigest())


def _root(data_dir: str | Path | None) -> Path:
    return Path(data_dir or os.environ.get("CONVLOGIC_DATA") or "data").expanduser()


def _split(images: Images, num_held: int) -> tuple[Images, Images]:
    """(rest, held), each shuffled; `num_held` images are held back, each class in proportion to within one image."""
    # RandomState, not default_rng: NumPy promises its stream for good, so the split outlives upgrades.
    rng = np.random.RandomState(SPLIT_SEED)
    num_images = len(images)
    order = rng.permutation(num_images)
    by_class = order[np.argsort(images.labels[order], kind="stable")]
    is_held = np.zeros(num_images, dtype=bool)
    is_held[np.arange(num_held) * num_images // num_held] = True
    return images.take(rng.permutation(by_class[~is_held])), images.take(rng.permutation(by_class[is_held]))


def _read_digits(root: Path, is_test: bool) -> Images:
    """scikit-learn's 1,797 digits, which have no official test split: 300 of them are set apart here."""
    del root  # bundled with scikit-learn
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # 0..16 to 0..255, then 8x8 to 24x24 with a border of two zeros: every MNIST architecture fits.
    small = ((pixels.reshape(-1, 1, 8, 8).astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    images = np.pad(small.repeat(3, axis=2).repeat(3, axis=3), ((0, 0), (0, 0), (2, 2), (2, 2)))
    training, test = _split(Images(images, labels.astype(np.int64)), 300)
    return test if is_test else training


def _read_mnist(folder_name: str, root: Path, is_test: bool) -> Images:
    """A dataset in MNIST's files, by torchvision's class and folder name; only the asked split is opened."""
    folder, names, num_images = root / folder_name / "raw", _mnist_names(is_test), 10_000 if is_test else 60_000
    if None in (_find(folder, name) for name in names):
        _download(folder_name, folder, root, partial(_fetch_mnist, folder_name), "the four *-ubyte.gz files")
    labels = _read_idx(folder, names[1], (num_images,)).astype(np.int64)
    if labels.max() > 9:
        raise Failure(f"{folder / names[1]} has the label {labels.max()}: classes are 0 to 9; replace it, {WAY_ON}")
    return Images(_read_idx(folder, names[0], (num_images, 28, 28))[:, None], labels)


def _mnist_names(is_test: bool) -> list[str]:
    return [f"{'t10k' if is_test else 'train'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]


def _read_cifar10(root: Path, is_test: bool) -> Images:
    """CIFAR-10's binary version: a record is the label, then the 32x32 bytes of red, of green and of blue."""
    folder = root / CIFAR10_FOLDER
    names = _cifar10_names(is_test)
    if not all((folder / name).is_file() for name in names):
        _download("CIFAR-10", folder, root, _fetch_cifar10, "the six *.bin files of its binary version")
    records = np.concatenate([_read_records(folder / name) for name in names])
    return Images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def _cifar10_names(is_test: bool) -> list[str]:
    return ["test_batch.bin"] if is_test else [f"data_batch_{number}.bin" for number in range(1, 6)]


def _read_records(path: Path) -> NDArray[np.uint8]:
    """(CIFAR10_BATCH, 1 + 3 * 32 * 32) bytes, labels checked."""
    remedy = f"delete it to have it downloaded again, {WAY_ON}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read ({_one_line(error)}): {remedy}") from error
    shape = (CIFAR10_BATCH, 1 + 3 * 32 * 32)
    if len(content) != math.prod(shape):
        raise Failure(
            f"{path} is damaged or another file ({len(content)} bytes; {shape[0]} records of {shape[1]} bytes make "
            f"{math.prod(shape)}): {remedy}"
        )
    records = np.frombuffer(content, np.uint8).reshape(shape)
    if records[:, 0].max() > 9:
        raise Failure(f"{path} has the label {records[:, 0].max()}: classes are 0 to 9; {remedy}")
    return records


def _in_mnists_files(name: str, folder_name: str) -> Source:
    read = partial(_read_mnist, folder_name)
    return Source(name, InputInfo((1, 28, 28), 10), 10_000, read, folder=f"{folder_name}/raw", names=_mnist_names)


SOURCES: Final = {
    source.name: source
    for source in (
        Source("digits", InputInfo((1, 28, 28), 10), 300, _read_digits),
        _in_mnists_files("mnist", "MNIST"),
        _in_mnists_files("fashion_mnist", "FashionMNIST"),
        Source(
            "cifar10", InputInfo((3, 32, 32), 10), 8_333, _read_cifar10, folder=CIFAR10_FOLDER, names=_cifar10_names
        ),
    )
}
OWN: Final[dict[str, Callable[[Path, Split], tuple[Pixels, Labels]]]] = {"npz": read_npz, "folder": read_folder}
DATASETS: Final = ", ".join([*SOURCES, "npz:FILE", "folder:DIR"])


def _find(folder: Path, name: str) -> Path | None:
    """The file as torchvision unpacks it or, failing that, as it is published."""
    # Not torchvision's own readers: they need every file unpacked, the test set too, and two seconds of imports.
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.isfile(path)), None)


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An IDX file of bytes (0, 0, 8, the number of dimensions; big-endian sizes; the bytes), of exactly `shape`."""
    path = _find(folder, name) or folder / name
    remedy = f"delete it to have it downloaded again, {WAY_ON}"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise Failure(f"{path} cannot be read ({_one_line(error)}): {remedy}") from error
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    size_bytes = len(header) + math.prod(shape)
    if len(content) != size_bytes or not content.startswith(header):
        raise Failure(
            f"{path} is damaged or another file ({len(content)} bytes of content; {size_bytes} make an IDX file "
            f"of shape {shape}): {remedy}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()


def _download(name: str, folder: Path, root: Path, fetch: Callable[[Path], Path], files: str) -> None:
    """Have the dataset fetched beside its own `folder` in `root`, then move the whole files in.

    Args:
        name: for people.
        folder: where its files belong.
        root: the data folder above.
        fetch: given an empty folder, leaves the files in it or below it and says where.
        files: which these are, for people.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as staging:
            with _silent_and_impatient():
                fetched = fetch(Path(staging))
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(fetched.iterdir()):
                if not (folder / path.name).exists():
                    path.replace(folder / path.name)
    except (OSError, EOFError, RuntimeError, ImportError, tarfile.TarError, http.client.HTTPException) as error:
        above = folder.relative_to(root).parts[0]
        raise Failure(
            f"{folder} lacks files of {name}, which cannot be downloaded ({_one_line(error)}): put {files} there "
            f"(--data-dir or CONVLOGIC_DATA names the folder above {above}), {WAY_ON}"
        ) from error


def _fetch_mnist(folder_name: str, staging: Path) -> Path:
    from torchvision import datasets

    getattr(datasets, folder_name)(str(staging), download=True)
    return staging / folder_name / "raw"


def _fetch_cifar10(staging: Path) -> Path:
    # Not torchvision's CIFAR10: it downloads and opens the version made of pickles.
    from torchvision.datasets.utils import download_url

    download_url(CIFAR10_URL, str(staging), "archive.tar.gz", CIFAR10_MD5)
    fetched = staging / CIFAR10_FOLDER
    fetched.mkdir()
    with tarfile.open(staging / "archive.tar.gz") as archive:
        for name in _cifar10_names(False) + _cifar10_names(True):
            member = archive.extractfile(f"{CIFAR10_FOLDER}/{name}")
            assert member is not None, "by its checksum the archive is the one that has these files"
            (fetched / name).write_bytes(member.read())
    return fetched


@contextlib.contextmanager
def _silent_and_impatient() -> Iterator[None]:
    """No progress bar, and no waiting for ever on a network that swallows packets."""
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout_s)


def _one_line(error: BaseException) -> str:
    """The end of a message: torchvision lists the mirrors it tried, and the last line says what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
