"""Spaces on MNIST."""

import math
from typing import Final

from . import conv_pyramid
from .candidate import DataSpec
from .space import Budget, Known, Range, Space, Value

PUBLISHED_MNIST_S: Final[dict[str, Value]] = {
    "k": 16,
    "num_blocks": 3,
    "kernel_1": 5,
    "kernel_2": 3,
    "kernel_3": 3,
    "tree_depth": 3,
    "num_dense": 3,
    "outputs_per_class": 512,
    "dense_residual": True,
    "tau_c": 6.5 / math.sqrt(512),
    "parametrization": "softmax",
    "lr": 0.01,
    "weight_decay": 0.0,
    "batch_size": 512,
    "decay_fraction": 0.0,
}

MNIST_SMALL: Final = Space(
    name="mnist_small",
    description="MNIST, networks around the published mnist_s (k=16): minutes a trial on one CPU core",
    data=DataSpec("mnist"),
    parameters=conv_pyramid.parameters(Range(4, 32, log=True), Range(64, 1024, log=True), (128, 256, 512)),
    build=conv_pyramid.build,
    known=(
        Known("published mnist_s", "Petersen et al. 2024, arXiv 2411.04732", PUBLISHED_MNIST_S),
        Known(
            "mnist_s with iwp gates",
            "input-wise parametrisation, arXiv 2510.03250, at the rate this project measured it to learn fastest",
            {key: value for key, value in PUBLISHED_MNIST_S.items() if key != "lr"}
            | {"parametrization": "iwp", "lr_iwp": 0.1, "batch_size": 128, "tau_c": 0.35, "decay_fraction": 0.4},
        ),
    ),
    budget=Budget(epochs=27),
)
