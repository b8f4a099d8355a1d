"""What the tests of datasets share: placing files, telling fake images apart, and how a dataset must fail."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from search.data import Images, load_dataset
from search.errors import Failure


def place(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    folder.mkdir(parents=True)
    for name, file in files.items():
        if isinstance(file, Path):
            (folder / name).symlink_to(file)
        else:
            (folder / name).write_bytes(file)


def numbers(images: Images) -> list[int]:
    """Which of the fake images these are."""
    return np.ascontiguousarray(images.images[:, 0, 0, :4]).view(">u4").ravel().tolist()


def assert_one_line_failure(name: str, root: Path, *parts: str) -> None:
    with pytest.raises(Failure) as caught:
        load_dataset(name, root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, "--space digits_small"):
        assert part in message
