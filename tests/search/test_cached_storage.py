"""The trials that a driver holds in memory are the ones in the database, at any time."""

from dataclasses import replace
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from search import samplers
from search.cached_storage import cached
from search.jobs import Job
from search.storage import TrialView
from search.study import StudyDriver
from search.training import EpochRecord
from search.workers import Event
from spaces import SPACES, Known
from tests.search.tiny import BASELINE, INFO, FakeExecutor, Runs, broken

OPTIONS: dict[str, Any] = {"trials": 14, "gates": "total", "max_gates": 1300, "seed": 2}


class Compare:
    """Observer that reads the whole study anew whenever something happens."""

    driver: StudyDriver
    stored: optuna.Study

    def __init__(self) -> None:
        self.num_trials: list[int] = []

    def trial_changed(self, trial: TrialView) -> None:
        held = [self.driver._storage.get_trial(trial_id) for trial_id in self.driver._ids.values()]
        assert held == self.stored.get_trials()
        shown = self.driver.study.get_trials()
        assert [each.number for each in shown] == [*range(len(held))]
        for states in ((TrialState.WAITING,), (TrialState.RUNNING, TrialState.WAITING), (TrialState.COMPLETE,)):
            assert self.driver.study.get_trials(states=states) == [each for each in shown if each.state in states]
        self.num_trials.append(len(held))

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None: ...

    def tick(self) -> None: ...


def fails_once(job: Job, events: list[Event]) -> list[Event]:
    return broken(job, False, "nan") if job.trial == 3 else events


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc"])
def test_what_is_held_is_what_is_stored(run_sqlite: Runs, sampler: str) -> None:
    """Known, sampled, rejected, stopped, failed and infeasible trials, and those of an earlier session."""
    for trials in (11, OPTIONS["trials"]):
        config = run_sqlite.config(**{**OPTIONS, "trials": trials}, sampler=sampler)
        compare = Compare()
        compare.stored = run_sqlite.study(config)
        study = run_sqlite.study(config)
        compare.driver = StudyDriver(config, study, INFO, FakeExecutor(fails_once, num_workers=3), [compare])
        compare.driver.run()
        assert len(compare.num_trials) > 3
    assert compare.num_trials[0] > 11


