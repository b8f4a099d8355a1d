"""What the benchmarks count, and that the tables of README and docs are what they measured."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.digits_studies import WAYS, Task, medians, studied
from benchmarks.limits import activation_bytes, multiply_adds
from benchmarks.simulate import simulated
from benchmarks.stopping import Way, best_patience, worth
from benchmarks.surrogate import Surrogate
from benchmarks.table import RESULTS, TABLES
from benchmarks.train_step import prototype_rates, scaled
from convlogic_core import PRESETS, ConvSpec, DenseSpec, ModelSpec
from search.ladder import PATIENCE

ROOT = Path(__file__).parents[1]


def test_readme_and_docs_hold_the_measured_tables() -> None:
    text = "".join(file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    for table in TABLES:
        assert table() in text, f"{table.__name__}: python -m benchmarks.table prints it anew"


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


def test_a_yardstick_is_read_by_batch_and_threads() -> None:
    output = """tile 32
GV=2 (dense tile 32) B=128 T=2 opt=16: best 2.527 ms = 50650 img/s (median 49133)
GV=1 (dense tile 16) B=128 T=2 opt=16: best 3.000 ms = 42666 img/s (median 40000)
GV=2 (dense tile 32) B=128 T=1 opt=16: best 5.000 ms = 25600 img/s (median 25000)
GV=2 (dense tile 32) B=128 T=2 opt=4: best 1.500 ms = 80000 img/s (median 79000)
GV=2 (dense tile 32) B=512 T=2 opt=16: best 9.000 ms = 56888 img/s (median 55000)"""
    assert prototype_rates(output, 128, 2, 16) == [50650.0, 42666.0]
    assert prototype_rates(output, 12, 2, 16) == []


def test_work_grows_with_the_width() -> None:
    spec = PRESETS["mnist_s"]
    assert scaled(spec, 16) == spec
    assert scaled(spec, 64).dense == PRESETS["mnist_m"].dense
    assert multiply_adds(scaled(spec, 64)) == 4 * multiply_adds(spec)
    assert 1.2e6 < multiply_adds(spec) < 1.25e6


def test_a_simulated_study_ends_with_its_trials() -> None:
    row = simulated("random", num_workers=3, trials=12)
    assert row["trials"] == 12
    assert row["simulated_hours"] > 0
    assert row["saturating_workers"] > 3


def test_imitated_trials_spend_the_same_compute_with_and_without_early_stopping() -> None:
    surrogate = Surrogate()
    stopped, full = (
        worth(surrogate, Way("random", patience, "complete", 6.0), 0, num_workers=2) for patience in ("0", "none")
    )
    assert stopped["trials"] > full["trials"] > 1
    assert stopped["saved"] > full["saved"]
    assert 0 < min(stopped["hypervolume"], full["hypervolume"])


@pytest.mark.parametrize("telling", ["complete", "pruned", "fail"])
def test_stopped_trials_are_told_as_the_benchmark_says(telling: str) -> None:
    """Samplers that listen then ask for other trials."""
    surrogate = Surrogate()
    way = Way("tpe", "0", telling, 12.0)
    told = worth(surrogate, way, 0, num_workers=2)
    complete = worth(surrogate, replace(way, telling="complete"), 0, num_workers=2)
    assert (told == complete) == (telling == "complete")


def test_the_patience_is_what_the_figures_say() -> None:
    assert best_patience(json.loads((RESULTS / "stopping.json").read_text())["results"]) == PATIENCE


def test_real_studies_end_with_their_compute() -> None:
    threads = torch.get_num_threads()
    stopped, full = (studied(Task(way, 1, budget_trials=12.0, epochs=3)) for way in list(WAYS)[:2])
    torch.set_num_threads(threads)
    budget_s = 12 * 3 / 81 * statistics.mean(trial["duration_s"] for trial in Surrogate().trials)
    assert budget_s <= min(stopped["forecast_s"], full["forecast_s"])
    assert max(stopped["forecast_s"], full["forecast_s"]) < 1.5 * budget_s
    assert stopped["trials"] > full["trials"] > 1
    assert stopped["saved"] > full["saved"] == 0
    (row,) = medians([full], 12.0, 3)
    assert (row["n"], row["hypervolume"]) == (1, full["hypervolume"])


def test_an_imitated_trial_measures_the_same_again() -> None:
    surrogate, again = Surrogate(), Surrogate()
    first = surrogate.candidates[0]
    assert surrogate.forecast(first, 5) == again.forecast(first, 5)
    assert surrogate.forecast(first, 5) != again.forecast(first, 6)
