"""Spaces on MNIST."""

import math
from typing import Final

from .candidate import DataSpec
from .conv_pyramid import ConvPyramid
from .space import Budget, Known, Range, Space, Value

MNIST_PYRAMID: Final = ConvPyramid(multipliers=(1, 3, 9), num_blocks=(2, 3), kernels=(3, 5, 7), pads_first=False)

# Not "gumbel": in networks as deep and narrow as these it hardly learns within a budget as short as theirs. Discrete
# validation accuracy after 6 epochs of MNIST (k=8, batch 128, the known rates, one seed): 13.7 % with softmax gates and
# 49.6 % with iwp gates, where "ste" reached 84.8 % and 87.0 %.
ESTIMATORS: Final = ("soft", "ste")

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
    "estimator": "soft",
    "hard_finish": 0.0,
    "shift": 0,
}
MNIST_S_WITH_IWP: Final[dict[str, Value]] = {
    **{key: value for key, value in PUBLISHED_MNIST_S.items() if key != "lr"},
    "parametrization": "iwp",
    "lr_iwp": 0.1,
    "batch_size": 128,
    "tau_c": 0.35,
    "decay_fraction": 0.4,
}

PUBLISHED_MNIST_M: Final[dict[str, Value]] = PUBLISHED_MNIST_S | {
    "k": 64,
    "outputs_per_class": 2048,
    "tau_c": 28 / math.sqrt(2048),
    "batch_size": 256,
}

MNIST_SMALL: Final = Space(
    name="mnist_small",
    description="MNIST, networks around the published mnist_s (k=16): minutes a trial on one CPU core",
    data=DataSpec("mnist"),
    parameters=MNIST_PYRAMID.parameters(
        Range(4, 32, log=True), Range(64, 1024, log=True), (128, 256, 512), ESTIMATORS, (0, 1)
    ),
    build=MNIST_PYRAMID.build,
    known=(
        Known("published mnist_s", "Petersen et al. 2024, arXiv 2411.04732", PUBLISHED_MNIST_S),
        Known(
            "mnist_s with iwp gates",
            "input-wise parametrisation, arXiv 2510.03250, at the rate this project measured it to learn fastest",
            MNIST_S_WITH_IWP,
        ),
        Known(
            "mnist_s with iwp gates, hard finish",
            "straight-through for the last fifth gave 0.1 points more in this project's first measurements",
            MNIST_S_WITH_IWP | {"hard_finish": 0.2},
        ),
    ),
    budget=Budget(epochs=27),
)

MNIST_MEDIUM: Final = Space(
    name="mnist_medium",
    description="MNIST, networks around the published mnist_m (k=64): for a GPU, or for hours",
    data=DataSpec("mnist"),
    parameters=MNIST_PYRAMID.parameters(
        Range(16, 128, log=True), Range(256, 4096, log=True), (128, 256, 512), ESTIMATORS, (0, 1)
    ),
    build=MNIST_PYRAMID.build,
    known=(Known("published mnist_m", "Petersen et al. 2024, arXiv 2411.04732", PUBLISHED_MNIST_M),),
    budget=Budget(epochs=27),
)
