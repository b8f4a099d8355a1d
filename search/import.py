"""python -m search.import: restore a study that `search.export --all` wrote, to go on with it here."""

from collections import Counter
from pathlib import Path

import click

from .command import command, run_command


@command("import", "Restore the study in FILE, written by `search.export --all`; `search.run` goes on with it.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--study", default="", show_default="the exported study's", help="Name of the study to make.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
def import_study(file: Path, study: str, storage: str) -> None:
    from optuna.logging import WARNING, set_verbosity

    from .config import check_study_name, default_storage
    from .database import shown
    from .errors import UsageError
    from .identity import run_call
    from .lease import lease
    from .storage import TrialView, gate_limit
    from .study_table import restore, study_of
    from .table_file import read_table

    stored = study_of(read_table(file), str(file))
    name = study or stored.cell.name
    try:
        check_study_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    url = storage or default_storage(name)
    set_verbosity(WARNING)
    with lease(url, name, lambda line: click.echo(f"warning: {line}")):  # a driver would take what is there so far
        restore(stored, url, name)
    states = Counter(TrialView(trial, "raw").state for trial in stored.trials)
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    click.echo(f"{len(stored.trials)} trials ({counts}) -> study {name} in {shown(url)}")
    if states["running"]:
        click.echo("those that were running have lost their checkpoints: they train from their first epoch again")
    attrs = stored.cell.user_attrs
    if "identity" in attrs:
        identity = {"gates": "raw", **attrs["identity"]}
        identity["max_gates"] = gate_limit(attrs)
        num_counted = sum(TrialView(trial, "raw").counts for trial in stored.trials)
        click.echo(f"{run_call(name, shown(url), identity, num_counted)}    # goes on with it")


if __name__ == "__main__":
    run_command(import_study)
