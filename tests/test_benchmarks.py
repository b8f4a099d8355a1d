"""What the benchmarks count, and that the README's table is what they measured."""

import json
from pathlib import Path

import pytest

from benchmarks.limits import activation_bytes, multiply_adds
from benchmarks.table import RESULTS, step_table
from benchmarks.train_step import scaled
from convlogic_core import PRESETS, ConvSpec, DenseSpec, ModelSpec

ROOT = Path(__file__).parents[1]


def test_readme_holds_the_measured_table() -> None:
    assert step_table() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_figures_say_where_they_come_from(file: Path) -> None:
    report = json.loads(file.read_text())
    assert {"machine", "threads", "torch", "native", "date", "commit"} <= report.keys()
    assert all(row["n"] >= 3 for row in report.get("results", []))


def test_multiply_adds_of_one_tree_and_one_gate() -> None:
    spec = ModelSpec((1, 4, 4), (ConvSpec(1, padding=1, tree_depth=1),), (DenseSpec(2),), 2, 1.0)
    # forward 16 windows of one gate; backward at 4 winners the gate's coefficients; two dense gates: 3 + 3 + 4 each
    assert multiply_adds(spec) == 16 * 3 + 4 * 3 + 2 * (3 + 3 + 4)
    assert activation_bytes(spec) == 16 * 4


def test_work_grows_with_the_width() -> None:
    spec = PRESETS["mnist_s"]
    assert scaled(spec, 16) == spec
    assert scaled(spec, 64).dense == PRESETS["mnist_m"].dense
    assert multiply_adds(scaled(spec, 64)) == 4 * multiply_adds(spec)
    assert 1.2e6 < multiply_adds(spec) < 1.25e6
