"""python -m search.run: search a space; the same command again resumes."""

from typing import Any

import click

from .command import command, run_command
from .errors import UsageError

DATA = (
    "Another dataset for this space: digits, mnist, fashion_mnist, cifar10, or your own: npz:FILE (uint8 x_train, "
    "y_train, x_test, y_test) or folder:DIR (DIR/train/CLASS/*.png, DIR/test/CLASS/*.png). Paths are relative to the "
    "working directory, here and where an exported configuration is trained."
)
GPUS = "0.5: two share one. auto: the first trial tells how many may."


def _gpu_share(context: click.Context, option: click.Parameter, value: str | None) -> float | str | None:
    return value if value in (None, "auto") else click.FLOAT(value, option, context)


def _fraction(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and 1 < value < 100:
        raise UsageError(f"--min-accuracy {value:g} is no fraction: did you mean {value / 100:g}?")
    return value


def _studies(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    if value and not all(names):
        raise UsageError(f"--warm-start {value!r} lacks a name before or after a comma: write STUDY or STUDY,STUDY")
    return names if value else ()


@command("run", "Search a space. Run the same command again to resume: --trials is the study's total.")
@click.option("--space", default="digits_small", help="What to search; `python -m search.spaces` lists them.")
@click.option("--study", default="", show_default="the space's name", help="Name of the study and of its folder.")
@click.option("--storage", default="", show_default="sqlite:///studies/STUDY/study.db", help="Optuna RDB URL.")
@click.option("--data", default="", show_default="the space's", help=DATA)
@click.option("--data-dir", default=None, help="torchvision's root folder, else CONVLOGIC_DATA, else ./data.")
@click.option("--trials", default=20, help="Total of the study's trials.")
@click.option("--timeout", "timeout_s", type=float, default=None, help="Start no trial after so many seconds.")
@click.option("--trial-timeout", "trial_timeout_s", type=float, default=None, help="Seconds a trial's rung may take.")
@click.option("--workers", default=0, show_default="one a GPU, else one a core, at most 4", help="Trials at a time.")
@click.option("--gpus-per-trial", callback=_gpu_share, default=None, show_default="1 where there are any", help=GPUS)
@click.option("--address", default=None, help="Join this Ray cluster: HOST:PORT, or auto on one of its nodes.")
@click.option("--executor", type=click.Choice(["ray", "inline"]), default="ray", help="inline: in this process.")
@click.option("--objectives", default="accuracy,gates", help="accuracy,gates (a front) or accuracy alone.")
@click.option(
    "--gates",
    type=click.Choice(["raw", "core", "total"]),
    default="total",
    help="The count that is made small and that --max-gates limits.",
)
@click.option(
    "--max-gates",
    type=int,
    default=None,
    help="Limit on the gates that --gates counts. core, total: trained, but infeasible; raw: rejected untrained.",
)
@click.option(
    "--min-accuracy",
    type=float,
    callback=_fraction,
    default=None,
    help="Less on validation, discrete: infeasible. A fraction, as 0.95.",
)
@click.option(
    "--early-stopping", type=click.Choice(["halving", "none"]), default="halving", help="Successive halving at rungs."
)
@click.option("--sampler", type=click.Choice(["tpe", "nsga2", "gp", "random", "qmc"]), default="tpe", help="Optuna's.")
@click.option("--deterministic", is_flag=True, help="The same trials in the same order with any number of workers.")
@click.option("--seed", default=0, help="Of sampling, wiring, weights and data order.")
@click.option("--epochs", type=int, default=None, show_default="the space's", help="Full budget; rungs scale with it.")
@click.option("--limit-train", type=int, default=None, help="Only the first so many training images.")
@click.option(
    "--warm-start",
    callback=_studies,
    default="",
    show_default="nothing",
    help="Studies, comma-separated, whose best to try first.",
)
@click.option(
    "--finalists",
    default=0,
    show_default="none",
    help="Then train so many of the front on 3 seeds, name the winner from validation, and test it.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run, and stop.")
@click.option("--tracking-uri", default=None, show_default="MLflow's own", help="MLflow tracking URI.")
def run(dry_run: bool, objectives: str, **options: Any) -> None:
    from .config import study_config  # the rest is imported late: --help must not wait for PyTorch

    config = study_config(objectives=tuple(objectives.split(",")), **options)
    from .session import describe_study, run_study

    if dry_run:
        describe_study(config)
    else:
        run_study(config)


if __name__ == "__main__":
    run_command(run)
