"""The committed results are of the spaces as they are, and what is said of them is what they hold."""

import math
import re
import statistics
from pathlib import Path

import pytest

from search.candidate_file import load_candidate_file
from search.config import study_config
from search.identity import identity_differences
from search.storage import TrialView
from search.study_table import StoredStudy, study_of
from search.table_file import read_table
from spaces import SPACES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies/results"


@pytest.fixture
def mnist_147k() -> StoredStudy:
    file = RESULTS / "mnist_147k.parquet"
    return study_of(read_table(file), str(file))


def test_a_study_goes_on_where_it_ended(mnist_147k: StoredStudy) -> None:
    config = study_config(space="mnist_small", study="mnist_147k", epochs=81, trials=60, max_gates=147_000)
    assert identity_differences(mnist_147k.cell.user_attrs["identity"], config.identity()) == []
    assert {TrialView(trial, "total").state for trial in mnist_147k.trials} == {"complete"}


def test_an_exported_configuration_is_its_trial_s(mnist_147k: StoredStudy) -> None:
    file = load_candidate_file(RESULTS / "mnist_147k.yaml")
    view = TrialView(mnist_147k.trials[file.origin.trial], "total")
    space = SPACES["mnist_small"]
    assert file.candidate == view.candidate
    assert (file.origin.params, file.seed) == (view.params, view.attrs["seed"])
    assert (file.origin.acc_discrete, file.origin.total_gates) == (view.acc_discrete, view.gates)
    assert set(file.origin.params) <= {parameter.name for parameter in space.parameters}


@pytest.mark.parametrize("file", ["README.md", "studies/README.md"])
def test_what_is_said_of_it(mnist_147k: StoredStudy, file: str) -> None:
    text = (ROOT / file).read_text()
    for number in (0, 1, 46, 48, 55):
        view = TrialView(mnist_147k.trials[number], "total")
        accuracy = f"{100 * (view.acc_discrete or 0.0):.2f} %"
        assert re.search(rf"{accuracy}[^%]* {view.gates:,}\b", text), number
    finalists = mnist_147k.cell.user_attrs["finalists"]
    test = [100 * value for value in finalists["test_discrete"]]
    interval = 4.303 * statistics.stdev(test) / math.sqrt(3)  # Student's t, two degrees of freedom, 95 %
    assert (finalists["winner"], finalists["asked"]["max-gates"]) == (48, 147_000)
    assert f"{statistics.mean(test):.2f} ± {interval:.2f} %" in text
