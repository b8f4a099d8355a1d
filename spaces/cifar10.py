"""Spaces on CIFAR-10."""

import math
from typing import Final

from .candidate import DataSpec
from .conv_pyramid import ConvPyramid
from .space import Budget, Known, Range, Space, Value

CIFAR10_PYRAMID: Final = ConvPyramid(multipliers=(1, 4, 16, 32), num_blocks=(3, 4), kernels=(3, 5), pads_first=True)

PUBLISHED_CIFAR10_S: Final[dict[str, Value]] = {
    "k": 32,
    "num_blocks": 4,
    "kernel_1": 3,
    "kernel_2": 3,
    "kernel_3": 3,
    "kernel_4": 3,
    "tree_depth": 3,
    "num_dense": 3,
    "outputs_per_class": 1024,
    "dense_residual": True,
    "tau_c": 20 / math.sqrt(1024),
    "parametrization": "softmax",
    "lr": 0.02,
    "weight_decay": 0.002,
    "batch_size": 128,
    "decay_fraction": 0.0,
    "estimator": "soft",
    "hard_finish": 0.0,
    "shift": 0,
}

CIFAR10_SMALL: Final = Space(
    name="cifar10_small",
    description="CIFAR-10, networks around the published cifar10_s (k=32): five times mnist_small's gates an image",
    data=DataSpec("cifar10", num_thresholds=3),
    parameters=CIFAR10_PYRAMID.parameters(
        Range(8, 64, log=True), Range(256, 2048, log=True), (128, 256, 512), ("soft", "gumbel", "ste"), (0, 1)
    ),
    build=CIFAR10_PYRAMID.build,
    known=(Known("published cifar10_s", "Petersen et al. 2024, arXiv 2411.04732", PUBLISHED_CIFAR10_S),),
    budget=Budget(epochs=27),
)
