"""One training loop, for trials and for final training. Needs PyTorch alone.

Everything random follows from (seed, epoch): a run restored from a checkpoint goes on bit for bit as if never stopped.
Shapes: N images, C planes (channels * thresholds), H W image.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from convlogic_core import ModelSpec, build_model, num_parameters, set_estimator, soft_evaluation
from convlogic_core.circuit import Circuit
from convlogic_core.encoding import thermometer_encode, thermometer_thresholds
from convlogic_core.model import conv_shapes
from convlogic_core.network import native_network
from convlogic_core.packed import is_packable, packed_predict
from convlogic_core.training_step import training_step
from spaces.candidate import Candidate, DataSpec, TrainSpec

from .data import Dataset, Images
from .errors import Failure, one_line

EVALUATION_BATCH = 1000
ESTIMATOR_NOISE, SHIFTS = 1, 2  # of an epoch: seeds derived on other paths than that of its data order


def _leave_the_compiler_out() -> None:
    """`torch.optim` imports torch's compiler, for seconds, only to say what it must not compile. Nothing is, here."""
    for function in vars(torch.optim.Optimizer).values():
        inner = getattr(function, "__wrapped__", None)
        if inner is not None and not hasattr(inner, "__dynamo_disable"):
            inner.__dynamo_disable = inner


_leave_the_compiler_out()


class Diverged(Exception):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch measured. Accuracies are fractions of the whole validation set; gap is soft - discrete.

    Gates are counted at the last epoch of a rung and of a final training, see `Circuit.counts`; None elsewhere.
    """

    epoch: int
    loss: float
    acc_soft: float
    acc_discrete: float
    images_per_second: float
    timestamp_ms: int
    core_gates: int | None = None
    total_gates: int | None = None
    depth: int | None = None

    def metrics(self) -> dict[str, float]:
        """Under the names they are logged by."""
        metrics = {
            "train/loss": self.loss,
            "val/acc_soft": self.acc_soft,
            "val/acc_discrete": self.acc_discrete,
            "val/gap": self.acc_soft - self.acc_discrete,
            "images_per_second": self.images_per_second,
        }
        counts = {"gates/core": self.core_gates, "gates/total": self.total_gates, "gates/depth": self.depth}
        return metrics | {name: count for name, count in counts.items() if count is not None}

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Planes:
    """A split as binary planes on the training device: x (N, C, H, W) uint8 in {0, 1}, y (N,) int64."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class EncodedDataset:
    """Training and validation planes, and the thresholds (channels, T) that made them, for test data later."""

    train: Planes
    validation: Planes
    thresholds: Tensor


def encode(images: Images, thresholds: Tensor, device: torch.device) -> Planes:
    """Binary planes of some images."""
    planes = thermometer_encode(_as_tensor(images), thresholds)
    return Planes(planes.to(device), torch.tensor(images.labels).to(device))


def encode_dataset(dataset: Dataset, spec: DataSpec, device: torch.device) -> EncodedDataset:
    """Thresholds from the training images, applied to training and validation."""
    thresholds = thermometer_thresholds(_as_tensor(dataset.train), spec.num_thresholds, spec.threshold_kind)
    return EncodedDataset(
        encode(dataset.train, thresholds, device), encode(dataset.validation, thresholds, device), thresholds
    )


def _as_tensor(images: Images) -> Tensor:
    # torch warns of arrays it may not write, as those that Ray maps from its object store are
    return torch.from_numpy(np.require(images.images, requirements="W"))


def accuracy(model: nn.Module, planes: Planes) -> float:
    """Fraction of all images whose largest class score is the label's; of equal scores the lowest class counts.

    The model computes as its mode says: discrete in eval mode, soft within `soft_evaluation`.
    """
    if planes.x.device.type == "cpu" and is_packable(model):
        return int((packed_predict(model, planes.x) == planes.y).sum()) / len(planes.y)
    correct = torch.zeros((), dtype=torch.int64, device=planes.y.device)
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        for x, y in zip(planes.x.split(EVALUATION_BATCH), planes.y.split(EVALUATION_BATCH), strict=True):
            correct += (model(x.to(dtype)).argmax(-1) == y).sum()
    return int(correct) / len(planes.y)


def soft_and_discrete_accuracy(model: nn.Module, planes: Planes) -> tuple[float, float]:
    """Accuracy of the soft and of the discrete network of the same weights."""
    model.eval()
    network = native_network(model, planes.x.shape[1:])
    if network:
        soft = int((network.scores(planes.x).argmax(-1) == planes.y).sum()) / len(planes.y)
    else:
        with soft_evaluation(model):
            soft = accuracy(model, planes)
    return soft, accuracy(model, planes)


