"""Optuna's samplers as studies use them: made anew for every trial, from a seed of its own."""

from collections.abc import Callable
from typing import Final

from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from spaces.space import Range, Space

from .storage import experimental
from .training import derived_seed

POPULATION: Final = 16  # of a generation: Optuna's 50 are more trials than most studies here have


class _WholeSpaceQMC(QMCSampler):
    """One sequence over all numbers of a space, those included that a trial has no use for: Optuna's own takes the
    parameters of an earlier trial, and begins again at the first point whenever these change. A trial's point is its
    number's: Optuna's own count would go on where a kill made a trial ask twice.
    """

    def __init__(self, space: Space, study_seed: int, trial: int) -> None:
        super().__init__(
            scramble=True,
            seed=derived_seed(study_seed, 1),  # the same for all trials: each takes a point of its own
            independent_sampler=RandomSampler(seed=derived_seed(study_seed, trial, 1)),
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        )
        self._trial = trial
        self._space = {
            parameter.name: _distribution(parameter.domain)
            for parameter in space.parameters
            if isinstance(parameter.domain, Range)
        }

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._trial


class _OrderedNSGAII(NSGAIISampler):
    """Parents by number, whoever found them: Optuna stores their ids, and what a kill lets be read from them is in
    another order. A trial that was a parent with what it had measured, and failed since, is none any more.
    """

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        parents = super().get_parent_population(study, generation)
        return sorted(
            (trial for trial in parents if trial.state == TrialState.COMPLETE), key=lambda trial: trial.number
        )


def _distribution(domain: Range) -> BaseDistribution:
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


SAMPLERS: Final[dict[str, Callable[[Space, int, int], BaseSampler]]] = {
    "tpe": lambda space, study_seed, trial: TPESampler(
        seed=derived_seed(study_seed, trial, 1), multivariate=True, group=True, constant_liar=True
    ),
    "nsga2": lambda space, study_seed, trial: _OrderedNSGAII(
        seed=derived_seed(study_seed, trial, 1), population_size=POPULATION
    ),
    "gp": lambda space, study_seed, trial: GPSampler(seed=derived_seed(study_seed, trial, 1)),
    "random": lambda space, study_seed, trial: RandomSampler(seed=derived_seed(study_seed, trial, 1)),
    "qmc": _WholeSpaceQMC,
}


def sampler_for(name: str, space: Space, study_seed: int, trial: int) -> BaseSampler:
    """A sampler for one trial: a seeded one that lived on would repeat its suggestions after a restart."""
    with experimental():
        return SAMPLERS[name](space, study_seed, trial)
