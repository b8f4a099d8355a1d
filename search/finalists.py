"""Finalists: the best of a study trained again on further seeds, a winner named from validation, then tested, once.

They are trained one after the other in the driver's process, on all its cores or its GPU, once the workers are gone.
The winner is stored, as the study's attribute `finalists`, before the test set is opened for it, and for it alone.
"""

import math
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import optuna
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .command import interpreter
from .config import StudyConfig
from .diagnostics import dominated_area
from .errors import Failure, UsageError
from .export import candidate_file
from .final_training import FinalResult, further_seeds, train_seeds, with_test
from .report import accuracy, complete, describe, fits, front, gates, ranked
from .storage import TrialView
from .training import Diverged

ATTRIBUTE: Final = "finalists"
NUM_SEEDS: Final = 3
# Student's t of NUM_SEEDS - 1 = 2 degrees of freedom, two-sided: there its quantiles have this closed form
T_95: Final = 0.95 * math.sqrt(2 / (1 - 0.95**2))
RULE: Final = "the most accurate, then always the one that adds the most hypervolume, in accuracy and log gates"


@dataclass(frozen=True)
class Finalist:
    """A trial's figures at the full budget, a seed each: discrete validation accuracy and gates as the study counts.

    Empty where training diverged on a seed: `problem` says how.
    """

    trial: int
    accuracies: tuple[float, ...]
    gates: tuple[int, ...]
    problem: str = ""


@dataclass(frozen=True)
class Finals:
    """What is stored of a study's finalists: what was asked, all of them, the winner, and then its test accuracies."""

    asked: dict[str, int | None]
    gate_count: str
    members: tuple[Finalist, ...]
    winner: int
    test_soft: tuple[float, ...] = ()
    test_discrete: tuple[float, ...] = ()

    @classmethod
    def of(cls, study: optuna.Study) -> "Finals | None":
        """Those of a study, once the winner is named."""
        stored = study.user_attrs.get(ATTRIBUTE)
        return None if stored is None else TypeAdapter(cls).validate_python(stored)

    def store(self, study: optuna.Study) -> None:
        study.set_user_attr(ATTRIBUTE, asdict(self))


def describe_finalists(config: StudyConfig) -> str:
    """What --finalists will do."""
    what = "the best trials" if len(config.objectives) == 1 else f"trials of the front ({RULE})"
    return f"then at most {config.finalists} finalists, {what}: {NUM_SEEDS} further seeds each at the full budget"


def refuse_another_winner(config: StudyConfig, study: optuna.Study) -> None:
    """A study's test set is opened for one winner.

    Raises:
        UsageError: it has one, of other trials or finalists than are asked for.
    """
    finals = Finals.of(study)
    if config.finalists and finals is not None and finals.asked != _asked(config):
        asked = " ".join(f"--{name} {value}" for name, value in finals.asked.items() if value is not None)
        raise UsageError(
            f"study {config.study!r} named its winner, trial {finals.winner}, with {asked}, and the test set is read "
            "for one winner only: give the same, leave out --finalists, or search under another --study"
        )


def run_finalists(
    config: StudyConfig,
    study: optuna.Study,
    views: Sequence[TrialView],
    console: Console,
    check_lease: Callable[[], None],
) -> None:
    """Choose, train, name the winner, test it, print, log. A killed run goes on when repeated.

    Args:
        check_lease: raises `Failure` where another driver may have the study by now. Asked before each finalist, before
            anything is stored, and before the test set is opened.

    Raises:
        UsageError: a finalist's folder holds another configuration's results.
        Failure: no trial keeps to the limits, every finalist diverged, the lease is lost, or data, memory or disk.
    """
    num_counted = sum(view.counts for view in views)
    if num_counted < config.trials:
        console.print(
            f"\nFinalists wait for all {config.trials} trials: the same command goes on with the missing ones."
        )
        return
    finals = Finals.of(study)
    if finals is None:
        finals = _train_and_name_winner(config, views, console, check_lease)
        check_lease()
        finals.store(study)
    if not finals.test_discrete:
        check_lease()
        tested = _test(config, views[finals.winner])
        soft, discrete = (
            tuple(result.metrics[f"test/acc_{kind}"] for result in tested) for kind in ("soft", "discrete")
        )
        check_lease()
        finals = replace(finals, test_soft=soft, test_discrete=discrete)
        finals.store(study)
    print_finals(console, finals, views)
    console.print(f"Its weights and circuits: {_folder(config, finals.winner)}/seed_*", soft_wrap=True)
    _log(config, finals, views, console)
    if _folder(config, finals.winner).exists():  # not where another machine trained it
        console.print(f"\n{_next_steps(config, finals, views[finals.winner])}", soft_wrap=True)


