"""The driver: exact totals, values, rungs, rejections, failures. What a kill leaves is in test_resume.py."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search import study
from search.errors import Failure
from search.jobs import Failed, Job
from search.ladder import PATIENCE
from search.storage import TrialView, trial_views
from search.study import StudyDriver
from search.training import EpochRecord
from search.workers import Event, Progress, event_of
from spaces import SPACES, Space
from tests.search.tiny import BASELINE, FakeExecutor, Runs, broken, measured

SAMPLERS = ["tpe", "nsga2", "gp", "random", "qmc"]


def counted(views: list[TrialView]) -> int:
    return sum(view.counts for view in views)


def params(views: list[TrialView]) -> list[dict[str, Any]]:
    return [view.params for view in views]


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


def test_without_early_stopping_every_trial_has_the_full_budget(run: Runs) -> None:
    views = run(FakeExecutor(num_workers=2), trials=8, early_stopping="none")
    assert {view.epoch for view in views if view.counts} == {9}


@pytest.mark.parametrize(
    ("sampler", "sessions"),
    [("tpe", (21,)), ("tpe", (9, 21)), ("random", (9, 21)), ("nsga2", (21,)), ("qmc", (21,)), ("gp", (13,))],
)
def test_deterministic_studies_are_the_same_with_any_number_of_workers(
    run: Runs, sampler: str, sessions: tuple[int, ...]
) -> None:
    def rounded(job: Job, events: list[Event]) -> list[Event]:
        """Ties are common: who came first must not decide them."""
        return [
            Progress(job, replace(event.record, acc_discrete=round(event.record.acc_discrete, 1)))
            if isinstance(event, Progress)
            else event
            for event in events
        ]

    class LastFirst(FakeExecutor):
        """The order in which jobs end depends on the number of workers."""

        def wait(self, timeout_s: float) -> list[Event]:
            self._running.reverse()
            return super().wait(timeout_s)

    studies = []
    for workers in (1, 2, 5):
        for trials in sessions:
            views = run(
                LastFirst(rounded, num_workers=workers),
                study=f"with_{workers}",
                trials=trials,
                sampler=sampler,
                deterministic=True,
                objectives=("accuracy",),
            )
        studies.append([(view.params, view.frozen.values, view.records, view.state) for view in views])
    assert counted(views) == sessions[-1]
    assert studies[0] == studies[1] == studies[2]


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


# Candidates that must not be trained


def test_rejected_candidates_are_stored_and_not_counted(run: Runs) -> None:
    executor = FakeExecutor(num_workers=2)
    views = run(executor, trials=12, gates="raw", max_gates=2000)
    rejected = [view for view in views if view.state == "rejected"]
    assert counted(views) == 12
    assert {view.frozen.state.name for view in rejected} == {"FAIL"}
    reasons = [view.attrs["rejected"] for view in rejected]
    assert any(reason.endswith("raw gates exceed --max-gates 2,000") for reason in reasons)
    assert any("do not fit together" in reason for reason in reasons)
    assert {job.trial for job in executor.jobs} == {view.number for view in views if view.counts}
    # The baseline is what everything is compared with: it runs, however big.
    assert views[0].state == "complete"
    assert (views[0].raw_gates or 0) > 2000
    assert all((view.raw_gates or 0) <= 2000 for view in views[1:] if view.counts)


def test_the_same_configuration_is_not_trained_twice(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever parameters it was drawn with: here rates do not matter, and there are 2 * 3 * 8 networks at most."""
    tiny = SPACES["tiny"]

    def build(params: Any, *rest: Any) -> Any:
        fixed = {"lr": 0.01, "parametrization": "softmax", "tau_c": 1.0}
        return tiny.build({**params, **fixed, "k": params["k"] // 3 + 2}, *rest)

    monkeypatch.setitem(SPACES, "tiny", Space(**{**vars(tiny), "build": build}))
    views = run(FakeExecutor(num_workers=3), trials=24, sampler="random")
    trained = [str(view.candidate) for view in views if view.counts]
    assert len(set(trained)) == len(trained) == 24
    repeated = [view for view in views if view.state == "rejected"]
    assert repeated
    for view in repeated:
        assert view.attrs["rejected"] in {f"it is trial {other.number} again" for other in views[: view.number]}


def test_a_sampler_that_insists_on_what_is_rejected_is_left_alone(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers: list[str] = []

    def refuse(*_: Any) -> Any:
        raise ValueError("it does not exist")

    def sampler_for(name: str, *rest: Any) -> Any:
        samplers.append(name)
        return real(name, *rest)

    real = study.sampler_for
    monkeypatch.setattr(study, "sampler_for", sampler_for)
    monkeypatch.setattr(study, "MAX_REJECTED_IN_A_ROW", 14)
    monkeypatch.setitem(SPACES, "tiny", Space(**{**vars(SPACES["tiny"]), "build": refuse}))
    for _ in range(2):  # a session goes on where the one before it stopped
        with pytest.raises(Failure, match="14 candidates in a row were rejected"):
            run(FakeExecutor(), sampler="tpe")
    assert samplers == ["tpe"] * 10 + ["random"] * 18


def test_qmc_is_one_sequence_over_the_whole_space(run: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    views = run(FakeExecutor(num_workers=4), trials=20, sampler="qmc")
    for name in ("lr", "lr_iwp", "tau_c"):
        values = [view.params[name] for view in views if name in view.params]
        assert len(values) > 5 and len(set(values)) == len(values)
    assert capfd.readouterr().err == ""


def test_a_limit_on_accuracy_marks_trials_and_trains_them(run: Runs) -> None:
    views = run(FakeExecutor(num_workers=2), trials=10, min_accuracy=0.5, max_gates=1300)
    assert any(view.is_infeasible for view in views) and not all(view.is_infeasible for view in views)
    for view in (view for view in views if view.counts):
        last = view.records[-1]
        assert view.frozen.constraints == pytest.approx(
            {"val/acc_discrete": 0.5 - last.acc_discrete, "gates/total": (last.total_gates or 0) - 1300}
        )


def test_a_limit_that_nothing_fits_ends_the_search(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MAX_REJECTED_IN_A_ROW", 5)
    with pytest.raises(Failure, match=r"^5 candidates in a row were rejected, .* --max-gates 10: raise the limit, "):
        run(FakeExecutor(), gates="raw", max_gates=10)


# Failures


def test_a_dead_worker_s_job_is_tried_again_from_its_checkpoint(run: Runs) -> None:
    calls: Counter[tuple[int, int]] = Counter()

    def dies_first(job: Job, events: list[Event]) -> list[Event]:
        calls[job.trial, job.until_epoch] += 1
        return broken(job, retry=True) if job.until_epoch == 9 and calls[job.trial, 9] < 3 else events

    executor = FakeExecutor(dies_first)
    views = run(executor, trials=1)
    assert [(job.until_epoch, job.checkpoint is not None) for job in executor.jobs] == [
        (1, False),
        (3, True),
        (9, True),
        (9, True),
        (9, True),
    ]
    assert views[0].state == "complete"
    assert [record.epoch for record in views[0].records] == list(range(1, 10))
    assert views[0].attempts == 2


def test_after_three_attempts_a_trial_fails_with_its_cause_and_is_counted(run: Runs) -> None:
    executor = FakeExecutor(lambda job, events: broken(job, retry=True) if job.trial == 1 else events)
    views = run(executor, trials=3)
    assert [job.trial for job in executor.jobs].count(1) == 3
    assert [view.state for view in views] == ["complete", "failed", "complete"]
    assert views[1].frozen.state.name == "FAIL"
    assert (views[1].cause, views[1].message) == ("worker died", "worker died in a test")


def test_what_cannot_succeed_is_not_tried_again(run: Runs) -> None:
    executor = FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial % 2 else events)
    views = run(executor, trials=8)
    assert counted(views) == 8
    failed = [view for view in views if view.state == "failed"]
    assert len(failed) > 2
    for view in failed:
        assert view.cause == "nan"
        assert [job.trial for job in executor.jobs].count(view.number) == 1


def test_errors_with_a_success_between_them_do_not_end_the_search(run: Runs) -> None:
    """Trials 1, 2, 4 and 5 fail."""
    views = run(
        FakeExecutor(lambda job, events: broken(job, False, "error") if job.trial in (1, 2, 4, 5) else events), trials=7
    )
    assert [view.state for view in views if view.counts].count("failed") == 4


def test_errors_one_after_the_other_end_the_search(run: Runs) -> None:
    with pytest.raises(Failure, match=r"^3 trials in a row failed, the last with: error in a test$"):
        run(FakeExecutor(lambda job, events: broken(job, False, "error")), trials=10)
    assert counted(run(FakeExecutor(), trials=4)) == 4


def test_a_loss_that_diverges_fails_its_trial_alone(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = SPACES["tiny"]

    def build(params: Any, *rest: Any) -> Any:
        return tiny.build({**params, "lr": 1e38} if params["k"] == 4 else params, *rest)

    monkeypatch.setitem(SPACES, "tiny", Space(**{**vars(tiny), "build": build}))
    views = run(trials=3, epochs=3)
    assert [view.state for view in views][:2] == ["failed", "complete"]
    assert views[0].cause == "nan"
    assert views[0].message.startswith("the loss is ")


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


def refusing_from(number: int) -> Any:
    candidate = StudyDriver._candidate

    def refuse(driver: StudyDriver, trial: Any) -> Any:
        drawn, problem = candidate(driver, trial)
        return drawn, problem or ("it is not liked" if trial.number >= number else None)

    return refuse


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_trial_without_memory_is_tried_again_once_another_has_ended(run: Runs, deterministic: bool) -> None:
    """Which may have taken it; and at once where it is alone."""

    class OneAtATime(FakeExecutor):
        """Trial 1 is told first, and finds memory only where nothing else runs."""

        def wait(self, timeout_s: float) -> list[Event]:
            self._running.sort(key=lambda job: job.trial != 1)
            if self._running[0].trial == 1 and len(self._running) > 1:
                job = self._running.pop(0)
                return [event_of(job, Failed("out of memory", "8 GiB are needed"))]
            return super().wait(timeout_s)

    executor = OneAtATime(num_workers=2)
    views = run(executor, trials=2, epochs=1, deterministic=deterministic)
    assert [(view.state, view.attempts) for view in views] == [("complete", 0), ("complete", 1)]
    never = FakeExecutor(lambda job, _: [event_of(job, Failed("out of memory", "8 GiB are needed"))])
    (view,) = run(never, study="never", trials=1, deterministic=deterministic)
    assert (view.state, view.cause, len(never.jobs)) == ("failed", "out of memory", 3)


def test_who_errs_first_decides_nothing_in_a_deterministic_study(run: Runs) -> None:
    """Trials 4 to 6 fail and 7 does not: whether the three are heard of in a row depends on the workers."""

    class LastFirst(FakeExecutor):
        def wait(self, timeout_s: float) -> list[Event]:
            self._running.reverse()
            return super().wait(timeout_s)

    def script(job: Job, events: list[Event]) -> list[Event]:
        return broken(job, False, "error") if job.trial in (4, 5, 6) else events

    studies = []
    for number, executor in enumerate((FakeExecutor(script), FakeExecutor(script, 8), LastFirst(script, 8))):
        views = run(executor, study=f"s{number}", trials=12, sampler="random", deterministic=True)
        studies.append([(view.params, view.state, view.frozen.values) for view in views])
    assert studies[0] == studies[1] == studies[2]
    assert [view.state for view in views].count("failed") == 3


# Seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_makes_the_study_whatever_its_sessions(run: Runs, sampler: str) -> None:
    """TPE and GP sample from their models from the eleventh trial on. Trials that wait are told when a session ends."""
    total = 12 if sampler == "gp" else 16  # its models take seconds
    whole = run(FakeExecutor(), study="whole", trials=total, sampler=sampler, early_stopping="none")
    for trials in (5, 11, total):  # a session ends between trials that come from models
        parts = run(FakeExecutor(), study="parts", trials=trials, sampler=sampler, early_stopping="none")
    assert params(parts) == params(whole)
    assert [view.records for view in parts] == [view.records for view in whole]
    assert len({str(each) for each in params(whole)}) == len(whole)  # a sampler restarted would repeat itself


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_makes_another_study(run: Runs, sampler: str) -> None:
    zero = run(FakeExecutor(), study="zero", trials=3, sampler=sampler)
    one = run(FakeExecutor(), study="one", trials=3, sampler=sampler, seed=1)
    assert params(zero)[0] == params(one)[0] == BASELINE
    assert not any(view in params(zero)[1:] for view in params(one)[1:])
    assert not {view.attrs["seed"] for view in zero} & {view.attrs["seed"] for view in one}
