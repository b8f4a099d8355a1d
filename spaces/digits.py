"""Spaces on scikit-learn's bundled digits: a search that needs no download and ends in minutes."""

from typing import Final

from .candidate import DataSpec
from .mnist import ESTIMATORS, MNIST_PYRAMID, PUBLISHED_MNIST_S
from .space import Budget, Known, Range, Space

# Not shifts: a pixel is a third of one of the 8x8 that were enlarged, and gained nothing on three seeds.
PUBLISHED: Final = {name: value for name, value in PUBLISHED_MNIST_S.items() if name != "shift"}

DIGITS_SMALL: Final = Space(
    name="digits_small",
    description="scikit-learn's bundled digits shown as 28x28: seconds a trial, no download",
    data=DataSpec("digits", num_thresholds=3),
    parameters=MNIST_PYRAMID.parameters(Range(4, 32, log=True), Range(16, 512, log=True), (32, 64, 128), ESTIMATORS),
    build=MNIST_PYRAMID.build,
    known=(
        Known(
            "published mnist_s, batch 128",
            "Petersen et al. 2024, arXiv 2411.04732; batch 512 is half an epoch of these 1,197 images",
            PUBLISHED | {"batch_size": 128},
        ),
        Known(
            "iwp gates, two dense layers",
            "input-wise parametrisation, arXiv 2510.03250, at the rate this project measured it to learn fastest",
            {key: value for key, value in PUBLISHED.items() if key != "lr"}
            | {
                "num_dense": 2,
                "tau_c": 0.5,
                "parametrization": "iwp",
                "lr_iwp": 0.1,
                "batch_size": 32,
                "decay_fraction": 0.4,
            },
        ),
    ),
    budget=Budget(epochs=81),
)