def _next_steps(config: StudyConfig, finals: Finals, winner: TrialView) -> str:
    """What to do with the winner, by the seed that validation found the best."""
    (member,) = [member for member in finals.members if member.trial == finals.winner]
    seed = _seeds(config, winner)[member.accuracies.index(max(member.accuracies))]
    folder = _folder(config, finals.winner) / f"seed_{seed}"
    data = "" if config.data_dir is None else f" --data-dir {shlex.quote(config.data_dir)}"
    return (
        f"What next:\n  {interpreter()} -m search.circuit {shlex.quote(str(folder))} --verilog winner.v --c winner.c "
        f"--verify{data}    # the winner's circuit, of its best seed by validation"
    )


def choose(views: Sequence[TrialView], number: int, max_gates: int | None, by_gates: bool) -> list[TrialView]:
    """At most so many feasible trials: of the front, spread over it, or the most accurate where gates do not count.

    Over the front: `RULE`, both axes scaled to its span; so the smallest, which may be good for nothing, comes last.
    """
    fitting = [view for view in complete(views) if fits(view, max_gates)]
    if not by_gates or not fitting:
        return ranked(fitting)[:number]
    left = front(fitting)
    smallness, height = _scaled([-math.log(max(1, gates(view))) for view in left]), _scaled([*map(accuracy, left)])
    points = {view.number: point for view, point in zip(left, zip(smallness, height, strict=True), strict=True)}
    chosen = ranked(left)[:1]
    left.remove(chosen[0])
    while left and len(chosen) < number:
        chosen.append(max(left, key=lambda view: dominated_area(points[each.number] for each in (*chosen, view))))
        left.remove(chosen[-1])
    return chosen


def _scaled(values: Sequence[float]) -> list[float]:
    """To [0, 1] from the least to the greatest."""
    least, span = min(values), max(values) - min(values)
    return [(value - least) / (span or 1) for value in values]


def name_winner(members: Sequence[Finalist], max_gates: int | None) -> int:
    """The trial of the best mean accuracy, the fewest gates breaking ties.

    One that is over the limit on some seed comes after all that are not, the least over it first.

    Raises:
        Failure: every one diverged.
    """
    trained = [member for member in members if member.accuracies]
    if not trained:
        raise Failure(f"every finalist diverged, the last with: {members[-1].problem}")

    def order(member: Finalist) -> tuple[float, ...]:
        excess = 0 if max_gates is None else max(0, max(member.gates) - max_gates)
        return excess, -statistics.fmean(member.accuracies), statistics.fmean(member.gates), member.trial

    return min(trained, key=order).trial


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of NUM_SEEDS values, by Student's t."""
    assert len(values) == NUM_SEEDS
    return T_95 * statistics.stdev(values) / math.sqrt(NUM_SEEDS)


