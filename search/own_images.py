"""A user's own images: an .npz file of arrays, or a folder of PNGs. Of the two splits only the asked one's are opened.

Shapes: N images, C channels (1 or 3), H height, W width.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError, one_line

Split = Literal["train", "test"]
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

HELD_BACK: Final = 6  # one image in so many is for validation; as many of a class are sure to be on both sides
MAX_LABEL: Final = 2**31 - 1
NPZ_HOW: Final = "np.savez_compressed(FILE, x_train=..., y_train=..., x_test=..., y_test=...) writes one"
FOLDER_HOW: Final = "a folder has train/CLASS/*.png and test/CLASS/*.png"
FROM_HERE: Final = "paths are relative to the working directory"


def read_npz(path: Path, split: Split) -> tuple[Pixels, Labels]:
    """The arrays x_<split> and y_<split> as (N, C, H, W) and (N,). Nothing is unpickled.

    x is uint8, or bool for 0 and 255, of shape (N, H, W), (N, C, H, W) or else (N, H, W, C); y has integers, (N,) or
    (N, 1).

    Raises:
        UsageError: no such file, damaged, or arrays that are not so.
    """
    x_name, y_name = f"x_{split}", f"y_{split}"
    x, y = _arrays(path, (x_name, y_name))
    images = _as_images(x, f"{path}: {x_name}")
    labels = _as_labels(y, f"{path}: {y_name}")
    if len(images) != len(labels):
        raise UsageError(
            f"{path}: {x_name} has {len(images)} images and {y_name} {len(labels)} labels: give one for each"
        )
    if split == "train":
        _check_classes(labels, None, str(path))
    return images, labels


def _arrays(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    try:
        with path.open("rb") as opened:  # which NumPy would leave open where the file is damaged
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} is a single array, not an .npz file: {NPZ_HOW}")
            for name in names:
                if name not in file:
                    raise UsageError(f"{path} has no array {name} but {', '.join(file.files) or 'none'}: {NPZ_HOW}")
            arrays = [file[name] for name in names]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or one_line(error)}; {FROM_HERE}") from error
    except (ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise UsageError(
            f"{path} is no .npz file of plain arrays, or damaged ({one_line(error)}): {NPZ_HOW}"
        ) from error
    for name, array in zip(names, arrays, strict=True):
        if not isinstance(array, np.ndarray):  # a file of another kind in the archive
            raise UsageError(f"{path}: {name} is no array: {NPZ_HOW}")
    return arrays


def _as_images(x: NDArray[Any], where: str) -> Pixels:
    """(N, C, H, W) bytes; channels first where both readings are possible."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(f"{where} has shape {x.shape}: give (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3")
    if x.size == 0:
        raise UsageError(f"{where} is empty, of shape {x.shape}: give images")
    if x.dtype == np.bool_:
        return np.ascontiguousarray(x).astype(np.uint8) * np.uint8(255)
    if x.dtype != np.uint8:
        raise UsageError(
            f"{where} is {x.dtype}: images are uint8 (0 to 255) or bool; for numbers in [0, 1] give "
            "(255 * x).round().astype('uint8')"
        )
    return np.ascontiguousarray(x)


def _as_labels(y: NDArray[Any], where: str) -> Labels:
    """(N,), each of which may be a class."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UsageError(f"{where} has shape {y.shape}: give (N,) or (N, 1); of one-hot rows y.argmax(1)")
    if y.dtype.kind not in "iu":
        raise UsageError(f"{where} is {y.dtype}: labels are integers from 0; np.unique(y, return_inverse=True)[1]")
    for label in (int(y.min()), int(y.max())) if len(y) else ():
        if not 0 <= label <= MAX_LABEL:
            raise UsageError(f"{where} has the label {label}: classes are 0, 1, 2 and so on; renumber them")
    return y.astype(np.int64)


def _check_classes(labels: Labels, names: Sequence[str] | None, where: str) -> None:
    """Whether training has classes 0 to K-1, each often enough to be on both sides of the split.

    Args:
        labels: (N,).
        names: of the K classes; None where they are numbers alone.
        where: whose labels, for people.
    """
    classes, counts = np.unique(labels, return_counts=True)
    num_classes = len(classes) if names is None else len(names)
    if num_classes < 2:
        raise UsageError(
            f"{where} has {num_classes} class{'es' * (num_classes == 0)} of training images: give 2 or more"
        )
    if names is None and classes[-1] != num_classes - 1:
        missing = int(np.flatnonzero(classes != np.arange(num_classes))[0])
        raise UsageError(
            f"{where} has the training label {classes[-1]} and none of class {missing}: the {num_classes} classes are "
            f"0 to {num_classes - 1}; np.unique(y, return_inverse=True)[1] numbers them so"
        )
    of_class = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    for label in range(num_classes):
        number = of_class.get(label, 0)
        if number < HELD_BACK:
            raise UsageError(
                f"{where} has {number} training images of class {label if names is None else names[label]}: give "
                f"{HELD_BACK} or more of each, as one in {HELD_BACK} is held back for validation"
            )


def read_folder(path: Path, split: Split) -> tuple[Pixels, Labels]:
    """The PNGs in <split>/<class>/ as (N, C, H, W) and (N,), class by class, both by name.

    Classes are numbered as the folders in train/ are sorted; test/ may lack some. Images are L or RGB, or 1, which is
    read as L. Hidden files are ignored, any other that is no PNG is refused: it may be an image that would be missed.

    Raises:
        UsageError: no such folder, files that are no such images, or images of several sizes or modes.
    """
    names = _classes(path / "train")
    present = names if split == "train" else _classes(path / "test")
    if unknown := [name for name in present if name not in names]:
        raise UsageError(f"{path / split / unknown[0]} is of a class that {path / 'train'} does not have: move it away")
    files = [(file, names.index(name)) for name in present for file in _pngs(path / split / name)]
    if not files:
        raise UsageError(f"{path / split} holds no images: {FOLDER_HOW}")
    labels = np.array([label for _, label in files], np.int64)
    if split == "train":
        _check_classes(labels, names, str(path))
    first = _pixels(files[0][0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for image, (file, _) in zip(images, files, strict=True):
        pixels = _pixels(file)
        if pixels.shape != first.shape:
            raise UsageError(
                f"{file} has {shown_shape(pixels.shape)} (channels x rows x columns) and {files[0][0]} "
                f"{shown_shape(first.shape)}: give all images one size and mode"
            )
        image[:] = pixels
    return images, labels


def shown_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, by name; hidden files left out."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}; {FOLDER_HOW}, and {FROM_HERE}") from error


def _classes(folder: Path) -> list[str]:
    entries = _visible(folder)
    for entry in entries:
        if not os.path.isdir(entry):
            raise UsageError(f"{entry} is no class's folder: {FOLDER_HOW}; move it away")
    return [entry.name for entry in entries]


def _pngs(folder: Path) -> list[Path]:
    files = _visible(folder)
    for file in files:
        if file.suffix.lower() != ".png" or os.path.isdir(file):
            raise UsageError(f"{file} is no PNG: {FOLDER_HOW}; convert it, or move it away")
    return files


def _pixels(file: Path) -> Pixels:
    """(C, H, W)."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as image:
            mode = image.mode
            if mode not in ("1", "L", "RGB"):
                raise UsageError(f"{file} is of mode {mode}: images are L (grey), RGB or 1 (two colours); convert it")
            pixels = np.asarray(image.convert("L") if mode == "1" else image)
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        zlib.error,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise UsageError(f"{file} is no PNG, or damaged ({one_line(error)}): replace it, or move it away") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