def test_trials_are_read_once(run_sqlite: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a sampler looks at them."""
    config = run_sqlite.config(**OPTIONS)
    study = run_sqlite.study(config)
    driver = StudyDriver(config, study, INFO, FakeExecutor(), [])
    with monkeypatch.context() as patch:
        patch.setattr(study._storage, "get_all_trials", None)
        driver.run()
    assert len(study.get_trials()) >= OPTIONS["trials"]


def test_a_trial_in_hand_stays_as_it_was(run_sqlite: Runs) -> None:
    study, storage = cached(run_sqlite.study(run_sqlite.config()))
    trial = study.ask()
    before = study.get_trials(deepcopy=False)[0]
    trial.suggest_int("k", 1, 8, log=True)
    trial.set_user_attr("pair", (1, {2: 3}))
    trial.set_constraint("gates", -1)
    assert (before.params, before.user_attrs, before.constraints) == ({}, {}, {})
    after = study.get_trials()[0]
    assert (list(after.params), after.constraints) == (["k"], {"gates": -1.0})
    assert after.user_attrs == {"pair": [1, {"2": 3}]}  # as JSON gives it back
    storage.store(trial._trial_id)
    study.tell(0, [0.5, 10.0])
    assert study.get_trials(deepcopy=False)[0].values == [0.5, 10.0]
    assert after.state == optuna.trial.TrialState.RUNNING


def test_a_trial_is_stored_whole_or_not_at_all(run_sqlite: Runs) -> None:
    config = run_sqlite.config()
    study, storage = cached(run_sqlite.study(config))
    trial = study.ask()
    trial.suggest_int("k", 1, 8, log=True)
    trial.set_user_attr("seed", 7)
    assert run_sqlite.study(config).get_trials() == []
    stored = storage.store(trial._trial_id)
    assert run_sqlite.study(config).get_trials() == study.get_trials() == [stored]
    assert storage.store(stored._trial_id) == stored  # nothing more to store


def test_a_trial_that_waited_is_stored_running_at_last(run_sqlite: Runs) -> None:
    config = run_sqlite.config()
    run_sqlite.study(config).enqueue_trial({"k": 3})
    study, storage = cached(run_sqlite.study(config))
    trial = study.ask()
    assert trial.suggest_int("k", 1, 8, log=True) == 3
    trial.set_user_attr("seed", 7)
    assert run_sqlite.study(config).get_trials()[0].state == optuna.trial.TrialState.WAITING
    stored = storage.store(trial._trial_id)
    assert (stored.state, stored.params, stored.user_attrs) == (optuna.trial.TrialState.RUNNING, {"k": 3}, {"seed": 7})
    assert run_sqlite.study(config).get_trials() == study.get_trials() == [stored]


def test_what_somebody_else_adds_meanwhile_moves_a_trial_to_the_next_number(run_sqlite: Runs) -> None:
    config = run_sqlite.config()
    study, storage = cached(run_sqlite.study(config))
    trial = study.ask()
    run_sqlite.study(config).enqueue_trial({"k": 3})
    assert trial.number == 0
    assert storage.store(trial._trial_id).number == 1
    assert study.get_trials() == run_sqlite.study(config).get_trials()
    assert study.ask().number == 0  # which waited


def test_a_study_goes_on_when_somebody_enqueues_meanwhile(run_sqlite: Runs) -> None:
    config = run_sqlite.config(trials=6)
    study = run_sqlite.study(config)

    def enqueue(job: Job, events: list[Event]) -> list[Event]:
        if job.trial == 1 and job.until_epoch == 1:
            run_sqlite.study(config).enqueue_trial({"k": 3})
        return events

    StudyDriver(config, study, INFO, FakeExecutor(enqueue), []).run()
    trials = run_sqlite.study(config).get_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.state for trial in trials} == {optuna.trial.TrialState.COMPLETE}
    assert [trial.params["k"] for trial in trials if "fixed_params" in trial.system_attrs][-1] == 3


def test_samplers_see_what_a_trial_has_measured_until_it_is_told(run_sqlite: Runs) -> None:
    config = run_sqlite.config()
    study, storage = cached(run_sqlite.study(config))
    trial = study.ask()
    trial.suggest_int("k", 1, 8, log=True)
    trial_id = storage.store(trial._trial_id)._trial_id
    storage.preview(trial_id, [0.4, 20.0], {"gates": 3.0})
    (seen,) = study.get_trials()
    assert (seen.state, seen.values, seen.constraints) == (
        optuna.trial.TrialState.COMPLETE,
        [0.4, 20.0],
        {"gates": 3.0},
    )
    assert (seen.number, seen.params) == (0, trial.params)
    assert study.get_trials(states=(optuna.trial.TrialState.RUNNING,)) == []
    assert run_sqlite.study(config).get_trials() == [storage.get_trial(trial_id)]  # running, without values
    study.tell(0, [0.5, 10.0])
    assert study.get_trials() == run_sqlite.study(config).get_trials()
    assert study.get_trials()[0].values == [0.5, 10.0]


def test_parameters_are_stored_together(run_sqlite: Runs) -> None:
    """Optuna itself asks, for each, whether an earlier trial drew it from the same distribution, and writes it."""
    study, storage = cached(run_sqlite.study(run_sqlite.config()))
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    for num_params in (3, 12):  # of the first, no earlier trial has any
        trial = study.ask()
        for index in range(num_params):
            trial.suggest_int(f"p{index}", 1, 9)
        statements.clear()
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
        try:
            stored = storage.store(trial._trial_id)
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
        of_params = [index for index, statement in enumerate(statements) if "trial_params" in statement]
        assert all(statements[index].startswith("INSERT") for index in of_params)
        assert of_params == [*range(of_params[0], of_params[-1] + 1)]
    assert stored.params == run_sqlite.study(run_sqlite.config()).get_trials()[1].params


def test_a_driver_shows_every_rung_to_the_sampler(run_sqlite: Runs) -> None:
    """Those that wait and those that went on."""
    options = {**OPTIONS, "trials": 9, "min_accuracy": 0.2}

    class Watch(Compare):
        def trial_changed(self, trial: TrialView) -> None:
            seen = self.driver.study.get_trials(deepcopy=False)[trial.number]
            if trial.records and trial.state != "failed":
                assert seen.values == [trial.acc_discrete, trial.gates]
                assert trial.acc_discrete is not None and trial.gates is not None
                limits = {"gates/total": trial.gates - 1300.0, "val/acc_discrete": 0.2 - trial.acc_discrete}
                assert seen.constraints == limits
                alike = ("number", "params", "distributions", "datetime_start")
                assert [getattr(seen, name) for name in alike] == [getattr(trial.frozen, name) for name in alike]
                assert trial.frozen.system_attrs.items() <= seen.system_attrs.items()
                self.num_trials.append(trial.state == "running")

    watch = Watch()
    for trials in (6, 9):
        config = run_sqlite.config(**{**options, "trials": trials})
        watch.driver = StudyDriver(config, run_sqlite.study(config), INFO, FakeExecutor(num_workers=2), [watch])
        watch.driver.run()
    assert any(watch.num_trials)


@pytest.mark.parametrize("seed", range(3))
def test_a_parent_that_fails_after_it_was_seen_is_none_any_more(
    run_sqlite: Runs, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """NSGA-II keeps the numbers of its parents; one that was seen with its first rung may have no values in the end."""
    monkeypatch.setattr(samplers, "POPULATION", 4)

    def fails_late(job: Job, events: list[Event]) -> list[Event]:
        return broken(job, False, "nan") if job.until_epoch == 3 and job.trial % 3 == 1 else events

    config = run_sqlite.config(trials=40, sampler="nsga2", seed=seed)
    StudyDriver(config, run_sqlite.study(config), INFO, FakeExecutor(fails_late, num_workers=6), []).run()
    trials = run_sqlite.study(config).get_trials()
    assert {trial.state.name for trial in trials} == {"COMPLETE", "FAIL"}


def test_a_given_value_outside_its_range_is_trained(run_sqlite: Runs) -> None:
    """Optuna warns of it and takes it; so does a session that goes on with it."""
    config = run_sqlite.config(trials=2)
    run_sqlite.study(config).enqueue_trial({"tau_c": 30.0, "kernel_1": 3, "k": 3})
    with pytest.warns(UserWarning, match="out of the distribution|out of range|is out of"):
        StudyDriver(config, run_sqlite.study(config), INFO, FakeExecutor(), []).run()
    assert [trial.state.name for trial in run_sqlite.study(config).get_trials()] == ["COMPLETE"] * 2


def test_somebody_enqueues_while_known_configurations_are_tried(
    run_sqlite: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [Known(f"known {k}", "a test", {**BASELINE, "k": k}) for k in (2, 3, 5)]
    monkeypatch.setitem(SPACES, "tiny", replace(SPACES["tiny"], known=(*SPACES["tiny"].known, *known)))
    config = run_sqlite.config(trials=7, sampler="random")

    def enqueue(job: Job, events: list[Event]) -> list[Event]:
        if job.until_epoch == 1 and job.trial in (0, 2):
            run_sqlite.study(config).enqueue_trial({"k": 4, "outputs_per_class": 9 + job.trial})
        return events

    StudyDriver(config, run_sqlite.study(config), INFO, FakeExecutor(enqueue), []).run()
    trials = run_sqlite.study(config).get_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert [trial.user_attrs["known"] for trial in trials if "known" in trial.user_attrs] == [
        "published",
        "known 2",
        "known 3",
        "known 5",
    ]
