"""Imports go one way, and a machine that has only PyTorch can train."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["convlogic_core", "spaces", "search"]
HEAVY = {"optuna", "ray", "mlflow", "pydantic", "torchvision"}
WORKER_FILES = ["search/training.py", "search/jobs.py", "search/data.py"]


def python_files(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def imported(path: Path, module_level_only: bool = False) -> set[str]:
    """Top-level names of the packages a file imports; a relative import is one of the file's own package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in module_level(tree) if module_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[0]
            names.add(package if node.level else str(node.module).split(".")[0])
    return names


def module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs when the module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from module_level(child)


def importers(package: str, name: str) -> list[str]:
    return [path.name for path in python_files(package) if name in imported(path)]


def test_the_reader_of_imports_sees_them() -> None:
    data = ROOT / "search" / "data.py"
    assert {"numpy", "spaces", "search", "torchvision"} <= imported(data)
    assert "numpy" in imported(data, module_level_only=True)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("convlogic_core", {"spaces", "search", "benchmarks", "tests"} | HEAVY),
        ("spaces", {"search", "benchmarks", "tests"} | HEAVY),
        ("search", {"benchmarks", "tests"}),
    ],
)
def test_imports_go_one_way(package: str, forbidden: set[str]) -> None:
    offenders = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in python_files(package)
        if (found := imported(path) & forbidden)
    }
    assert offenders == {}


def test_relative_imports_stay_within_their_package() -> None:
    for package in PACKAGES:
        for path in python_files(package):
            depth = len(path.relative_to(ROOT).parts) - 1
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    assert node.level <= depth, f"{path}:{node.lineno}"


def test_one_file_imports_ray_and_one_mlflow() -> None:
    assert importers("search", "ray") == ["ray_workers.py"]
    assert importers("search", "mlflow") == ["tracking.py"]


def test_torchvision_is_imported_only_where_a_dataset_is_loaded() -> None:
    assert importers("search", "torchvision") == ["data.py"]


@pytest.mark.parametrize("file", WORKER_FILES)
def test_worker_files_need_no_heavy_package(file: str) -> None:
    assert imported(ROOT / file, module_level_only=True) & HEAVY == set()


def test_a_worker_starts_without_the_heavy_packages() -> None:
    """What they import in turn counts too. None in sys.modules makes an import of that name fail."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(HEAVY)}))
import search.training, search.jobs, search.data, spaces
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_training_run_does_without_the_compiler() -> None:
    """None in sys.modules makes an import of that name fail."""
    script = """
import sys, torch
from search.data import Dataset, Images, InputInfo
from search.training import TrainingRun, encode_dataset
from tests.search.tiny import tiny_candidate
sys.modules.update({name: None for name in ("torch._dynamo", "torch._inductor", "sympy")})
images = Images(torch.randint(0, 256, (60, 1, 28, 28), dtype=torch.uint8).numpy(), (torch.arange(60) % 10).numpy())
candidate = tiny_candidate(epochs=2)
dataset = Dataset("digits", InputInfo((1, 28, 28), 10), images, images)
data = encode_dataset(dataset, candidate.data, torch.device("cpu"))
first, second = (TrainingRun(candidate, data, seed=3) for _ in range(2))
first.run_epoch()
second.restore(first.checkpoint())
assert first.run_epoch().acc_discrete == second.run_epoch().acc_discrete
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
