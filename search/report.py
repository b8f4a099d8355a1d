"""What a study found, for people: the ranked table, the front, what the search gained, diagnostics, what to type next.

As `python -m search.report` the report of a stored study.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .command import command, make_console, run_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .storage import TrialView

MAX_RANKED = 10
ACCURACY = "val/acc_discrete"  # the constraint of --min-accuracy
MIN_WIDTH = 60  # below it tables run over a terminal's edge, so that figures stay whole


def report_console() -> Console:
    """Where tables are printed."""
    console = make_console()
    console.width = max(console.width, MIN_WIDTH)
    return console


def best_trial(views: Sequence[TrialView], max_gates: int | None = None) -> TrialView | None:
    """The feasible trial of the highest discrete validation accuracy, the fewest gates breaking ties."""
    fitting = [view for view in complete(views) if fits(view, max_gates)]
    return ranked(fitting)[0] if fitting else None


def fits(view: TrialView, max_gates: int | None) -> bool:
    """Whether a complete trial keeps to the study's limit and to this one."""
    return not view.is_infeasible and (max_gates is None or gates(view) <= max_gates)


def complete(views: Sequence[TrialView]) -> list[TrialView]:
    """Those that were measured: somebody else may tell a trial without."""
    return [view for view in views if view.state == "complete" and view.records]


def ranked(views: Sequence[TrialView]) -> list[TrialView]:
    """Best accuracy first, then fewest gates."""
    return sorted(views, key=lambda view: (-accuracy(view), gates(view), view.number))


def front(views: Sequence[TrialView]) -> list[TrialView]:
    """The feasible trials that no other beats in both accuracy and gates, fewest gates first."""
    import numpy as np

    from .rungs import front_numbers

    candidates = [view for view in complete(views) if not view.is_infeasible]
    if not candidates:
        return []
    numbers = front_numbers(np.array([(accuracy(view), -gates(view)) for view in candidates]))
    members = [view for view, number in zip(candidates, numbers, strict=True) if number == 0]
    return sorted(members, key=lambda view: (gates(view), view.number))


def accuracy(view: TrialView) -> float:
    value = view.acc_discrete
    assert value is not None
    return value


def gates(view: TrialView) -> int:
    value = view.gates
    assert value is not None
    return value


def counted_gates(view: TrialView) -> str:
    """The gates of a trial that was measured, and which they are."""
    return f"{gates(view):,} {view.gate_count} gates"


def describe(view: TrialView) -> str:
    """The structure in a few words: k, kernels, tree depth, dense widths."""
    candidate = view.candidate
    if candidate is None:
        return ""
    model = candidate.model
    if not model.conv:
        return f"dense {'-'.join(str(layer.out_dim) for layer in model.dense)}, {model.parametrization}"
    kernels = "-".join(str(block.kernel) for block in model.conv)
    depth = model.conv[0].tree_depth
    dense = "-".join(str(layer.out_dim) for layer in model.dense)
    return f"k={model.conv[0].out_channels} conv {kernels} depth {depth}, dense {dense}, {model.parametrization}"


