"""What a driver killed at any moment leaves, and how the next one goes on. Real kills are in tests/faults."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from search import samplers
from search import study as study_module
from search.checkpoints import Checkpoints
from search.jobs import Job
from search.storage import TrialView, trial_views
from search.training import EpochRecord
from search.workers import Event, InlineExecutor, Progress
from tests.search.tiny import BASELINE, FakeExecutor, Runs, broken, measured, tiny_candidate

WRITES = (
    "create_new_trial",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_param",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_state_values",
)
CHECKPOINTS = Path("studies/tiny/checkpoints")
TRIALS = 5
COMMON: dict[str, Any] = {"trials": TRIALS, "sampler": "random", "seed": 3}
LIMITS: dict[str, dict[str, Any]] = {
    "rejecting": {**COMMON, "gates": "raw", "max_gates": 2000},
    "constraint": {**COMMON, "gates": "total", "max_gates": 1400},
}


class Killed(BaseException):
    """Nothing catches it: what was written before it is all that the next driver finds."""


def kill_after(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Raise instead of the write after the first `number`, and go on raising; the list fills with what was written."""
    written: list[str] = []

    def counting(owner: Any, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        def write(*args: Any, **kwargs: Any) -> Any:
            if len(written) >= number:
                raise Killed
            written.append(name)
            return original(*args, **kwargs)

        return write

    for owner, names in ((InMemoryStorage, WRITES), (Checkpoints, ("write", "remove"))):
        for name in names:
            monkeypatch.setattr(owner, name, counting(owner, name))
    return written


def check_whole(views: list[TrialView]) -> None:
    """What must hold of a study that reached its total, whatever happened on the way."""
    assert sum(view.counts for view in views) == TRIALS
    assert {view.state for view in views} <= {"complete", "rejected"}
    assert all(view.frozen.state.is_finished() for view in views)
    assert [view.number for view in views if view.known] == [0]
    assert views[0].params == BASELINE
    for view in views:
        if view.state == "complete":
            assert view.candidate is not None
            job = Job(view.number, view.candidate, view.attrs["seed"], 9, None)
            assert view.records == tuple(measured(job, epoch) for epoch in range(1, view.epoch + 1))
            assert view.frozen.values == [view.records[-1].acc_discrete, view.gates]
            constraints = (
                {} if view.gate_count == "raw" else {"gates/total": (view.records[-1].total_gates or 0) - 1400}
            )
            assert view.frozen.constraints == constraints
            assert ("stopped_at_rung" in view.attrs) == (view.epoch < 9)
    assert not CHECKPOINTS.exists() or list(CHECKPOINTS.iterdir()) == []


@pytest.mark.parametrize("limit", LIMITS)
def test_a_kill_before_any_write_costs_nothing(run: Runs, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Every write of a study in turn is the first that did not happen; a constraint set twice is a warning."""
    options = LIMITS[limit]
    with monkeypatch.context() as patch:
        written = kill_after(1_000_000, patch)
        whole = run(FakeExecutor(num_workers=2), **options)
    check_whole(whole)
    assert any(view.state == "rejected" for view in whole) == (limit == "rejecting")
    assert {view.is_infeasible for view in whole} == {False, limit == "constraint"}
    assert len({view.epoch for view in whole if view.records}) > 1
    for number in range(len(written)):
        run.memory = InMemoryStorage()
        with monkeypatch.context() as patch:
            kill_after(number, patch)
            with pytest.raises(Killed):
                run(FakeExecutor(num_workers=2), **options)
        before = trial_views(run.study(run.config(**options)), options["gates"])
        executor = FakeExecutor(num_workers=2)
        views = run(executor, **options)
        check_whole(views)
        for view in before:  # same numbers and parameters, and what was measured stays
            assert view.params.items() <= views[view.number].params.items()
            assert views[view.number].records[: len(view.records)] == view.records
            assert view.frozen.constraints.items() <= views[view.number].frozen.constraints.items()
        for job in executor.jobs:
            assert job.until_epoch > (before[job.trial].epoch if job.trial < len(before) else 0)
            assert (job.checkpoint is None) == (job.until_epoch == 1)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_second_kill_while_going_on(run: Runs, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Sessions of a few writes each: as slow as can be, and it ends."""
    num_kills = 0
    views: list[TrialView] = []
    while not views:
        with monkeypatch.context() as patch:
            kill_after(4, patch)
            try:
                views = run(FakeExecutor(num_workers=2), **LIMITS[limit])
            except Killed:
                num_kills += 1
        assert num_kills < 100
    assert num_kills > 5
    check_whole(views)


@pytest.mark.parametrize(("sampler", "step"), [("random", 1), ("nsga2", 4), ("qmc", 4), ("tpe", 7)])
def test_a_deterministic_study_is_the_same_after_a_kill_before_any_write(
    run: Runs, monkeypatch: pytest.MonkeyPatch, sampler: str, step: int
) -> None:
    """In the midst of a batch, of the decisions at a rung: same trials, values and order."""
    monkeypatch.setattr(study_module, "ASKED_AT_ONCE", 4)
    monkeypatch.setattr(samplers, "POPULATION", 4)  # three generations
    num_trials = {"tpe": 14, "nsga2": 15}.get(sampler, 7)
    options: dict[str, Any] = {"trials": num_trials, "sampler": sampler, "deterministic": True}
    options |= {"gates": "raw", "max_gates": 2200}  # some are rejected

    def listed(views: list[TrialView]) -> list[Any]:
        return [(view.params, view.state, view.frozen.values, view.attrs) for view in views]

    with monkeypatch.context() as patch:
        written = kill_after(1_000_000, patch)
        whole = listed(run(FakeExecutor(num_workers=3), **options))
    assert "set_study_user_attr" in written
    for number in range(0, len(written), step):
        run.memory = InMemoryStorage()
        with monkeypatch.context() as patch:
            kill_after(number, patch)
            with pytest.raises(Killed):
                run(FakeExecutor(num_workers=3), **options)
        assert listed(run(FakeExecutor(num_workers=2), **options)) == whole, (number, written[number])


def test_a_trial_that_somebody_else_enqueued_is_asked_first_and_never_lost(
    run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Optuna's own `enqueue_trial` and its dashboard do: some parameters are given, the sampler draws the others."""
    options: dict[str, Any] = {"trials": 4, "sampler": "random"}

    def enqueued() -> None:
        run.memory = InMemoryStorage()
        run(FakeExecutor(), **{**options, "trials": 2})
        run.study(run.config(**options)).enqueue_trial({"k": 3, "kernel_1": 5}, user_attrs={"by": "hand"})

    enqueued()
    with monkeypatch.context() as patch:
        written = kill_after(1_000_000, patch)
        whole = run(FakeExecutor(), **options)
    assert [view.state for view in whole] == ["complete"] * 4
    assert (whole[2].params["k"], whole[2].params["kernel_1"], whole[2].attrs["by"]) == (3, 5, "hand")
    for number in range(len(written)):
        enqueued()
        with monkeypatch.context() as patch:
            kill_after(number, patch)
            with pytest.raises(Killed):
                run(FakeExecutor(), **options)
        views = run(FakeExecutor(), **options)
        assert [view.state for view in views] == ["complete"] * 4, (number, written[number])
        assert whole[2].frozen.system_attrs["fixed_params"].items() <= views[2].params.items()
        assert views[2].attrs["by"] == "hand"
        assert views[3].params == whole[3].params


def test_a_trial_that_another_program_asked_is_drawn_and_trained(run: Runs) -> None:
    run(FakeExecutor(), trials=2)
    other = run.study(run.config(trials=3)).ask()
    other.suggest_int("k", 2, 5)
    views = run(FakeExecutor(), trials=4)
    assert [view.state for view in views] == ["complete"] * 4
    assert views[2].params["k"] == other.params["k"]


def test_a_kill_behind_the_last_attempt_leaves_no_fourth(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it falls: three jobs in all, and a trial that says what it failed with."""

    def failing() -> FakeExecutor:
        return FakeExecutor(lambda job, events: broken(job, retry=True) if job.trial == 1 else events)

    with monkeypatch.context() as patch:
        written = kill_after(1_000_000, patch)
        run(failing(), **COMMON)
    for number in range(len(written)):
        run.memory = InMemoryStorage()
        executors = failing(), failing()
        with monkeypatch.context() as patch:
            kill_after(number, patch)
            with pytest.raises(Killed):
                run(executors[0], **COMMON)
        before = trial_views(run.study(run.config(**COMMON)), "total")
        given_up = len(before) > 1 and before[1].cause is not None
        view = run(executors[1], **COMMON)[1]
        assert (view.state, view.cause, view.message) == ("failed", "worker died", "worker died in a test")
        jobs = [[job.trial for job in executor.jobs].count(1) for executor in executors]
        assert sum(jobs) <= 3 + (not given_up) and (not given_up or jobs[1] == 0)


class Interrupted(InlineExecutor):
    """Trains for real, and is killed before an epoch or rung is told."""

    events_left = 0

    def wait(self, timeout_s: float) -> list[Event]:
        if self.events_left == 0:
            raise Killed
        self.events_left -= 1
        return super().wait(timeout_s)


def what_was_measured(views: list[TrialView]) -> list[list[tuple[float, ...]]]:
    def without_clock(record: EpochRecord) -> tuple[float, ...]:
        return (record.epoch, record.loss, record.acc_soft, record.acc_discrete)

    return [[without_clock(record) for record in view.records] for view in views]


@pytest.mark.parametrize("fate", ["kept", "lost", "damaged", "last damaged"])
def test_a_resumed_study_measures_what_an_uninterrupted_one_does(run_sqlite: Runs, fate: str) -> None:
    options: dict[str, Any] = {"trials": 3, "seed": 5}
    whole = run_sqlite(study="whole", **options)
    executor = Interrupted(run_sqlite.dataset)
    executor.events_left = 9  # the baseline's rungs at 1 and 3, each with its end, and four epochs of the last
    with pytest.raises(Killed):
        run_sqlite(executor, study="tiny", **options)
    assert [path.name for path in sorted(CHECKPOINTS.iterdir())] == [
        f"trial_00000_epoch_{epoch}.checkpoint" for epoch in (1, 3)
    ]
    for path in CHECKPOINTS.iterdir():
        if fate == "lost":
            path.unlink()
        elif fate == "damaged" or (fate == "last damaged" and "epoch_3" in path.name):
            path.write_bytes(path.read_bytes()[:-1])
    jobs = []
    executor = InlineExecutor(run_sqlite.dataset)
    submit = executor.submit
    executor.submit = lambda job: (jobs.append(job), submit(job))[1]  # type: ignore[method-assign, func-returns-value]
    resumed = run_sqlite(executor, study="tiny", **options)
    assert (jobs[0].trial, jobs[0].until_epoch) == (0, 9)
    assert (jobs[0].checkpoint is None) == (fate in ("lost", "damaged"))
    assert [view.params for view in resumed] == [view.params for view in whole]
    assert what_was_measured(resumed) == what_was_measured(whole)
    assert [view.frozen.values for view in resumed] == [view.frozen.values for view in whole]
    assert list(CHECKPOINTS.iterdir()) == []


def test_leftovers_of_other_trials_are_removed(run: Runs) -> None:
    CHECKPOINTS.mkdir(parents=True)
    for name in ("trial_00007_epoch_1.checkpoint", ".trial_00000_epoch_1.checkpoint.4711"):
        (CHECKPOINTS / name).touch()
    run(FakeExecutor())
    assert list(CHECKPOINTS.iterdir()) == []


class StuckAtTrial1(FakeExecutor):
    """Each trial is better than the one before. Trial 1 never finishes its second rung; killed at trial 5."""

    def __init__(self) -> None:
        def rising(job: Job, events: list[Event]) -> list[Event]:
            return [
                Progress(job, replace(event.record, acc_discrete=job.trial / 10))
                if isinstance(event, Progress)
                else event
                for event in events
            ]

        super().__init__(rising, num_workers=2)

    def wait(self, timeout_s: float) -> list[Event]:
        if self.jobs[-1].trial == 5:
            raise Killed
        self._running.sort(key=lambda job: (job.trial, job.until_epoch) == (1, 3))
        return super().wait(timeout_s)


def test_a_trial_that_went_on_goes_on(run: Runs) -> None:
    """It was the best of those there were; decided again, among the better ones since, it would be stopped."""
    options: dict[str, Any] = {"trials": 6, "objectives": ("accuracy",)}
    executor = StuckAtTrial1()
    with pytest.raises(Killed):
        run(executor, **options)
    assert (1, 3) in [(job.trial, job.until_epoch) for job in executor.jobs]
    again = FakeExecutor(executor.script)
    run(again, **options)
    assert (1, 3) in [(job.trial, job.until_epoch) for job in again.jobs]


@pytest.mark.parametrize("decided", [False, True])
def test_a_trial_that_was_stopped_is_stopped(run: Runs, decided: bool) -> None:
    """Killed between that decision and telling Optuna; without it the trial, the best of all, goes on."""
    config = run.config(trials=1)
    run(FakeExecutor(), trials=1)
    study = run.study(config)
    trial = study.ask()
    for name, value in run(FakeExecutor(), trials=1, study="other")[0].attrs.items():
        if name in ("seed", "gates_raw", "candidate"):
            trial.set_user_attr(name, value)
    record = replace(measured(Job(1, tiny_candidate(), 0, 1, None), 1), acc_discrete=1.0)
    trial.set_user_attr("rung_1", [record.to_json()])
    if decided:
        trial.set_user_attr("stopped_at_rung", 1)
    views = run(FakeExecutor(), trials=2)
    assert views[1].state == "complete"
    assert (views[1].epoch == 1) == decided