def print_finals(console: Console, finals: Finals, views: Sequence[TrialView]) -> None:
    """The table of finalists and the winner's test figures."""
    table = Table(
        title=f"\nFinalists: discrete validation accuracy, mean of {NUM_SEEDS} seeds with 95 % interval (Student's t)",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for name in ("trial", "discrete", f"{finals.gate_count} gates"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("network", overflow="fold")
    limit = finals.asked["max-gates"]
    for member in finals.members:
        over = limit is not None and member.accuracies and max(member.gates) > limit
        remarks = ["winner"] * (member.trial == finals.winner) + ["over the limit"] * bool(over)
        remark = "; ".join(remarks) or member.problem
        table.add_row(
            str(member.trial),
            _mean(member.accuracies) if member.accuracies else "",
            f"{statistics.fmean(member.gates):,.0f}" if member.gates else "",
            Text(describe(views[member.trial]) + (f" ({remark})" if remark else "")),
        )
    console.print(table)
    if finals.test_discrete:
        console.print(
            f"\nTest accuracy of the winner, trial {finals.winner}, over its {NUM_SEEDS} seeds: discrete "
            f"{_mean(finals.test_discrete)}, soft {_mean(finals.test_soft)}. The test set was opened after it was "
            "named, and for no other finalist.",
            soft_wrap=True,
        )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2%} ± {100 * half_width(values):.2f}"


def _asked(config: StudyConfig) -> dict[str, int | None]:
    return {"trials": config.trials, "finalists": config.finalists, "max-gates": config.max_gates}


def _train_and_name_winner(
    config: StudyConfig, views: Sequence[TrialView], console: Console, check_lease: Callable[[], None]
) -> Finals:
    chosen = choose(views, config.finalists, config.max_gates, "gates" in config.objectives)
    if not chosen:
        raise Failure(f"no trial of study {config.study!r} keeps to its limit: there are no finalists")
    if len(chosen) < config.finalists:
        where = "the front has" if "gates" in config.objectives else "there are"
        console.print(f"\n{config.finalists} finalists were asked for, {where} {len(chosen)}.")
    members = []
    for place, view in enumerate(chosen, 1):
        check_lease()
        console.print(f"\nfinalist {place} of {len(chosen)}: trial {view.number}, {describe(view)}", soft_wrap=True)
        try:
            results = _train_and_say(config, view, console)
        except Diverged as error:
            console.print(f"trial {view.number} is out: {error}", soft_wrap=True)
            members.append(Finalist(view.number, (), (), f"diverged: {error}"))
            continue
        accuracies = tuple(result.metrics["val/acc_discrete"] for result in results)
        counts = tuple(int(result.metrics[f"gates/{config.gates}"]) for result in results)
        members.append(Finalist(view.number, accuracies, counts))
    return Finals(_asked(config), config.gates, tuple(members), name_winner(members, config.max_gates))


def _seeds(config: StudyConfig, view: TrialView) -> list[int]:
    """Those that follow the trial's own: on that one it was among the best, which favours it."""
    return further_seeds(candidate_file(config.study, view).seed, NUM_SEEDS)


def _train(config: StudyConfig, view: TrialView, seeds: Sequence[int]) -> list[FinalResult]:
    """What is trained already is only read. Without a line an epoch: of all finalists these are hundreds."""
    file = candidate_file(config.study, view)
    return train_seeds(Console(quiet=True), file, seeds, config.data_dir, _folder(config, view.number))


def _train_and_say(config: StudyConfig, view: TrialView, console: Console) -> list[FinalResult]:
    """All seeds, a line each; on a terminal also which is being trained."""
    results = []
    for place, seed in enumerate(_seeds(config, view), 1):
        start_s = time.monotonic()
        with console.status(f"trial {view.number}: seed {place} of {NUM_SEEDS}"):
            (result,) = _train(config, view, [seed])
        console.print(
            f"trial {view.number} seed {seed} ({place} of {NUM_SEEDS}): validation discrete "
            f"{result.metrics['val/acc_discrete']:.2%}, soft {result.metrics['val/acc_soft']:.2%}, "
            f"{int(result.metrics[f'gates/{config.gates}']):,} {config.gates} gates, "
            f"{time.monotonic() - start_s:.0f} s",
            soft_wrap=True,
        )
        results.append(result)
    return results


def _test(config: StudyConfig, winner: TrialView) -> list[FinalResult]:
    """The winner's seeds with their test figures. Only to be called for a winner that is stored."""
    file = candidate_file(config.study, winner)
    return [with_test(file, result, config.data_dir) for result in _train(config, winner, _seeds(config, winner))]


def _folder(config: StudyConfig, trial: int) -> Path:
    return config.folder / "finalists" / f"trial_{trial}"


def _log(config: StudyConfig, finals: Finals, views: Sequence[TrialView], console: Console) -> None:
    """To MLflow, what this machine has of them: another may have trained them."""
    from .tracking import log_final_training

    for member in finals.members:
        if member.problem or not _folder(config, member.trial).exists():
            continue
        view, is_winner = views[member.trial], member.trial == finals.winner
        results = _test(config, view) if is_winner else _train(config, view, _seeds(config, view))
        log_final_training(
            config.study,
            f"trial {member.trial}",
            candidate_file(config.study, view),
            results,
            config.tracking_uri,
            lambda line: console.print(f"warning: {line}", soft_wrap=True),
            "finalist",
            is_winner,
        )
