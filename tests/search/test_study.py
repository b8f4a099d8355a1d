"""The driver: exact totals, values, rungs. What a kill leaves is in test_resume.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search import study
from search.errors import Failure
from search.jobs import Job
from search.ladder import PATIENCE
from search.storage import TrialView, trial_views
from search.study import StudyDriver
from search.training import EpochRecord, derived_seed
from search.workers import Event, Progress
from tests.search.tiny import BASELINE, FakeExecutor, Runs, broken, counted, measured, refusing_from


@pytest.mark.parametrize("storage", ["run", "run_sqlite"])
def test_the_same_command_again_ends_at_exactly_the_total(request: pytest.FixtureRequest, storage: str) -> None:
    run: Runs = request.getfixturevalue(storage)
    assert counted(run(FakeExecutor(), trials=3)) == 3
    again = FakeExecutor()
    assert counted(run(again, trials=3)) == 3
    assert again.jobs == []
    assert counted(run(FakeExecutor(num_workers=4), trials=7)) == 7
    assert {view.state for view in run(FakeExecutor(), trials=7)} <= {"complete", "rejected"}


def test_the_published_baseline_is_trial_0_once_and_never_stopped(run: Runs) -> None:
    run(FakeExecutor(), trials=2)
    views = run(FakeExecutor(), trials=25)
    assert [view.number for view in views if view.known] == [0]
    assert views[0].known == "published"
    assert views[0].params == BASELINE
    assert [record.epoch for record in views[0].records] == list(range(1, 10))
    assert "stopped_at_rung" not in views[0].attrs


class BaselineLast(FakeExecutor):
    """Trial 0 reaches each rung after all others that run, and is worse than they are."""

    def __init__(self) -> None:
        def worst(job: Job, events: list[Event]) -> list[Event]:
            return [
                Progress(job, replace(event.record, acc_discrete=0.0))
                if job.trial == 0 and isinstance(event, Progress)
                else event
                for event in events
            ]

        super().__init__(worst, num_workers=4)

    def wait(self, timeout_s: float) -> list[Event]:
        self._running.sort(key=lambda job: job.trial == 0)
        return super().wait(timeout_s)


def test_the_baseline_is_not_stopped_even_if_it_is_the_worst(run: Runs) -> None:
    views = run(BaselineLast(), trials=8, objectives=("accuracy",))
    assert views[0].frozen.values == [0.0]
    assert (views[0].epoch, "stopped_at_rung" in views[0].attrs) == (9, False)
    assert all((view.acc_discrete or 0) > 0 for view in views[1:])


@pytest.mark.parametrize("gates", ["raw", "core", "total"])
@pytest.mark.parametrize("objectives", [("accuracy", "gates"), ("accuracy",)])
def test_values_are_what_the_last_rung_measured(run: Runs, objectives: tuple[str, ...], gates: str) -> None:
    executor = FakeExecutor(num_workers=3)
    views = run(executor, trials=20, objectives=objectives, gates=gates)
    seeds = {job.trial: job.seed for job in executor.jobs}
    epochs = set()
    for view in (view for view in views if view.state == "complete"):
        job = Job(view.number, view.candidate, seeds[view.number], 9, None)  # type: ignore[arg-type]
        assert view.records == tuple(measured(job, epoch) for epoch in range(1, view.epoch + 1))
        last = view.records[-1]
        counts = {"raw": view.raw_gates, "core": last.core_gates, "total": last.total_gates}
        assert len({*counts.values(), None}) == 4
        assert view.frozen.values == [last.acc_discrete, counts[gates]][: len(objectives)]
        assert view.attrs.get("stopped_at_rung") == (None if view.epoch == 9 else view.epoch)
        epochs.add(view.epoch)
    assert epochs == {1, 3, 9}


def accuracies(*of_trials: float) -> FakeExecutor:
    """Trials measure what their number says, at every epoch."""

    def script(job: Job, events: list[Event]) -> list[Event]:
        return [
            Progress(job, replace(event.record, acc_discrete=of_trials[job.trial]))
            if isinstance(event, Progress)
            else event
            for event in events
        ]

    return FakeExecutor(script)


def test_a_trial_that_waits_goes_on_from_its_checkpoint_once_worse_ones_have_come(run: Runs) -> None:
    """One in three goes on, rounded up: of four trials at the first rung two, the baseline and trial 1."""
    executor = accuracies(0.9, 0.5, 0.4, 0.1)
    views = run(executor, trials=4, objectives=("accuracy",), sampler="random")
    assert [(job.trial, job.until_epoch, job.checkpoint is not None) for job in executor.jobs] == [
        (0, 1, False),
        (0, 3, True),
        (0, 9, True),
        (1, 1, False),
        (2, 1, False),
        (3, 1, False),
        (1, 3, True),
    ]
    assert [view.attrs.get("stopped_at_rung") for view in views] == [None, 3, 1, 1]
    assert [view.frozen.values for view in views] == [[0.9], [0.5], [0.4], [0.1]]


def test_a_trial_waits_for_so_many_others_and_is_told_then(run: Runs) -> None:
    """The sampler is to learn from it: trial 1 is told before the one after those is asked."""
    told: list[tuple[int, int]] = []

    class Watch:
        def trial_changed(self, trial: TrialView) -> None:
            if trial.state == "complete":
                told.append((trial.number, len(executor.jobs)))

        def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None: ...

        def tick(self) -> None: ...

    executor = accuracies(0.9, 0.1, *[0.8 - 0.01 * later for later in range(2 * PATIENCE + 9)])
    run(executor, trials=3 + PATIENCE, objectives=("accuracy",), sampler="random", observers=[Watch()])
    begun = [n for n, job in enumerate(executor.jobs) if job.until_epoch == 1]
    last_waited_for, after = begun[1 + PATIENCE], begun[2 + PATIENCE]
    (num_jobs,) = (num_jobs for number, num_jobs in told if number == 1)
    assert last_waited_for < num_jobs <= after


def test_a_trials_seed_is_of_its_number_and_the_studys(run: Runs) -> None:
    """Whatever was asked, killed or rejected before it."""
    views = run(FakeExecutor(num_workers=2), trials=6, seed=5)
    seeds = [view.attrs["seed"] for view in views if view.counts]
    assert seeds == [derived_seed(5, view.number) for view in views if view.counts]
    assert len({*seeds}) == 6


def test_without_early_stopping_every_trial_has_the_full_budget(run: Runs) -> None:
    views = run(FakeExecutor(num_workers=2), trials=8, early_stopping="none")
    assert {view.epoch for view in views if view.counts} == {9}


def test_stopped_trials_are_complete_for_optuna(run: Runs) -> None:
    """Its samplers read pruned trials badly, and refuse reports with two objectives."""
    stopped = [view for view in run(FakeExecutor(), trials=10) if "stopped_at_rung" in view.attrs]
    assert stopped
    assert {view.frozen.state.name for view in stopped} == {"COMPLETE"}
    assert not any(view.frozen.intermediate_values for view in stopped)


def test_a_real_trial_is_stored_as_it_was_trained(run: Runs) -> None:
    views = run(trials=3, epochs=3)
    assert [record.epoch for record in views[0].records] == [1, 2, 3]
    assert [record.total_gates is not None for record in views[0].records] == [True, False, True]
    assert views[0].frozen.values == [views[0].records[-1].acc_discrete, views[0].records[-1].total_gates]
    assert views[0].raw_gates == 2280
    assert views[0].candidate is not None
    assert views[0].candidate.train.epochs == 3
    assert list(Path("studies/tiny/checkpoints").iterdir()) == []


def test_no_trial_starts_once_the_time_is_up(run: Runs) -> None:
    assert run(FakeExecutor(), timeout_s=1e-9) == []
    assert counted(run(FakeExecutor(), timeout_s=60.0)) == 4


@pytest.mark.parametrize("ended", ["time", "errors", "rejections"])
def test_trials_that_wait_are_kept_where_a_session_ends_before_its_total(
    run: Runs, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """Those that come in the next one may let them go on."""
    monkeypatch.setattr(study, "MAX_REJECTED_IN_A_ROW", 5)
    clock = Clock(num_asked=3)

    def script(job: Job, events: list[Event]) -> list[Event]:
        if ended == "errors" and job.trial > 2:
            return broken(job, False, "error")
        return accuracies(0.9, 0.5, 0.4, *[0.1] * 99).script(job, events)

    options: dict[str, Any] = {"objectives": ("accuracy",), "sampler": "random", "trials": 12}
    with monkeypatch.context() as patch:
        if ended == "rejections":
            patch.setattr(StudyDriver, "_candidate", refusing_from(3))
        if ended == "time":
            patch.setattr(study.time, "monotonic", clock)
            run(FakeExecutor(script), observers=[clock], timeout_s=60.0, **options)
        else:
            with pytest.raises(Failure, match="in a row"):
                run(FakeExecutor(script), **options)
    before = trial_views(run.study(run.config()), "total")
    waiting = [view.number for view in before if view.state == "running"]
    assert waiting and all("stopped_at_rung" not in before[number].attrs for number in waiting)
    views = run(accuracies(0.9, 0.5, 0.4, *[0.1] * 99), **options)
    assert counted(views) == 12 and not any(view.state == "running" for view in views)
    assert max(views[number].epoch for number in waiting) > 1


class Clock:
    """Stands still until so many trials were asked, and is then far ahead."""

    def __init__(self, num_asked: int) -> None:
        self.num_asked, self.asked = num_asked, set[int]()

    def __call__(self) -> float:
        return 1e6 if len(self.asked) >= self.num_asked else 0.0

    def trial_changed(self, trial: TrialView) -> None:
        self.asked.add(trial.number)

    def epoch_finished(self, trial: int, until_epoch: int, record: EpochRecord) -> None: ...

    def tick(self) -> None: ...
