"""python -m search.train: final training of an exported configuration at its full budget, and the test figure."""

from pathlib import Path

import click

from .command import command, run_command


@command("train", "Train the configuration CONFIG (from search.export) at full budget and measure it on the test set.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--seeds", type=click.IntRange(1, 100), default=1, help="Train so many times, the exported seed first.")
@click.option("--data-dir", default=None, help="torchvision's root folder, else CONVLOGIC_DATA, else ./data.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    show_default="runs/NAME",
    help="Folder for weights, configuration and metrics.",
)
@click.option("--tracking-uri", default=None, show_default="MLflow's own", help="MLflow tracking URI.")
def train(config: Path, seeds: int, data_dir: str | None, output: Path | None, tracking_uri: str | None) -> None:
    from .candidate_file import load_candidate_file
    from .final_training import final_training

    file = load_candidate_file(config)
    final_training(file, config.stem, seeds, data_dir, output or Path("runs") / config.stem, tracking_uri)


if __name__ == "__main__":
    run_command(train)