def trial_table(title: str, views: Sequence[TrialView], full_epochs: int) -> Table:
    """One line a trial, of one at least. Accuracies are discrete and soft, on validation, after the epochs stated."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("trial", "discrete", "soft", f"{views[0].gate_count} gates", "epochs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("network", overflow="fold")
    for view in views:
        origin = view.warm_start and f"from {view.warm_start}"
        remarks = "; ".join(filter(None, (view.known, origin, "infeasible" * view.is_infeasible)))
        epochs = str(view.epoch) if view.epoch == full_epochs else f"{view.epoch} of {full_epochs}"
        table.add_row(
            str(view.number),
            f"{accuracy(view):.2%}",
            f"{view.records[-1].acc_soft:.2%}",
            f"{gates(view):,}",
            epochs,
            Text(describe(view) + (f" ({remarks})" if remarks else "")),
        )
    return table


def print_report(
    console: Console,
    study: str,
    views: Sequence[TrialView],
    full_epochs: int,
    baseline_name: str,
    max_gates: int | None,
    next_steps: str,
) -> None:
    """The whole report. Trials over `max_gates` (the baseline may be one) are ranked last."""
    from .diagnostics import diagnostics

    states = [view.state for view in views]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "running", "failed", "rejected") if state in states
    )
    stopped = sum("stopped_at_rung" in view.attrs for view in views)
    early = f"; {stopped} of them stopped early" if counts else ""
    console.print(f"\nstudy {study}: {counts or 'no trials'}{early}", soft_wrap=True)
    done = complete(views)
    for view in views:
        if view.state == "failed":
            console.print(f"  trial {view.number} failed ({view.cause}): {view.message}", soft_wrap=True)
    if not done:
        if next_steps:
            console.print(f"\n{next_steps}", soft_wrap=True)
        return
    over = [view for view in done if not fits(view, max_gates)]
    best = ranked([view for view in done if fits(view, max_gates)]) + ranked(over)
    console.print(trial_table("\nBest by discrete validation accuracy", best[:MAX_RANKED], full_epochs))
    if members := front(views):
        console.print(trial_table("\nFront: none is both better and smaller", members, full_epochs))
    baseline = next((view for view in done if view.known == baseline_name), None)
    if not fits(best[0], max_gates):
        limits = limits_not_kept(done, max_gates)
        console.print(
            f"\nNo trial keeps to the study's limit{'s' * (len(limits) > 1)}: {' and '.join(limits)}.", soft_wrap=True
        )
    elif baseline is best[0]:
        console.print(f"\nNothing beat the published baseline (trial {baseline.number}) in accuracy.")
    elif baseline is not None:
        gained = 100 * (accuracy(best[0]) - accuracy(baseline))
        console.print(
            f"\nThe best is {gained:+.2f} points against the published baseline (trial {baseline.number}) at "
            f"{gates(best[0]) / gates(baseline):.2f} of its {baseline.gate_count} gates.",
            soft_wrap=True,
        )
    sampled = next((view for view in best if not (view.known or view.warm_start)), None)
    if best[0] is not sampled and sampled is not None:
        console.print(
            f"Trial {best[0].number} was known before the study; the best that it sampled is trial {sampled.number}: "
            f"{accuracy(sampled):.2%} at {counted_gates(sampled)} after {sampled.epoch} epochs.",
            soft_wrap=True,
        )
    console.print("\nDiagnostics", style="bold")
    for line in diagnostics(views, full_epochs):
        console.print(f"  {line}", soft_wrap=True)
    if next_steps:
        console.print(f"\n{next_steps}", soft_wrap=True)


def limits_not_kept(done: Sequence[TrialView], max_gates: int | None) -> list[str]:
    """Each limit that a complete trial is beyond, with the trial that comes closest to it."""
    best, smallest = ranked(done)[0], min(done, key=gates)
    beyond = {name for view in done for name, excess in view.frozen.constraints.items() if excess > 0}
    limits = []
    if ACCURACY in beyond:
        # what is stored is by how much each is beyond the limit
        least = next(
            view.frozen.constraints[ACCURACY] + accuracy(view) for view in done if ACCURACY in view.frozen.constraints
        )
        limits.append(f"accuracy of at least {least:.2%} (the best, trial {best.number}, has {accuracy(best):.2%})")
    if max_gates is not None and any(gates(view) > max_gates for view in done):
        limits.append(
            f"at most {max_gates:,} {smallest.gate_count} gates (the smallest, trial {smallest.number}, has "
            f"{gates(smallest):,})"
        )
    return limits


@command("report", "Report on a study: its best trials, its front, how well its rungs judged, its finalists.")
@click.option("--study", "name", required=True, help="Name of the study.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
def report(name: str, storage: str) -> None:
    from .database import shown, storage_errors
    from .finalists import Finals, print_finals
    from .identity import described, run_call
    from .storage import full_identity, gate_limit, to_read, trial_views

    url, study = to_read(name, storage)
    with storage_errors(url):
        identity, limit, finals = full_identity(study), gate_limit(study.user_attrs), Finals.of(study)
        views = trial_views(study, identity["gates"])
    baseline = next((view.known for view in views if view.known), "")
    console = report_console()
    console.print(f"made with {described(identity, limit)}", soft_wrap=True)
    call = run_call(name, shown(url), {**identity, "max_gates": limit}, sum(view.counts for view in views))
    next_steps = "" if complete(views) else f"What next:\n  {call}    # searches"
    print_report(console, name, views, identity["rungs"][-1], baseline, limit, next_steps)
    if finals is not None:
        print_finals(console, finals, views)


if __name__ == "__main__":
    run_command(report)
