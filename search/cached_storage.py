"""The trials of one study in memory, for the only one that writes them.

Optuna's own cache keeps trials that are told and reads all others again, from six tables, whenever a sampler looks at
the study, and a sampler does so once for every group of parameters; and it stores each parameter by itself.
"""

import copy
import json
from collections.abc import Container, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

FINISHED = tuple(state for state in TrialState if state.is_finished())


class CachedStorage(BaseStorage):
    """Reads each trial once. One that is enqueued or asked is in memory until `store`, which stores it whole; whatever
    else is written is in the database before it is seen here.

    What others add to the study meanwhile is seen by the next session, or once it takes the number of a trial here.
    """

    def __init__(self, stored: BaseStorage, study_id: int) -> None:
        self._stored, self._study_id = stored, study_id
        self._held: set[int] = set()  # asked and not stored; the ids of new ones are below zero
        self._previews: dict[int, FrozenTrial] = {}
        self._read_all()

    def store(self, trial_id: int) -> FrozenTrial:
        """An asked trial, as it is stored from now on: a new one in one transaction, one that waited running at last.

        Its number is another one than before where somebody else has added a trial meanwhile; its seed, drawn with it,
        is not. Of one that waited a kill may leave some parameters, the sampler then draws the others anew.
        """
        if trial_id in self._held:
            self._held.remove(trial_id)
            trial_id = self._store_new(trial_id) if trial_id < 0 else self._store_waiting(trial_id)
        return self._trials[trial_id]

    def preview(self, trial_id: int, values: Sequence[float], constraints: dict[str, float]) -> None:
        """Until the trial is told, the study is shown as if it had been, with these values.

        Samplers then learn from what it has measured so far, however long it waits to go on; its own state is running.
        """
        seen = self.get_trial(trial_id)
        seen.state, seen.values, seen.datetime_complete = TrialState.COMPLETE, list(values), seen.datetime_start
        for name, value in constraints.items():
            if name not in seen.constraints:  # as it is where a driver was killed before it told the trial
                seen.set_constraint(name, value)
        self._previews[trial_id] = seen

    def _store_new(self, held_id: int) -> int:
        trial = self._changed(held_id)
        trial._trial_id = self._stored.create_new_trial(self._study_id, trial)
        del self._trials[held_id]
        self._unfinished.pop(held_id, None)
        has_its_number = self._stored.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        if has_its_number == trial._trial_id:
            self._keep(trial)
        else:
            self._read_all()
        return trial._trial_id

    def _store_waiting(self, trial_id: int) -> int:
        trial = self._trials[trial_id]
        for name, distribution in trial.distributions.items():
            value = distribution.to_internal_repr(trial.params[name])
            self._stored.set_trial_param(trial_id, name, value, distribution)
        for key, value in trial.system_attrs.items():
            self._stored.set_trial_system_attr(trial_id, key, value)
        for key, value in trial.user_attrs.items():
            self._stored.set_trial_user_attr(trial_id, key, value)
        self._stored.set_trial_state_values(trial_id, TrialState.RUNNING)
        if trial.state.is_finished():
            self._stored.set_trial_state_values(trial_id, trial.state, trial.values)
        self._keep(self._stored.get_trial(trial_id))
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One's own: Optuna's `Trial` notes in it what it stores."""
        trial = copy.copy(self._trials[trial_id])
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        trial.intermediate_values = dict(trial.intermediate_values)
        return trial

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._ids[trial_number]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states is None or any(state in states for state in FINISHED):
            trials = [*(self._trials | self._previews).values()]
        else:  # asked for at every trial, of which there may be many thousands
            trials = [self._previews.get(trial_id, trial) for trial_id, trial in self._unfinished.items()]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial = copy.deepcopy(template_trial) or optuna.trial.create_trial(state=TrialState.RUNNING)
        trial.number = len(self._trials)
        trial._trial_id = -1 - trial.number
        self._held.add(trial._trial_id)
        self._keep(trial)
        return trial._trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING:
            self._held.add(trial_id)  # one that waited was asked
        if trial_id not in self._held:
            changed = self._stored.set_trial_state_values(trial_id, state, values)
            self._keep(self._stored.get_trial(trial_id))  # the database says when it was
            self._previews.pop(trial_id, None)
            return changed
        trial = self._changed(trial_id)
        trial.state, trial.values = state, values
        if state == TrialState.RUNNING:
            trial.datetime_start = datetime.now()
        if state.is_finished():
            trial.datetime_complete = datetime.now()
            self._keep(trial)
        return True

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if trial_id not in self._held:
            self._stored.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        trial = self._changed(trial_id)
        trial.params = trial.params | {param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = trial.distributions | {param_name: distribution}

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        raise NotImplementedError("what a trial measures is stored a rung at a time, as an attribute")

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id not in self._held:
            self._stored.set_trial_user_attr(trial_id, key, value)
        trial = self._changed(trial_id)
        trial.user_attrs = trial.user_attrs | {key: _as_stored(value)}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id not in self._held:
            self._stored.set_trial_system_attr(trial_id, key, value)
        trial = self._changed(trial_id)
        trial.system_attrs = trial.system_attrs | {key: _as_stored(value)}

    def _read_all(self) -> None:
        trials = self._stored.get_all_trials(self._study_id, deepcopy=False)
        self._trials: dict[int, FrozenTrial] = {}  # by id, in the order of their numbers
        self._unfinished: dict[int, FrozenTrial] = {}  # of them
        self._ids: dict[int, int] = {}  # by number
        for trial in trials:
            self._keep(trial)

    def _keep(self, trial: FrozenTrial) -> None:
        self._trials[trial._trial_id] = trial
        self._ids[trial.number] = trial._trial_id
        if trial.state.is_finished():
            self._unfinished.pop(trial._trial_id, None)
        else:
            self._unfinished[trial._trial_id] = trial

    def _changed(self, trial_id: int) -> FrozenTrial:
        """The trial to be changed: a sampler that holds it keeps what it was."""
        trial = copy.copy(self._trials[trial_id])
        self._keep(trial)
        return trial

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


def cached(study: optuna.Study) -> tuple[optuna.Study, CachedStorage]:
    """The same study, its trials read once, and where they are held."""
    storage = CachedStorage(study._storage, study._study_id)
    return optuna.load_study(study_name=study.study_name, storage=storage), storage


def _as_stored(value: Any) -> Any:
    return json.loads(json.dumps(value))
