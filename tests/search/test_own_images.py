"""A user's own images, as an .npz file or a folder of PNGs: read, and refused. From a search on: test_own_data.py."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from search.data import Images, find_source, load_dataset, load_test
from search.errors import UsageError
from spaces.space import InputInfo
from tests.search.conftest import Outcome
from tests.search.tiny import synthetic_dataset

Call = Callable[..., Outcome]
Arrays = dict[str, NDArray[Any]]
NUM_TRAIN, NUM_TEST = 70, 20


@pytest.fixture
def arrays(workspace: Path) -> Arrays:
    """70 training and 20 test images of ten classes, (N, 28, 28): bars whose row is the class."""
    synthetic = synthetic_dataset()
    images = np.concatenate([synthetic.train.images[:40], synthetic.validation.images, synthetic.train.images[20:40]])
    labels = np.concatenate([synthetic.train.labels[:40], synthetic.validation.labels, synthetic.train.labels[20:40]])
    assert labels.tolist() == [*range(10)] * 9
    images[:, 0, 27, 0] = np.arange(90)  # all distinct
    return {
        "x_train": images[:NUM_TRAIN, 0],
        "y_train": labels[:NUM_TRAIN],
        "x_test": images[NUM_TRAIN:, 0],
        "y_test": labels[NUM_TRAIN:],
    }


def save(arrays: Arrays, path: str = "own.npz") -> str:
    """The name of the dataset that it makes of them."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


def save_folder(arrays: Arrays, path: str = "own") -> str:
    """As PNGs: in a class by number, classes as "c0" and so on."""
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)):
            file = Path(path, split, f"c{label}", f"{number:03}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return f"folder:{path}"


def refusal(name: str, load: Callable[[str], object] = load_dataset) -> str:
    """The one line that refuses these images."""
    with pytest.raises(UsageError) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: Images, other: Images) -> bool:
    return np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)


# Reading


def test_a_sixth_is_held_back_and_every_class_is_on_both_sides(arrays: Arrays) -> None:
    dataset, test = load_dataset(save(arrays)), load_test("npz:own.npz")
    assert (dataset.name, dataset.info) == ("npz:own.npz", InputInfo((1, 28, 28), 10))
    assert [len(split) for split in (dataset.train, dataset.validation, test)] == [58, 12, 20]
    for split in (dataset.train, dataset.validation, test):
        assert split.images.shape[1:] == (1, 28, 28)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert set(split.labels) == set(range(10))
    rows = [int(image[0, 27, 0]) for part in (dataset.train, dataset.validation) for image in part.images]
    assert sorted(rows) == [*range(NUM_TRAIN)]
    assert [row % 10 for row in rows] == [*dataset.train.labels, *dataset.validation.labels]
    assert same(test, Images(arrays["x_test"][:, None], arrays["y_test"]))
    assert len(load_dataset("npz:own.npz", limit_train=20).train) == 20
    assert "npz:own.npz has 58 training images in 10 classes" in refusal(
        "npz:own.npz", lambda name: load_dataset(name, None, 59)
    )


