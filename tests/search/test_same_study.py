"""Same seed, same study: whatever its sessions and, with --deterministic, its workers."""

from dataclasses import replace

import pytest

from search.jobs import Job
from search.workers import Event, Progress
from tests.search.tiny import BASELINE, FakeExecutor, Runs, counted, params

SAMPLERS = ["tpe", "nsga2", "gp", "random", "qmc"]


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
