"""python -m search.spaces: list what can be searched, or describe one space."""

import click

from .command import command, run_command


@command("spaces", "List what can be searched, or describe the space NAME.")
@click.argument("name", required=False)
def spaces(name: str | None) -> None:
    from rich.table import Table

    from convlogic_core import raw_gates
    from spaces import SPACES

    from .data import find_source
    from .errors import UsageError
    from .report import report_console

    console = report_console()
    if name is None:
        for space in SPACES.values():
            console.print(f"{space.name:14} {space.description}", soft_wrap=True)
        console.print("\npython -m search.spaces NAME describes one; python -m search.run --space NAME searches it.")
        return
    if name not in SPACES:
        raise UsageError(f"unknown space {name!r}: choose one of {', '.join(SPACES)}")
    space = SPACES[name]
    console.print(f"{space.name}: {space.description}")
    console.print(
        f"data {space.data.dataset}, {space.data.num_thresholds} {space.data.threshold_kind} "
        f"threshold{'s' * (space.data.num_thresholds > 1)} a channel"
    )
    console.print(
        f"budget {space.budget.epochs} epochs; rungs at {', '.join(map(str, space.budget.rungs))}, "
        f"1 in {space.budget.reduction} goes on\n"
    )
    table = Table(box=None, pad_edge=False)
    for column in ["parameter", "values", "only where", *(each.name for each in space.known)]:
        table.add_column(column, overflow="fold")
    for parameter in space.parameters:
        condition = (
            "" if parameter.when is None else f"{parameter.when[0]} = {' or '.join(map(str, parameter.when[1]))}"
        )
        values = [_shown(each.params.get(parameter.name, "")) for each in space.known]
        table.add_row(parameter.name, str(parameter.domain), condition, *values)
    console.print(table)
    console.print()
    info = find_source(space.data.dataset).info
    for number, known in enumerate(space.known):
        candidate = space.build(known.params, space.data, info, space.budget.epochs)
        console.print(f"trial {number}: {known.name}, {raw_gates(candidate.model):,} raw gates. {known.source}")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(spaces)
