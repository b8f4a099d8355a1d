"""Candidates that are not trained: over a limit, asked before, or not to be built."""

from typing import Any

import pytest

from search import study
from search.errors import Failure
from search.report import best_trial
from spaces import SPACES, Space
from tests.search.tiny import FakeExecutor, Runs, broken, counted


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


@pytest.mark.parametrize("given", [{"kernel_1": 4}, {"k": "x"}, {"parametrization": 7}])
def test_a_value_that_a_parameter_cannot_have_is_rejected(run: Runs, given: dict[str, Any]) -> None:
    """Somebody enqueued it: the session goes on, and so does every later one."""
    run(FakeExecutor(), trials=2)
    run.study(run.config(trials=4)).enqueue_trial(given)
    views = run(FakeExecutor(), trials=4)
    assert [view.state for view in views] == ["complete", "complete", "rejected", "complete", "complete"]
    (value,) = given.values()
    assert repr(value) in views[2].attrs["rejected"]


def test_what_another_space_began_is_rejected(run: Runs) -> None:
    run(FakeExecutor(), trials=2)
    run.study(run.config(trials=4)).ask().suggest_categorical("k", [2, 3, 9])
    views = run(FakeExecutor(), trials=4)
    assert [view.state for view in views] == ["complete", "complete", "rejected", "complete", "complete"]


def test_what_was_rejected_at_first_and_accepted_then_counts_when_it_fails(run_sqlite: Runs) -> None:
    """A kill can leave the reason in a trial that waited."""
    config = run_sqlite.config(trials=3)
    run_sqlite.study(config).enqueue_trial({"k": 3}, user_attrs={"rejected": "a limit that was raised since"})
    views = run_sqlite(FakeExecutor(lambda job, events: broken(job, False, "nan")), trials=1)
    assert [(view.state, view.counts) for view in views] == [("failed", True)]


def test_a_trial_that_somebody_told_without_measuring_is_none_of_the_best(run_sqlite: Runs) -> None:
    config = run_sqlite.config(trials=3)
    run_sqlite(FakeExecutor(), trials=2)
    study = run_sqlite.study(config)
    study.tell(study.ask(), [0.99, 1.0])
    views = run_sqlite(FakeExecutor(), trials=4)
    best = best_trial(views)
    assert best is not None
    assert best.number != 2
    assert [view.state for view in views] == ["complete"] * 4
