"""What `make search` promises: a real search on two Ray workers that beats a linear model on the same bits."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from search.data import load_dataset
from search.report import accuracy, complete
from search.storage import stored_trials
from search.training import Planes, encode_dataset
from spaces import SPACES

ROOT = Path(__file__).parents[1]


def arguments() -> list[str]:
    """Those that the Makefile gives to search.run."""
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m search.run" in line]
    return shlex.split(line.split("-m search.run")[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_make_search_beats_logistic_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "search.run", *arguments()]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "2 workers" in done.stdout and "What next:" in done.stdout
    monkeypatch.chdir(tmp_path)
    trials = stored_trials("digits_small", "")
    assert len(trials) >= 20 and len(complete(trials)) >= 20
    best = max(map(accuracy, complete(trials)))

    data = encode_dataset(load_dataset("digits"), SPACES["digits_small"].data, torch.device("cpu"))

    def bits(planes: Planes) -> object:
        return planes.x.flatten(1).numpy()

    linear = LogisticRegression(max_iter=2000).fit(bits(data.train), data.train.y.numpy())
    assert best > linear.score(bits(data.validation), data.validation.y.numpy())
