"""Optuna's samplers as studies use them: made anew for every trial, from a seed of its own."""

from collections.abc import Callable
from typing import Final

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

from .storage import experimental
from .training import derived_seed

POPULATION: Final = 16  # of a generation: Optuna's 50 are more trials than most studies here have


def _qmc(study_seed: int, trial: int) -> BaseSampler:
    """One sequence, of which each trial takes the next point: its seed must not change."""
    return QMCSampler(
        scramble=True,
        seed=derived_seed(study_seed, 1),
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    )


SAMPLERS: Final[dict[str, Callable[[int, int], BaseSampler]]] = {
    "tpe": lambda study_seed, trial: TPESampler(
        seed=derived_seed(study_seed, trial, 1), multivariate=True, group=True, constant_liar=True
    ),
    "nsga2": lambda study_seed, trial: NSGAIISampler(
        seed=derived_seed(study_seed, trial, 1), population_size=POPULATION
    ),
    "gp": lambda study_seed, trial: GPSampler(seed=derived_seed(study_seed, trial, 1)),
    "random": lambda study_seed, trial: RandomSampler(seed=derived_seed(study_seed, trial, 1)),
    "qmc": _qmc,
}


def sampler_for(name: str, study_seed: int, trial: int) -> BaseSampler:
    """A sampler for one trial: a seeded one that lived on would repeat its suggestions after a restart."""
    with experimental():
        return SAMPLERS[name](study_seed, trial)
