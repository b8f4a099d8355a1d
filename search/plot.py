"""python -m search.plot: draw a study's trials and its front, accuracy over gates."""

from pathlib import Path

import click

from .command import command, run_command


@command("plot", "Draw a study: discrete validation accuracy over gates, and the front.")
@click.option("--study", required=True, help="Name of the study.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="PNG, SVG or PDF.")
def plot(study: str, storage: str, output: Path) -> None:
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    from .checkpoints import write_atomically
    from .errors import UsageError
    from .report import accuracy, complete, front, gates
    from .storage import stored_trials

    kind = output.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise UsageError(f"{output} must end in .png, .svg or .pdf")
    done = complete(stored_trials(study, storage))
    if not done:
        raise UsageError("the study has no complete trial yet: run `python -m search.run` again to finish it")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    sampled = [view for view in done if not view.known and not view.is_infeasible]
    groups = (
        ("stopped early", "o", "tab:gray", [view for view in sampled if "stopped_at_rung" in view.attrs]),
        ("full budget", "o", "tab:blue", [view for view in sampled if "stopped_at_rung" not in view.attrs]),
        ("known before the study", "*", "tab:red", [view for view in done if view.known]),
        ("infeasible", "x", "black", [view for view in done if view.is_infeasible]),
    )
    for label, marker, colour, views in groups:
        if views:
            size = 160 if marker == "*" else 36
            axes.scatter([*map(gates, views)], [*map(accuracy, views)], s=size, marker=marker, c=colour, label=label)
    members = front(done)
    if members:
        steps = [*map(gates, members)], [*map(accuracy, members)]
        axes.step(*steps, where="post", color="tab:green", zorder=0, label="front")
    for view in members:
        axes.annotate(str(view.number), (gates(view), accuracy(view)), textcoords="offset points", xytext=(5, 5))
    axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(
        xlabel=f"{done[0].gate_count} gates",
        ylabel="discrete validation accuracy",
        title=f"study {study}: {len(done)} trials",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    image = io.BytesIO()
    figure.savefig(image, format=kind, dpi=110)
    write_atomically(output, image.getvalue())
    click.echo(f"{len(done)} trial{'s' * (len(done) > 1)} of study {study}, {len(members)} on the front -> {output}")


if __name__ == "__main__":
    run_command(plot)