@pytest.mark.parametrize("sizes", [(6, 6), (6, 7), (6, 90, 6, 11), (100, 6, 6, 6, 6, 6, 6)])
def test_six_images_of_a_class_are_enough(workspace: Path, sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    dataset = load_dataset(save({"x_train": np.zeros((len(labels), 5, 4), np.uint8), "y_train": labels}))
    for part in (dataset.train, dataset.validation):
        assert set(part.labels) == set(range(len(sizes)))
    assert len(dataset.validation) == -(-len(labels) // 6)


@pytest.mark.parametrize("colours", [1, 3])
def test_npz_and_folder_are_the_same(arrays: Arrays, colours: int) -> None:
    if colours == 3:
        for split in ("train", "test"):
            grey = arrays[f"x_{split}"]
            arrays[f"x_{split}"] = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    for split in ("train", "test"):  # a folder is read class by class
        order = np.argsort(arrays[f"y_{split}"], kind="stable")
        arrays |= {f"{axis}_{split}": arrays[f"{axis}_{split}"][order] for axis in "xy"}
    npz, folder = save(arrays), save_folder(arrays)
    Path("own/train/.DS_Store").touch()
    Path("own/train/c3/.hidden").touch()
    Path("own/test/.cache").mkdir()
    assert find_source(npz).info == find_source(folder).info == InputInfo((colours, 28, 28), 10)
    assert find_source(npz).images_sha256 == find_source(folder).images_sha256 is not None
    one, other = load_dataset(npz), load_dataset(folder)
    assert same(one.train, other.train) and same(one.validation, other.validation)
    assert same(load_test(npz), load_test(folder))


def test_layouts_and_types_that_mean_the_same(arrays: Arrays) -> None:
    grey, labels = arrays["x_train"], arrays["y_train"]
    colours = np.stack([grey, 255 - grey, grey // 2], axis=1)
    expected = load_dataset(save(arrays)).train
    for x, y in (
        (grey[:, None], labels.astype(np.uint8)),
        (grey[..., None], labels[:, None].astype(">i2")),
        (np.asfortranarray(grey), labels.astype(np.uint64)),
    ):
        assert same(load_dataset(save(arrays | {"x_train": x, "y_train": y})).train, expected)
    expected = load_dataset(save(arrays | {"x_train": colours})).train
    assert expected.images.shape[1:] == (3, 28, 28)
    assert same(load_dataset(save(arrays | {"x_train": colours.transpose(0, 2, 3, 1)})).train, expected)
    both_readings = save(arrays | {"x_train": colours[..., :1]})
    assert load_dataset(both_readings).info.image_shape == (3, 28, 1)
    black_and_white = load_dataset(save(arrays | {"x_train": grey > 127})).train
    assert same(black_and_white, load_dataset(save(arrays | {"x_train": (grey > 127) * np.uint8(255)})).train)
    np.savez_compressed("packed.npz", **arrays)  # type: ignore[arg-type]
    assert same(load_dataset("npz:packed.npz").validation, load_dataset(save(arrays)).validation)


def test_two_coloured_pngs_are_grey(arrays: Arrays) -> None:
    arrays = {name: (array > 127) * np.uint8(255) if name[0] == "x" else array for name, array in arrays.items()}
    folder = save_folder(arrays)
    expected = load_dataset(folder)
    for file in Path("own").rglob("*.png"):
        Image.open(file).convert("1").save(file)
    file.rename(file.with_suffix(".PNG"))
    assert same(load_dataset(folder).train, expected.train)


def test_a_home_folder_and_no_data_dir(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    Path("home").mkdir()
    save(arrays, "home/own.npz")
    assert len(load_dataset("npz:~/own.npz", "elsewhere").train) == 58


def test_the_digest_is_of_training_images_and_labels(arrays: Arrays) -> None:
    def digest(**changed: Any) -> str | None:
        return find_source(save(arrays | changed)).images_sha256

    first = digest()
    assert first is not None and len(first) == 64
    assert digest(x_test=arrays["x_test"][:3], y_test=arrays["y_test"][:3]) == first
    assert digest(y_train=arrays["y_train"].astype(np.uint8)) == first
    swapped = arrays["y_train"].copy()
    swapped[:2] = swapped[1::-1]
    changed = arrays["x_train"].copy()
    changed[-1, -1, -1] ^= 1
    others = [digest(x_train=changed), digest(y_train=swapped), digest(x_train=arrays["x_train"].reshape(-1, 14, 56))]
    assert len({first, *others}) == 4
    assert find_source("digits").images_sha256 is None


def test_the_test_split_is_not_opened(arrays: Arrays) -> None:
    pickled = np.array([{"not": "images"}] * 3, dtype=object)
    npz = save(arrays | {"x_test": pickled, "y_test": pickled})
    assert len(load_dataset(npz).train) == 58
    assert "own.npz is no .npz file of plain arrays, or damaged (Object arrays cannot" in refusal(npz, load_test)
    del arrays["x_test"]
    assert len(load_dataset(save(arrays)).train) == 58
    assert "own.npz has no array x_test but x_train, y_train, y_test: np.savez" in refusal(npz, load_test)

    folder = save_folder(arrays | {"x_test": arrays["x_train"], "y_test": arrays["y_train"]})
    for file in Path("own/test").rglob("*.png"):
        file.write_bytes(b"no PNG")
    assert len(load_dataset(folder).train) == 58
    assert refusal(folder, load_test).startswith("own/test/c0/000.png is no PNG, or damaged (")


# What is wrong from outside


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (
            {"x_train": np.zeros((70, 28, 28))},
            "x_train is float64: images are uint8 (0 to 255) or bool; for numbers in",
        ),
        ({"x_train": np.zeros((70, 28, 28), np.int16)}, "own.npz: x_train is int16: images are uint8"),
        ({"x_train": np.zeros((70, 784), np.uint8)}, "x_train has shape (70, 784): give (N, H, W), (N, C, H, W) or"),
        ({"x_train": np.zeros((70, 2, 28, 28), np.uint8)}, "x_train has shape (70, 2, 28, 28): give"),
        ({"x_train": np.zeros((0, 28, 28), np.uint8)}, "x_train is empty, of shape (0, 1, 28, 28)"),
        ({"x_train": np.zeros((70, 0, 28), np.uint8)}, "x_train is empty"),
        ({"x_train": np.zeros((69, 28, 28), np.uint8)}, "x_train has 69 images and y_train 70 labels"),
        (
            {"x_train": np.array([None] * 70)},
            "damaged (Object arrays cannot be loaded when allow_pickle=False): np.savez",
        ),
        ({"y_train": np.zeros((70, 10), np.int64)}, "y_train has shape (70, 10): give (N,) or (N, 1); of one-hot rows"),
        ({"y_train": np.zeros(70)}, "y_train is float64: labels are integers from 0"),
        ({"y_train": np.array(["cat"] * 70)}, "y_train is <U3: labels are integers"),
        ({"y_train": np.arange(70) % 10 - 1}, "y_train has the label -1: classes are 0, 1, 2 and so on"),
        ({"y_train": np.full(70, 2**64 - 1, np.uint64)}, "y_train has the label 18446744073709551615"),
        (
            {"y_train": np.where(np.arange(70) % 10, 0, 10**9)},
            "the training label 1000000000 and none of class 1: the 2",
        ),
        (
            {"y_train": np.arange(70) % 10 + 1},
            "the training label 10 and none of class 0: the 10 classes are 0 to 9; np.",
        ),
        ({"y_train": np.zeros(70, np.int64)}, "own.npz has 1 class of training images: give 2 or more"),
        (
            {"y_train": np.arange(70) // 65},
            "own.npz has 5 training images of class 1: give 6 or more of each, as one in 6",
        ),
    ],
)
def test_wrong_training_arrays(arrays: Arrays, changed: Arrays, part: str) -> None:
    assert part in refusal(save(arrays | changed))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (
            {"x_test": np.zeros((20, 28, 27), np.uint8)},
            "test images of npz:own.npz are 1x28x27 (channels x rows x columns",
        ),
        (
            {"x_test": np.zeros((20, 3, 28, 28), np.uint8)},
            "are 3x28x28 (channels x rows x columns), its training images 1x",
        ),
        (
            {"y_test": np.arange(20) % 11},
            "npz:own.npz has the test label 10: by its training images classes are 0 to 9",
        ),
        ({"y_test": np.arange(20) - 1}, "y_test has the label -1"),
        ({"y_test": np.arange(19)}, "x_test has 20 images and y_test 19 labels"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.arange(0)}, "x_test is empty"),
    ],
)
def test_wrong_test_arrays(arrays: Arrays, changed: Arrays, part: str) -> None:
    name = save(arrays | changed)
    load_dataset(name)
    assert part in refusal(name, load_test)


def overwritten(content: bytes) -> bytes:
    return content[:3000] + b"\0" * 100 + content[3100:]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda content: b"", "no .npz file of plain arrays, or damaged (No data left in file)"),
        (lambda content: b"no zip" * 100, "no .npz file of plain arrays, or damaged ("),
        (
            lambda content: content[: len(content) // 2],
            "no .npz file of plain arrays, or damaged (File is not a zip file)",
        ),
        (overwritten, "no .npz file of plain arrays, or damaged (Bad CRC-32 for file 'x_train.npy')"),
        (lambda content: pickle.dumps({"x_train": 1}), "no .npz file of plain arrays, or damaged ("),
    ],
    ids=["empty", "no zip", "truncated", "overwritten", "pickle"],
)
def test_damaged_files(arrays: Arrays, damage: Callable[[bytes], bytes], part: str) -> None:
    name = save(arrays)
    Path("own.npz").write_bytes(damage(Path("own.npz").read_bytes()))
    assert refusal(name).startswith(f"own.npz is {part}")


