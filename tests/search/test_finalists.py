"""Finalists: who is chosen, who wins, and that the test set is opened for a stored winner only, killed or not."""

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from rich.console import Console

from search import data, finalists, session
from search.circuit import circuit
from search.config import StudyConfig
from search.data import Images
from search.errors import Failure, UsageError
from search.export import export
from search.finalists import Finalist, Finals, choose, half_width, name_winner, refuse_another_winner, run_finalists
from search.report import report
from search.run import run as search_run
from search.storage import TrialView, trial_views
from search.train import train
from search.training import Diverged, TrainingRun
from tests.search.conftest import Outcome
from tests.search.test_gates import the_larger_the_better
from tests.search.tiny import FakeExecutor, Runs, stored_trial

Call = Callable[..., Outcome]
OPTIONS = {"trials": 6, "epochs": 3, "limit_train": 100, "finalists": 2}
ARGUMENTS = ("--space", "tiny", "--trials", 6, "--epochs", 3, "--limit-train", 100)
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalists, "_log", lambda *_: None)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Finals]:
    """For every time that the test split is read: the finals as stored at that moment. Without a winner that fails."""
    digits = data.SOURCES["digits"]
    seen: list[Finals] = []

    def read(root: Path, is_test: bool) -> Images:
        if is_test:
            stored = Finals.of(optuna.load_study(study_name="tiny", storage="sqlite:///studies/tiny/study.db"))
            assert stored is not None, "the test split was read before a winner was stored"
            seen.append(stored)
        return digits.read(root, is_test)

    monkeypatch.setitem(data.SOURCES, "digits", replace(digits, read=read))
    return seen


class Searched:
    """A study whose trials are done, in which each call of `finish` goes on with its finalists."""

    def __init__(self, run: Runs, **options: Any) -> None:
        self.config: StudyConfig = run.config(**{**OPTIONS, **options})
        searched = {name: value for name, value in {**OPTIONS, **options}.items() if name != "finalists"}
        run(FakeExecutor(the_larger_the_better), **searched)  # so that all are on the front
        self.study = run.study(self.config)

    def check_lease(self) -> None:
        """It is held."""

    @property
    def views(self) -> list[TrialView]:
        return trial_views(self.study, "total")

    def finish(self) -> str:
        console = Console(width=120, highlight=False, markup=False)
        with console.capture() as capture:
            run_finalists(self.config, self.study, self.views, console, self.check_lease)
        return capture.get()

    @property
    def finals(self) -> Finals:
        found = Finals.of(self.study)
        assert found is not None
        return found


