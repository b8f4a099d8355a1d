"""python -m search.export: write one trial's configuration as a YAML that is enough by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import command, run_command

if TYPE_CHECKING:
    from .storage import TrialView


@command("export", "Write the configuration of a study's best trial (or --pick trial=N) as YAML.")
@click.option("--study", required=True, help="Name of the study.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
@click.option("--pick", default="best", help="best: highest discrete validation accuracy; or trial=N.")
@click.option(
    "--max-gates", type=click.IntRange(min=1), default=None, help="Best among those of at most so many gates."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="YAML to write.")
def export(study: str, storage: str, pick: str, max_gates: int | None, output: Path) -> None:
    from .candidate_file import CandidateFile, dump_candidate_file
    from .checkpoints import write_atomically
    from .config import check_study_name, default_storage
    from .errors import UsageError
    from .storage import open_study, storage_errors, trial_views

    try:
        check_study_name(study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    url = storage or default_storage(study)
    with storage_errors(url):
        trial = pick_trial(trial_views(open_study(url, study)), pick, max_gates)
    assert trial.candidate is not None
    record = trial.records[-1]
    origin = {
        "study": study,
        "trial": trial.number,
        "known": trial.known,
        "epoch": record.epoch,
        "val/acc_discrete": record.acc_discrete,
        "val/acc_soft": record.acc_soft,
        "gates/raw": trial.raw_gates,
        "params": trial.params,
    }
    file = CandidateFile(trial.candidate, trial.attrs["seed"], origin)
    write_atomically(output, dump_candidate_file(file).encode())
    click.echo(
        f"trial {trial.number} of study {study}: {record.acc_discrete:.2%} discrete validation accuracy after "
        f"{record.epoch} of {trial.candidate.train.epochs} epochs, {trial.raw_gates:,} raw gates -> {output}\n"
        f"python -m search.train {output}"
    )


def pick_trial(views: "Sequence[TrialView]", pick: str, max_gates: int | None) -> "TrialView":
    """The trial that --pick and --max-gates name.

    Raises:
        UsageError: there is none; says which there are.
    """
    from .errors import UsageError
    from .report import best_trial, complete, gates

    done = complete(views)
    if not done:
        raise UsageError("the study has no complete trial yet: run `python -m search.run` again to finish it")
    if pick == "best":
        best = best_trial(done, max_gates)
        if best is None:
            raise UsageError(
                f"no complete trial has at most {max_gates:,} raw gates; the smallest has {min(map(gates, done)):,}"
            )
        return best
    kind, _, number = pick.partition("=")
    if kind != "trial" or not number.isdigit():
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
