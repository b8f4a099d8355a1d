"""python -m search.export: write one trial's configuration as a YAML that is enough by itself, or a whole study."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import command, interpreter, run_command

if TYPE_CHECKING:
    from .candidate_file import CandidateFile
    from .storage import TrialView


@command(
    "export", "Write the configuration of a study's best trial (or --pick trial=N) as YAML, or --all of the study."
)
@click.option("--study", required=True, help="Name of the study.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
@click.option("--pick", default="best", help="best: feasible, highest discrete validation accuracy; or trial=N.")
@click.option(
    "--max-gates",
    type=click.IntRange(min=1),
    default=None,
    help="Best among those of at most so many gates, as the study counts them.",
)
@click.option("--all", "whole", is_flag=True, help="Every trial and all that is stored: `search.import` reads it.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="YAML to write; with --all, FILE.csv or FILE.parquet.",
)
def export(study: str, storage: str, pick: str, max_gates: int | None, whole: bool, output: Path) -> None:
    from .errors import UsageError
    from .table_file import SUFFIXES

    if whole:
        _export_all(study, storage, pick, max_gates, output)
    elif output.suffix.lower() in SUFFIXES:
        raise UsageError(f"{output}: one configuration is written as YAML; for a table of all trials add --all")
    else:
        _export_one(study, storage, pick, max_gates, output)


def _export_all(study: str, storage: str, pick: str, max_gates: int | None, output: Path) -> None:
    from .database import storage_errors
    from .errors import UsageError
    from .storage import to_read
    from .study_table import study_table
    from .table_file import check_suffix, write_table

    if pick != "best" or max_gates is not None:
        raise UsageError("--all writes every trial: leave --pick and --max-gates out")
    check_suffix(output)
    url, stored = to_read(study, storage)
    with storage_errors(url):
        table = study_table(stored)
    write_table(output, table)
    click.echo(
        f"{len(table['number'])} trials of study {study}, {len(table)} columns -> {output}\n"
        f"{interpreter()} -m search.import {shlex.quote(str(output))}"
    )


def _export_one(study: str, storage: str, pick: str, max_gates: int | None, output: Path) -> None:
    from .candidate_file import dump_candidate_file
    from .checkpoints import write_atomically
    from .database import storage_errors
    from .report import counted_gates
    from .storage import full_identity, gate_limit, to_read, trial_views

    url, stored = to_read(study, storage)
    with storage_errors(url):
        views = trial_views(stored, full_identity(stored)["gates"])
        if pick == "best" and max_gates is None:  # where other gates are limited, who exceeds it is infeasible
            max_gates = gate_limit(stored.user_attrs) if full_identity(stored)["gates"] == "raw" else None
    trial = pick_trial(views, pick, max_gates)
    record = trial.records[-1]
    file = candidate_file(study, trial)
    write_atomically(output, dump_candidate_file(file).encode())
    click.echo(
        f"trial {trial.number} of study {study}: {record.acc_discrete:.2%} discrete validation accuracy after "
        f"{record.epoch} of {file.candidate.train.epochs} epochs, {counted_gates(trial)}"
        f"{' (infeasible)' * trial.is_infeasible} -> {output}\n"
        f"{interpreter()} -m search.train {shlex.quote(str(output))}"
    )


def candidate_file(study: str, trial: "TrialView") -> "CandidateFile":
    """What is exported of a complete trial."""
    from convlogic_core import raw_gates

    from .candidate_file import CandidateFile, Origin

    assert trial.candidate is not None
    record = trial.records[-1]
    origin = Origin(
        study,
        trial.number,
        trial.known,
        record.epoch,
        record.acc_discrete,
        record.acc_soft,
        raw_gates(trial.candidate.model),
        trial.params,
        record.core_gates,
        record.total_gates,
        record.depth,
    )
    return CandidateFile(trial.candidate, trial.attrs["seed"], origin)


def pick_trial(views: "Sequence[TrialView]", pick: str, max_gates: int | None) -> "TrialView":
    """The trial that --pick and --max-gates name.

    Raises:
        UsageError: there is none; says which there are.
    """
    from .errors import UsageError
    from .report import best_trial, complete, counted_gates, gates

    done = complete(views)
    if not done:
        raise UsageError("the study has no complete trial yet: run `python -m search.run` again to finish it")
    if pick == "best":
        best = best_trial(done, max_gates)
        if best is None:
            smallest = min(done, key=gates)
            limits = ["the study's limit"] * smallest.is_infeasible
            limits += [] if max_gates is None else [f"{max_gates:,} {smallest.gate_count} gates"]
            raise UsageError(
                f"no complete trial keeps to {' and '.join(limits)}: "
                f"the smallest has {counted_gates(smallest)}; --pick trial={smallest.number} takes it all the same"
            )
        return best
    kind, _, number = pick.partition("=")
    if kind != "trial" or not (number.isascii() and number.isdecimal()):
        raise UsageError(f"--pick {pick!r} is neither `best` nor `trial=N`")
    if max_gates is not None:
        raise UsageError("--max-gates chooses among trials: leave it out with --pick trial=N")
    for view in done:
        if view.number == int(number):
            return view
    numbers = ", ".join(str(view.number) for view in done)
    raise UsageError(f"trial {number} is not among the complete ones: {numbers}")


if __name__ == "__main__":
    run_command(export)