def count_begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of which a first epoch is run from now on."""
    begun: list[int] = []
    run_epoch = TrainingRun.run_epoch

    def counting(run: TrainingRun) -> Any:
        if run.epoch == 0:
            begun.append(run.epoch)
        return run_epoch(run)

    monkeypatch.setattr(TrainingRun, "run_epoch", counting)
    return begun


def validation(trial: int) -> list[float]:
    """Of every seed of a finalist, from the history that training wrote."""
    folders = sorted(Path(f"studies/tiny/finalists/trial_{trial}").glob("seed_*"))
    return [json.loads((folder / "epochs.json").read_text())[-1]["acc_discrete"] for folder in folders]


# From the command line


def test_a_session_names_a_winner_and_tests_it(
    command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, opened: list[Finals]
) -> None:
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor(the_larger_the_better))
    call = (search_run, *ARGUMENTS, "--tracking-uri", tracking_uri)
    assert "then at most 2 finalists" in command(*call, "--finalists", 2, "--dry-run").out
    assert command(*call).code == 0
    assert (opened, Path("studies/tiny/finalists").exists()) == ([], False)
    outcome = command(*call, "--finalists", 2)
    assert (outcome.code, outcome.err) == (0, "")

    study = optuna.load_study(study_name="tiny", storage="sqlite:///studies/tiny/study.db")
    finals = Finals.of(study)
    assert finals is not None
    assert len(finals.members) == 2
    means = {member.trial: statistics.fmean(validation(member.trial)) for member in finals.members}
    assert finals.winner == max(means, key=lambda trial: means[trial])
    for member in finals.members:
        assert sorted(member.accuracies) == sorted(validation(member.trial))
        assert len(member.gates) == 3
        assert f"{means[member.trial]:.2%} ± " in outcome.out

    # the test set: three times, for the winner
    tested = sorted(Path("studies/tiny/finalists").glob("*/*/metrics.json"))
    assert len(opened) == len(tested) == 3
    assert {(seen.winner, seen.test_discrete) for seen in opened} == {(finals.winner, ())}
    assert {path.parts[3] for path in tested} == {f"trial_{finals.winner}"}
    figures = [json.loads(path.read_text())["test/acc_discrete"] for path in tested]
    assert sorted(finals.test_discrete) == sorted(figures)
    interval = 100 * 4.302653 * statistics.stdev(figures) / 3**0.5
    assert f"discrete {statistics.fmean(figures):.2%} ± {interval:.2f}" in outcome.out

    # a line a seed, none an epoch; what comes next comes last, and works
    assert " epoch 1/3" not in outcome.out
    assert outcome.out.count(" of 3): validation discrete ") == 6
    assert outcome.out.count("What next:") == 1
    assert outcome.out.index("What next:") > outcome.out.index("Test accuracy of the winner")
    best = max(validation(finals.winner))
    typed = outcome.out.splitlines()[-1].partition("#")[0].split()
    folder = Path(typed[typed.index("search.circuit") + 1])
    assert folder.parent == Path(f"studies/tiny/finalists/trial_{finals.winner}")
    assert json.loads((folder / "epochs.json").read_text())[-1]["acc_discrete"] == best
    assert command(circuit, folder, "--c", "winner.c").code == 0

    # MLflow: runs that are no trials
    def logged() -> list[Any]:
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        return [run for run in runs if "finalist" in run.data.tags]

    assert len(logged()) == 6
    assert not any("optuna.trial" in run.data.tags for run in logged())
    for run in logged():
        is_winner = f"trial {finals.winner} " in run.info.run_name
        assert ("winner" in run.data.tags) == ("test/acc_discrete" in run.data.metrics) == is_winner
        assert {"val/acc_discrete", "gates/raw", "gates/total"} <= run.data.metrics.keys()

    # the same command again trains, reads and logs nothing; the report shows the same
    again = command(*call, "--finalists", 2)
    table = outcome.out[outcome.out.index("Finalists: ") :]
    assert again.out[again.out.index("Finalists: ") :] == table
    assert " of 3): validation discrete " not in again.out
    assert (len(opened), len(logged())) == (3, 6)
    assert table.partition("\nIts weights")[0] in command(report, "--study", "tiny").out

    # other finalists after the test: refused before a trial is trained
    refused = command(*call, "--finalists", 3)
    assert refused.code == 2
    assert f"named its winner, trial {finals.winner}, with --trials 6 --finalists 2, and the test set" in refused.err
    assert command(*call).code == 0


def test_a_finalist_is_what_final_training_makes_of_the_trial(
    run_sqlite: Runs, command: Call, no_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    searched = Searched(run_sqlite, finalists=1)
    searched.finish()
    winner = searched.finals.winner
    assert command(export, "--study", "tiny", "--pick", f"trial={winner}", "-o", "best.yaml").code == 0
    assert command(train, "best.yaml", "--seeds", 2, "--tracking-uri", DEAD).code == 0
    for folder in Path("runs/best").iterdir():
        mine = Path(f"studies/tiny/finalists/trial_{winner}/{folder.name}")
        assert mine.exists() == (folder.name != f"seed_{searched.views[winner].attrs['seed']}")
        if mine.exists():
            assert (mine / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
            first, second = (json.loads((each / "metrics.json").read_text()) for each in (mine, folder))
            assert first.keys() == second.keys()
            assert {name for name in first if first[name] != second[name]} <= {"images_per_second"}


@pytest.mark.parametrize("lost_at", ["first finalist", "naming", "named", "tested"])
def test_without_the_lease_nothing_is_stored_and_no_test_is_opened(
    run_sqlite: Runs, no_mlflow: None, opened: list[Finals], lost_at: str
) -> None:
    """Two finalists, then naming the winner, testing it, storing what that gave."""
    searched, asked = Searched(run_sqlite), []

    def check_lease() -> None:
        asked.append(1)
        if len(asked) > {"first finalist": 0, "naming": 2, "named": 3, "tested": 4}[lost_at]:
            raise Failure("lost")

    searched.check_lease = check_lease  # type: ignore[method-assign]
    with pytest.raises(Failure, match="lost"):
        searched.finish()
    finals = Finals.of(searched.study)
    assert (finals is not None) == (lost_at in ("named", "tested"))
    assert finals is None or finals.test_discrete == ()
    assert len(opened) == (3 if lost_at == "tested" else 0)
    assert len(list(Path("studies").rglob("model.safetensors"))) == (0 if lost_at == "first finalist" else 6)


def test_a_session_whose_lock_is_removed_names_no_winner(
    command: Call, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, opened: list[Finals]
) -> None:
    def train_seeds(*args: Any) -> Any:
        Path("studies/tiny/study.db.tiny.lock").unlink(missing_ok=True)
        return original(*args)

    original = finalists.train_seeds
    monkeypatch.setattr(finalists, "train_seeds", train_seeds)
    monkeypatch.setattr(session, "make_executor", lambda *_: FakeExecutor(the_larger_the_better))
    outcome = command(search_run, *ARGUMENTS, "--tracking-uri", tracking_uri, "--finalists", 1)
    assert outcome.code == 1
    assert outcome.err == "error: the lock on study 'tiny' was lost; nothing stored is: run the same command again\n"
    assert Finals.of(optuna.load_study(study_name="tiny", storage="sqlite:///studies/tiny/study.db")) is None
    assert opened == []


# The test set, and kills


class Killed(BaseException): ...


@pytest.mark.parametrize(
    "kill_at", ["third seed", "second finalist", "naming", "named", "second test", "tested", "printed"]
)
def test_killed_anywhere_the_same_command_ends_the_same(
    run_sqlite: Runs, no_mlflow: None, monkeypatch: pytest.MonkeyPatch, opened: list[Finals], kill_at: str
) -> None:
    searched = Searched(run_sqlite)

    def kill(owner: Any, name: str, at_call: int, after: bool = False) -> None:
        original, calls = getattr(owner, name), []

        def killed(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == at_call and not after:
                raise Killed
            result = original(*args, **options)
            if len(calls) == at_call:
                raise Killed
            return result

        patch.setattr(owner, name, killed)

    with monkeypatch.context() as patch:
        if kill_at == "third seed":
            kill(TrainingRun, "run_epoch", 8)
        elif kill_at == "second finalist":
            kill(finalists, "train_seeds", 4)
        elif kill_at in ("naming", "named"):
            kill(Finals, "store", 1, after=kill_at == "named")
        elif kill_at == "second test":
            kill(finalists, "with_test", 2)
        elif kill_at == "tested":
            kill(Finals, "store", 2)
        else:
            kill(finalists, "print_finals", 1, after=True)
        with pytest.raises(Killed):
            searched.finish()
    trained = len(list(Path("studies").rglob("model.safetensors")))
    assert trained == {"third seed": 2, "second finalist": 3}.get(kill_at, 6)
    begun = count_begun(monkeypatch)
    searched.finish()
    assert len(begun) == 6 - trained
    finals = searched.finals
    assert len(opened) == 3
    assert {seen.winner for seen in opened} == {finals.winner}
    assert {member.trial: sorted(member.accuracies) for member in finals.members} == {
        member.trial: sorted(validation(member.trial)) for member in finals.members
    }
    assert len(finals.test_discrete) == len(finals.test_soft) == 3
    assert len(list(Path("studies").rglob("metrics.json"))) == 3


def test_before_the_winner_is_named_finalists_may_change(run_sqlite: Runs, no_mlflow: None) -> None:
    searched = Searched(run_sqlite)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finals, "store", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            searched.finish()
    other = replace_config(searched.config, finalists=1)
    refuse_another_winner(other, searched.study)
    searched.config = other
    searched.finish()
    for changed in ({"finalists": 2}, {"trials": 7}, {"max_gates": 2000}):
        with pytest.raises(UsageError, match="named its winner"):
            refuse_another_winner(replace_config(other, **changed), searched.study)
    refuse_another_winner(replace_config(other, finalists=0, trials=9), searched.study)


def replace_config(config: StudyConfig, **changed: Any) -> StudyConfig:
    return config.model_copy(update=changed)


def test_finalists_wait_for_all_trials(run_sqlite: Runs, opened: list[Finals]) -> None:
    searched = Searched(run_sqlite)
    searched.config = replace_config(searched.config, trials=7)
    assert "Finalists wait for all 7 trials" in searched.finish()
    assert (opened, Finals.of(searched.study)) == ([], None)


def test_a_finalist_that_diverges_is_out(
    run_sqlite: Runs, no_mlflow: None, monkeypatch: pytest.MonkeyPatch, opened: list[Finals]
) -> None:
    searched = Searched(run_sqlite, finalists=3)
    chosen = choose(searched.views, 3, None, True)
    assert len(chosen) > 1
    run_epoch = TrainingRun.run_epoch
    bad = [view.candidate for view in chosen]

    def diverging(run: TrainingRun) -> Any:
        if run.candidate in bad:
            raise Diverged("the loss is nan in epoch 1: lr 9 is likely too high")
        return run_epoch(run)

    monkeypatch.setattr(TrainingRun, "run_epoch", diverging)
    with pytest.raises(Failure, match="every finalist diverged, the last with: diverged: the loss is nan"):
        searched.finish()
    assert opened == []
    del bad[1:]
    out = searched.finish()
    assert f"trial {chosen[0].number} is out: the loss is nan" in out
    assert searched.finals.members[0] == Finalist(
        chosen[0].number, (), (), "diverged: the loss is nan in epoch 1: lr 9 is likely too high"
    )
    assert searched.finals.winner in {view.number for view in chosen[1:]}
    assert "(diverged: the loss" in out.replace("\n", " ")


# Who is chosen, and who wins


def test_the_front_is_covered_from_the_most_accurate_on() -> None:
    front = {0.30: 10**3, 0.90: 10**4, 0.91: 11_000, 0.95: 10**5, 0.96: 10**6}
    views = [stored_trial(i, {9: acc}, total=total) for i, (acc, total) in enumerate(front.items())]
    views += [
        stored_trial(5, {9: 0.94}, total=10**5),  # dominated
        stored_trial(6, {9: 0.99}, total=10**3, excess=1),
        stored_trial(7, {9: 0.99}, total=10**3, state=optuna.trial.TrialState.FAIL),
    ]
    chosen = [[view.number for view in choose(views, number, None, True)] for number in range(1, 7)]
    assert chosen[0] == [4]
    assert chosen[1] == [4, 1]
    assert chosen[2] == [4, 1, 3]
    assert chosen[3] == [4, 1, 3, 2]
    assert chosen[4] == chosen[5] == [4, 1, 3, 2, 0]
    assert [view.number for view in choose(views, 2, 20_000, True)] == [2, 1]
    assert [view.number for view in choose(views, 3, None, False)] == [4, 3, 5]
    assert choose(views, 3, 10, True) == choose(views, 3, 10, False) == []
    equal = [stored_trial(i, {9: 0.5}) for i in range(3)]
    assert sorted(view.number for view in choose(equal, 3, None, True)) == [0, 1, 2]


def test_the_winner_has_the_best_mean_within_the_limit() -> None:
    large = Finalist(3, (0.9, 0.9, 0.9), (900, 1100, 900))
    small = Finalist(5, (0.99, 0.5, 0.6), (500, 500, 500))
    smaller = Finalist(4, (0.99, 0.5, 0.6), (400, 400, 400))
    failed = Finalist(1, (), (), "diverged")
    assert name_winner([failed, small, large], None) == 3
    assert name_winner([failed, small, large], 1100) == 3
    assert name_winner([failed, small, large], 1000) == 5
    assert name_winner([large, small], 100) == 5
    assert name_winner([small, smaller], None) == 4


def test_the_interval_is_students() -> None:
    assert half_width([1, 2, 3]) == pytest.approx(4.302652729911275 / 3**0.5)  # its tables give 4.303
    assert half_width([0.5, 0.5, 0.5]) == 0
