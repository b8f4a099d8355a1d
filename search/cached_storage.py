"""The trials of one study in memory, for the only one that writes them.

Optuna's own cache keeps trials that are told and reads all others again, from six tables, whenever a sampler looks at
the study, and a sampler does so once for every group of parameters.
"""

import copy
import json
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class CachedStorage(BaseStorage):
    """Reads each trial once. What is written is in the database before it is seen here.

    What others add to the study meanwhile is seen by the next session.
    """

    def __init__(self, stored: BaseStorage, study_id: int) -> None:
        self._stored = stored
        trials = stored.get_all_trials(study_id, deepcopy=False)
        self._trials = {trial._trial_id: trial for trial in trials}  # by number

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One's own: Optuna's `Trial` notes in it what it stores."""
        trial = copy.copy(self._trials[trial_id])
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        trial.intermediate_values = dict(trial.intermediate_values)
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._trials.values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = self._stored.create_new_trial(study_id, template_trial)
        self._read(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = self._stored.set_trial_state_values(trial_id, state, values)
        self._read(trial_id)  # the database says when it was
        return changed

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._stored.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        trial = self._copied(trial_id)
        trial.params = trial.params | {param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = trial.distributions | {param_name: distribution}

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._stored.set_trial_intermediate_value(trial_id, step, intermediate_value)
        trial = self._copied(trial_id)
        trial.intermediate_values = trial.intermediate_values | {step: intermediate_value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._stored.set_trial_user_attr(trial_id, key, value)
        trial = self._copied(trial_id)
        trial.user_attrs = trial.user_attrs | {key: _as_stored(value)}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._stored.set_trial_system_attr(trial_id, key, value)
        trial = self._copied(trial_id)
        trial.system_attrs = trial.system_attrs | {key: _as_stored(value)}

    def _read(self, trial_id: int) -> None:
        self._trials[trial_id] = self._stored.get_trial(trial_id)

    def _copied(self, trial_id: int) -> FrozenTrial:
        """The trial to be changed: a sampler that holds it keeps what it was."""
        self._trials[trial_id] = copy.copy(self._trials[trial_id])
        return self._trials[trial_id]

    # the study itself, and other studies: as stored

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._stored.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._stored.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._stored.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._stored.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._stored.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._stored.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._stored.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._stored.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._stored.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        return self._stored.get_all_studies()


def cached(study: optuna.Study) -> optuna.Study:
    """The same study, its trials read once."""
    storage = CachedStorage(study._storage, study._study_id)
    return optuna.load_study(study_name=study.study_name, storage=storage)


def _as_stored(value: Any) -> Any:
    return json.loads(json.dumps(value))
