"""This project's own code, as it travels to the nodes of a cluster."""

import hashlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = ("convlogic_core", "spaces", "search")
EXTENSIONS: Final = ("convlogic_core._native", "convlogic_core._cuda")


def copy_packages(folder: Path) -> list[str]:
    """The packages in `folder`, compiled extensions included wherever an installation keeps them.

    Not handed over as they are: Ray leaves out what git ignores, and extensions are built, not committed. On another
    platform or Python they are not found by their name, and the reference takes over.
    """
    for path, source in _sources():
        copy = folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    for name in EXTENSIONS:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            shutil.copyfile(spec.origin, folder / name.partition(".")[0] / Path(spec.origin).name)
    return [str(folder / name) for name in PACKAGES]


def code_digest() -> str:
    """SHA-256 of every Python file that this process imports the packages from."""
    digest = hashlib.sha256()
    for path, source in sorted(_sources()):
        digest.update(f"{path.as_posix()}\n".encode() + source.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[tuple[Path, Path]]:
    """Each Python file's place below the packages' folder, and the file."""
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        for location in spec.submodule_search_locations:  # an editable installation has two
            for source in Path(location).rglob("*.py"):
                yield Path(name) / source.relative_to(location), source
