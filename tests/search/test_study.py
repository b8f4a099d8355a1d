"""The driver: exact totals, values, rungs, rejections, failures. What a kill leaves is in test_resume.py."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import study
from search.errors import Failure
from search.jobs import Job
from search.rungs import goes_on
from search.storage import TrialView
from search.workers import Event, Progress
from spaces import SPACES, Space
from tests.search.tiny import BASELINE, FakeExecutor, Runs, broken, measured

SAMPLERS = ["tpe", "random"]


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


def test_each_decision_is_halving_among_those_that_had_reached_the_rung(run: Runs) -> None:
    """Replayed from what is stored: with one worker, trials reach rungs in the order of their numbers."""
    views = [view for view in run(FakeExecutor(), trials=20) if view.records]
    for rung in (1, 3):
        reached = [view for view in views if view.epoch >= rung]
        for index in range(len(reached)):
            points = np.array(
                [(peer.at_rung(rung).acc_discrete, -peer.at_rung(rung).total_gates) for peer in reached[: index + 1]]
            )  # type: ignore[union-attr, operator]
            expected = reached[index].number == 0 or goes_on(points, index, 3)
            assert (reached[index].epoch > rung) == expected
    assert Counter(view.epoch for view in views)[1] > 4


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


def test_a_limit_that_nothing_fits_ends_the_search(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MAX_REJECTED_IN_A_ROW", 5)
    with pytest.raises(Failure, match=r"^5 candidates in a row were rejected, the last because .* --max-gates 10$"):
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
    assert views[0].attrs["attempts"] == 2


def test_after_three_attempts_a_trial_fails_with_its_cause_and_is_counted(run: Runs) -> None:
    executor = FakeExecutor(lambda job, events: broken(job, retry=True) if job.trial == 1 else events)
    views = run(executor, trials=3)
    assert [job.trial for job in executor.jobs].count(1) == 3
    assert [view.state for view in views] == ["complete", "failed", "complete"]
    assert views[1].frozen.state.name == "FAIL"
    assert (views[1].attrs["cause"], views[1].attrs["message"]) == ("worker died", "worker died in a test")


def test_what_cannot_succeed_is_not_tried_again(run: Runs) -> None:
    executor = FakeExecutor(lambda job, events: broken(job, False, "nan") if job.trial % 2 else events)
    views = run(executor, trials=8)
    assert counted(views) == 8
    failed = [view for view in views if view.state == "failed"]
    assert len(failed) > 2
    for view in failed:
        assert view.attrs["cause"] == "nan"
        assert [job.trial for job in executor.jobs].count(view.number) == 1


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
    assert views[0].attrs["cause"] == "nan"
    assert views[0].attrs["message"].startswith("the loss is ")


def test_no_trial_starts_once_the_time_is_up(run: Runs) -> None:
    assert run(FakeExecutor(), timeout_s=1e-9) == []
    assert counted(run(FakeExecutor(), timeout_s=60.0)) == 4


# Seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_makes_the_study_whatever_its_sessions(run: Runs, sampler: str) -> None:
    """TPE samples from its model from the eleventh trial on."""
    whole = run(FakeExecutor(), study="whole", trials=16, sampler=sampler)
    for trials in (5, 12, 16):
        parts = run(FakeExecutor(), study="parts", trials=trials, sampler=sampler)
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
