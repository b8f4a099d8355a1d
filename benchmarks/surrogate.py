"""Trials of digits_small that take no time: for any configuration, what training it might have measured at each rung.

A random forest learns, from the real curves in `results/digits_curves.json`, the accuracies at all rungs together, the
total gates and the duration. A forest alone is too smooth: to its forecast comes what it missed of one real trial
(out of bag, all rungs together), so that curves cross as the real ones do, and the noise of the validation images.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from convlogic_core import raw_gates
from search.data import find_source
from search.jobs import Job
from search.training import EpochRecord
from spaces import SPACES
from spaces.candidate import Candidate

from .table import RESULTS

CURVES: Final = RESULTS / "digits_curves.json"
SPACE: Final = SPACES["digits_small"]
NUM_VALIDATION: Final = 300  # images
NUM_TREES: Final = 40


@dataclass(frozen=True)
class Forecast:
    """Of one trial: accuracy without the noise of the validation images and total gates by rung; seconds an epoch."""

    accuracy: dict[int, float]
    gates: dict[int, int]
    epoch_s: float


class Surrogate:
    """Fitted to the committed curves."""

    def __init__(self) -> None:
        self.rungs = SPACE.budget.rungs
        self.trials: list[dict[str, Any]] = json.loads(CURVES.read_text())["trials"]
        info = find_source(SPACE.data.dataset).info
        self.candidates = [SPACE.build(trial["params"], SPACE.data, info, SPACE.budget.epochs) for trial in self.trials]
        x = np.array([features(candidate) for candidate in self.candidates])
        y = np.array(
            [self._targets(trial, candidate) for trial, candidate in zip(self.trials, self.candidates, strict=True)]
        )
        self._forest = RandomForestRegressor(
            NUM_TREES, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=0
        )
        self._forest.fit(x, y)
        self._missed = y - self._forest.oob_prediction_
        self._known: dict[tuple[str, int], Forecast] = {}

    def _targets(self, trial: dict[str, Any], candidate: Candidate) -> list[float]:
        """Per rung the logit of the accuracy and the log of total over raw gates, then the log of the seconds."""
        accuracies = np.clip([trial["acc_discrete"][rung - 1] for rung in self.rungs], 0.02, 0.998)
        gates = np.array([trial["total_gates"].get(str(rung), 1) for rung in self.rungs])
        share = np.log(gates / raw_gates(candidate.model))
        return [*np.log(accuracies / (1 - accuracies)), *share, np.log(trial["duration_s"] / SPACE.budget.epochs)]

    def forecast(self, candidate: Candidate, seed: int) -> Forecast:
        """The same for the same candidate and seed."""
        key = (str(candidate), seed)
        if key not in self._known:
            rng = np.random.default_rng(seed)
            missed = self._missed[rng.integers(len(self._missed))]
            x = np.array([features(candidate)], np.float32)
            # as the forest's own predict does, without ten times as much work around it
            y = np.mean([tree.predict(x, check_input=False)[0] for tree in self._forest.estimators_], axis=0) + missed
            num = len(self.rungs)
            accuracy = 1 / (1 + np.exp(-y[:num]))
            gates = raw_gates(candidate.model) * np.exp(np.minimum(y[num : 2 * num], 0.5))
            self._known[key] = Forecast(
                dict(zip(self.rungs, accuracy.tolist(), strict=True)),
                dict(zip(self.rungs, gates.astype(int).tolist(), strict=True)),
                float(np.exp(y[-1] - missed[-1])),
            )
        return self._known[key]

    def measure(self, job: Job, epoch: int) -> EpochRecord:
        """A rung as it would have been measured; other epochs have no meaning here."""
        forecast = self.forecast(job.candidate, job.seed)
        rng = np.random.default_rng([job.seed, epoch])
        accuracy = rng.binomial(NUM_VALIDATION, forecast.accuracy[epoch]) / NUM_VALIDATION
        gates = forecast.gates[epoch]
        return EpochRecord(epoch, 1.0, accuracy, accuracy, 1.0, 1_700_000_000_000 + epoch, gates, gates, 1)

    def epoch_s(self, job: Job) -> float:
        return self.forecast(job.candidate, job.seed).epoch_s


def features(candidate: Candidate) -> list[float]:
    """What a forest sees of a candidate: every searched choice as a number, rates and sizes as logarithms."""
    model, train = candidate.model, candidate.train
    kernels = [block.kernel for block in model.conv] + [0, 0, 0]
    return [
        np.log(model.conv[0].out_channels),
        len(model.conv),
        *kernels[:3],
        model.conv[0].tree_depth,
        len(model.dense),
        np.log(model.dense[-1].out_dim),
        np.log(raw_gates(model)),
        np.log(model.tau),
        model.parametrization == "iwp",
        np.log(train.lr),
        np.log(train.lr) if model.parametrization == "iwp" else -5.0,
        train.weight_decay,
        train.batch_size,
        train.decay_fraction,
        train.estimator == "ste",
        train.hard_finish,
    ]