class TrainingRun:
    """A network in training: `run_epoch` until the budget is spent, `checkpoint` whenever one likes.

    Args:
        candidate: what to train.
        data: its dataset, encoded, on the device to train on.
        seed: of wiring, weights and data order.
    """

    def __init__(self, candidate: Candidate, data: EncodedDataset, seed: int) -> None:
        self.candidate, self.data, self.seed = candidate, data, seed
        self.epoch = 0
        device = data.train.x.device
        self.model = build_model(candidate.model, seed).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=candidate.train.lr,
            weight_decay=candidate.train.weight_decay,
            fused=True,
        )
        x = data.train.x  # shifted in place: a step goes on reading where it began
        self._images = x.clone(memory_format=torch.contiguous_format) if candidate.train.shift else x
        self.step = training_step(self.model, self.optimizer, self._images, data.train.y)

    def run_epoch(self) -> EpochRecord:
        """Train one epoch, evaluate on validation.

        Raises:
            Diverged: the loss became NaN or infinite.
        """
        start = time.perf_counter()
        train, spec = self.data.train, self.candidate.train
        num_images = len(train.y)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(num_images, generator=generator).to(train.y.device)
        steps = math.ceil(num_images / spec.batch_size)
        total_loss = torch.zeros((), device=train.y.device)
        if spec.shift:
            shift(train.x, spec.shift, derived_seed(self.seed, self.epoch, SHIFTS), out=self._images)
        torch.manual_seed(derived_seed(self.seed, self.epoch, ESTIMATOR_NOISE))
        for step in range(steps):
            batch = order[step * spec.batch_size : (step + 1) * spec.batch_size]
            progress = (self.epoch + step / steps) / spec.epochs
            set_estimator(self.model, estimator_at(spec, progress))
            total_loss += self.step(batch, learning_rate(spec.lr, spec.decay_fraction, progress))
        mean_loss = float(total_loss) / num_images
        duration_s = time.perf_counter() - start
        what = "" if math.isfinite(mean_loss) else f"the loss is {mean_loss}"
        if not all(bool(weights.isfinite().all()) for weights in self.model.parameters()):
            what = what or "weights are infinite or NaN"  # which discrete gates, and so the loss, may hide
        if what:
            raise Diverged(f"{what} in epoch {self.epoch + 1}: lr {spec.lr:g} is likely too high")
        self.epoch += 1
        soft, discrete = soft_and_discrete_accuracy(self.model, self.data.validation)
        return EpochRecord(self.epoch, mean_loss, soft, discrete, num_images / duration_s, time.time_ns() // 1_000_000)

    def with_gates(self, record: EpochRecord) -> EpochRecord:
        """The record of the last epoch with the gates that the network has after it."""
        counts = Circuit.from_model(self.model, self.candidate.model.input_shape, self.data.thresholds).counts
        return replace(record, core_gates=counts.core, total_gates=counts.total, depth=counts.depth)

    def checkpoint(self) -> bytes:
        """Weights, wiring, optimizer state and position, as safetensors."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["epoch"] = torch.tensor(self.epoch)
        tensors["seed"] = torch.tensor(self.seed)
        tensors["candidate"] = self._digest()
        data: bytes = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
        return data

    def restore(self, checkpoint: bytes) -> None:
        """Go on where `checkpoint` was taken.

        Raises:
            Failure: not a checkpoint of this candidate.
        """
        try:
            tensors = safetensors.torch.load(checkpoint)
            if int(tensors["seed"]) != self.seed:
                raise Failure(f"the checkpoint is of seed {int(tensors['seed'])}, this run has seed {self.seed}")
            if not torch.equal(tensors["candidate"], self._digest()):
                raise Failure("not a checkpoint of this configuration: it is another's")
            self.model.load_state_dict(_part(tensors, "model."))
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _part(tensors, "optimizer.").items():
                number, _, key = name.partition(".")
                state.setdefault(int(number), {})[key] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.epoch = int(tensors["epoch"])
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise Failure(f"not a checkpoint of this configuration: {one_line(error)}") from error

    def _digest(self) -> Tensor:
        """Of the candidate: shapes alone would let another kernel size or rate pass."""
        return torch.tensor([*hashlib.sha256(json.dumps(self.candidate.to_json()).encode()).digest()])


def shift(x: Tensor, most: int, seed: int, out: Tensor) -> None:
    """Every image moved by up to `most` pixels along rows and along columns; zeros come in.

    Args:
        x: (N, C, H, W) planes.
        out: (N, C, H, W), written.
    """
    offsets = torch.randint(2 * most + 1, (2, len(x)), generator=torch.Generator().manual_seed(seed)).to(x.device)
    for images, moved, (dy, dx) in zip(
        x.split(EVALUATION_BATCH), out.split(EVALUATION_BATCH), offsets.split(EVALUATION_BATCH, dim=1), strict=True
    ):
        windows = nn.functional.pad(images, (most,) * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
        moved.copy_(windows[torch.arange(len(images), device=x.device), :, dy, dx])


def learning_rate(lr: float, decay_fraction: float, progress: float) -> float:
    """Constant, then on a cosine to zero over the last `decay_fraction` of the budget; progress in [0, 1)."""
    decayed = (progress - (1 - decay_fraction)) / decay_fraction if decay_fraction else 0.0
    return lr if decayed <= 0 else lr * (1 + math.cos(math.pi * decayed)) / 2


def estimator_at(spec: TrainSpec, progress: float) -> str:
    """The spec's estimator, then "ste" over the last `hard_finish` of the budget; progress in [0, 1)."""
    return "ste" if progress >= 1 - spec.hard_finish else spec.estimator


def derived_seed(seed: int, *path: int) -> int:
    """A seed that follows from another and a number or more (trial, epoch); below 2**32."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])


def check_memory(spec: ModelSpec, batch_size: int) -> None:
    """Refuse a network that cannot fit before anything is allocated.

    Raises:
        Failure: a lower bound of what training needs exceeds the memory that is available.
    """
    needed = training_bytes(spec, batch_size)
    available = _available_bytes()
    if available is not None and needed > available:
        raise Failure(
            f"training needs at least {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are available: "
            f"lower k (it has {num_parameters(spec):,} parameters), batch_size={batch_size} or the number of workers"
        )


def training_bytes(spec: ModelSpec, batch_size: int) -> int:
    """Least memory of a training step: weights, gradients and two moments, every layer's output and its gradient."""
    features = math.prod(spec.input_shape) + sum(layer.out_dim for layer in spec.dense)
    shape = spec.input_shape
    for block in spec.conv:
        shape = conv_shapes(block, shape).pooled
        features += math.prod(shape)
    return 16 * num_parameters(spec) + 8 * features * batch_size


def _available_bytes() -> int | None:
    """Memory that can still be had, where the system says (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib.get("MemAvailable", 0) * 1024 or None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
