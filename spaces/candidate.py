"""Candidate: everything that defines one training run but its seed and the machine. Frozen and JSON-serialisable."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from convlogic_core import ModelSpec
from convlogic_core.encoding import ThresholdKind
from convlogic_core.estimators import check_estimator
from convlogic_core.model import Strict


@dataclass(frozen=True)
class DataSpec(Strict):
    """Which images, and how they become bits.

    Args:
        dataset: a name that `search.data` knows.
        num_thresholds: thermometer thresholds a channel.
        threshold_kind: "uniform" or "quantile" (of the training images).
        limit_train: only the first n training images of the fixed split; None is all.
        images_sha256: of a user's own training images, that others in their place are noticed; None for the datasets
            that never change, and where nobody asks.

    Raises:
        ValueError: a number of thresholds that bytes cannot have.
    """

    dataset: str
    num_thresholds: int = 1
    threshold_kind: ThresholdKind = "uniform"
    limit_train: int | None = None
    images_sha256: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_thresholds <= 255:
            raise ValueError(f"num_thresholds={self.num_thresholds} must be 1 to 255, the bytes a pixel can reach")


@dataclass(frozen=True)
class TrainSpec(Strict):
    """How it is trained: AdamW on cross-entropy.

    Args:
        lr: learning rate.
        batch_size: images a step.
        epochs: the full budget.
        weight_decay: AdamW's, on the logits.
        decay_fraction: the last part of the full budget over which lr falls to zero on a cosine; before it lr is
            constant, so that rungs compare like with like. 0 is no decay.
        estimator: "soft", "gumbel" or "ste", see `convlogic_core.estimators`.
        hard_finish: the last part of the full budget, trained with "ste" whatever the estimator: the network settles
            into the gates that it will keep. 0 is none.
        shift: anew for each epoch, every training image is moved up or down and left or right by as many pixels at
            most, at random; what comes in is dark. 0 leaves the images as they are.

    Raises:
        ValueError: a value out of its range.
    """

    lr: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0
    decay_fraction: float = 0.0
    estimator: str = "soft"
    hard_finish: float = 0.0
    shift: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr={self.lr} must be a positive number")
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size={self.batch_size} and epochs={self.epochs} must be at least 1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay={self.weight_decay} must be a number of at least 0")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction={self.decay_fraction} must be between 0 and 1")
        check_estimator(self.estimator)
        if not 0 <= self.hard_finish <= 1:
            raise ValueError(f"hard_finish={self.hard_finish} must be between 0 and 1")
        if self.shift < 0:
            raise ValueError(f"shift={self.shift} must be at least 0")


@dataclass(frozen=True)
class Candidate(Strict):
    """One point of a space, resolved.

    Raises:
        ValueError: images that a shift could move away altogether.
    """

    data: DataSpec
    model: ModelSpec
    train: TrainSpec

    def __post_init__(self) -> None:
        rows, columns = self.model.input_shape[1:]
        if self.train.shift >= min(rows, columns):
            raise ValueError(f"shift={self.train.shift} must be less than the image's {min(rows, columns)} pixels")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; what came later only where it is used: it is part of identities."""
        json = asdict(self)
        if self.data.images_sha256 is None:
            del json["data"]["images_sha256"]
        if self.train.shift == 0:
            del json["train"]["shift"]
        return json