def test_files_of_other_kinds(arrays: Arrays) -> None:
    np.save("single.npy", arrays["x_train"])
    assert refusal("npz:single.npy").startswith("single.npy is a single array, not an .npz file: np.savez")
    with zipfile.ZipFile("text.npz", "w") as archive:
        archive.writestr("x_train", "text")
        archive.writestr("y_train.npy", "text")
    assert refusal("npz:text.npz").startswith("text.npz")
    with zipfile.ZipFile("none.npz", "w"):
        pass
    assert refusal("npz:none.npz").startswith("none.npz has no array x_train but none: np.savez")
    Path("folder").mkdir()
    assert refusal("npz:folder") == "cannot read folder: Is a directory; paths are relative to the working directory"
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**15}, 28, 28), }}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile("huge.npz", "w") as archive:
        archive.writestr("x_train.npy", header)
        archive.writestr("y_train.npy", header)
    assert refusal("npz:huge.npz").startswith("huge.npz is no .npz file of plain arrays, or damaged (")


def test_wrong_folders(arrays: Arrays) -> None:
    name = save_folder(arrays)
    assert len(load_dataset(name).train) == 58

    def with_file(file: str, content: bytes | Image.Image, load: Callable[[str], object] = load_dataset) -> str:
        path = Path(file)
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, "PNG")
        message = refusal(name, load)
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        return message

    png = "own/train/c4/004.png"
    whole = Path(png).read_bytes()
    for damaged in (b"", b"no PNG", whole[:200], whole[:60] + bytes(40) + whole[100:]):
        assert with_file(png, damaged).startswith(f"{png} is no PNG, or damaged (")
    for mode in ("RGBA", "P", "LA", "I;16"):
        part = f"{png} is of mode {mode}: images are L (grey), RGB or 1 (two colours); convert it"
        assert with_file(png, Image.new(mode, (28, 28))) == part
    assert with_file(png, Image.new("L", (28, 27))) == (
        f"{png} has 1x27x28 (channels x rows x columns) and own/train/c0/000.png 1x28x28: give all images one size and "
        "mode"
    )
    assert f"{png} has 3x28x28" in with_file(png, Image.new("RGB", (28, 28)))
    assert with_file("own/train/c4/x.jpg", b"").startswith(
        "own/train/c4/x.jpg is no PNG: a folder has train/CLASS/*.png"
    )
    assert with_file("own/train/labels.csv", b"").startswith("own/train/labels.csv is no class's folder: ")
    Path("own/train/c4/more.png").mkdir()
    assert "own/train/c4/more.png is no PNG" in refusal(name)
    Path("own/train/c4/more.png").rmdir()
    assert "c10: give 6 or more of each" in with_file("own/train/c10/1.png", whole)
    Path("own/train/c10").rename("own/test/c10")
    assert refusal(name, load_test) == ("own/test/c10 is of a class that own/train does not have: move it away")
    Path("own/test/c10").rmdir()
    assert "the test images of folder:own are 1x9x9" in _all_replaced(name, "own/test", Image.new("L", (9, 9)))
    for file in Path("own/test").rglob("*.png"):
        file.unlink()
    assert refusal(name, load_test).startswith("own/test holds no images: ")
    Path("own/test").rename("own/elsewhere")
    load_dataset(name)
    assert refusal(name, load_test).startswith("cannot read own/test: No such file or directory; ")


def _all_replaced(name: str, folder: str, image: Image.Image) -> str:
    for file in Path(folder).rglob("*.png"):
        image.save(file)
    return refusal(name, load_test)


def test_a_test_folder_may_lack_classes(arrays: Arrays) -> None:
    name = save_folder(arrays)
    for label in (0, 1, 5):
        for file in Path(f"own/test/c{label}").iterdir():
            file.unlink()
        if label:
            Path(f"own/test/c{label}").rmdir()
    assert set(load_test(name).labels) == {2, 3, 4, 6, 7, 8, 9}
