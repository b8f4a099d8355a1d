"""Trials that fail: what is tried again, what ends the search, and what does not."""

from collections import Counter
from typing import Any

import pytest

from search.errors import Failure
from search.jobs import Failed, Job
from search.workers import Event, event_of
from spaces import SPACES, Space
from tests.search.tiny import FakeExecutor, Runs, broken, counted


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
