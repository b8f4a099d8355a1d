"""python -m search.circuit: the circuit of a trained model, counted, written for other tools, verified by them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .command import command, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from convlogic_core.circuit import Circuit, CircuitCounts

FILE = click.Path(dir_okay=False, path_type=Path)
# what a file's content is called, for whoever uses it in a larger design; AIGER knows no names
NAMED: Final = {
    ".v": "module {name}, ",
    ".c": "functions {name}_sums and {name}_classify, ",
    ".blif": "model {name}, ",
    ".aig": "",
    ".json": "name {name}, ",
}


@command(
    "circuit",
    "Count the circuit of MODEL_DIR (a seed's folder of search.train), write it, verify what is written. Verilog's "
    "module, BLIF's model and the JSON are called as their file without its suffix, C's functions that and _sums or "
    "_classify; what no name may have becomes _, and circuit_ goes before a digit or a keyword (2-in.v: circuit_2_in).",
)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--verilog", type=FILE, default=None, help="Write a Verilog-2001 module, from pixels to the class.")
@click.option("--pipeline", type=click.IntRange(min=1), default=None, help="Registers after so many levels of gates.")
@click.option("--c", "c_file", type=FILE, default=None, help="Write C99 that computes 64 to 512 images at a time.")
@click.option("--blif", type=FILE, default=None, help="Write BLIF, for synthesis tools.")
@click.option("--aiger", type=FILE, default=None, help="Write binary AIGER, for synthesis tools.")
@click.option("--json", type=FILE, default=None, help="Write the netlist as JSON.")
@click.option("--verify", is_flag=True, help="Run the written Verilog (iverilog) and C (cc) against the PyTorch model.")
@click.option(
    "--images", type=click.IntRange(min=2), default=256, help="Verify on so many: half validation, half random images."
)
@click.option("--data-dir", default=None, help="torchvision's root folder, else CONVLOGIC_DATA, else ./data.")
def circuit(
    model_dir: Path,
    verilog: Path | None,
    pipeline: int | None,
    c_file: Path | None,
    blif: Path | None,
    aiger: Path | None,
    json: Path | None,
    verify: bool,
    images: int,
    data_dir: str | None,
) -> None:
    from convlogic_core.circuit.names import safe_name

    from .checkpoints import write_atomically
    from .circuit_files import FORMATS, circuit_of, load_model
    from .command import make_console
    from .errors import UsageError

    if pipeline is not None and verilog is None:
        raise UsageError("--pipeline says how the Verilog is written: give --verilog FILE with it")
    if verify and verilog is None and c_file is None:
        raise UsageError("--verify runs what is written: give --verilog FILE, --c FILE or both with it")
    outputs = {".v": verilog, ".c": c_file, ".blif": blif, ".aig": aiger, ".json": json}
    paths = [path.resolve() for path in outputs.values() if path is not None]
    for file_path in paths:
        if paths.count(file_path) > 1:
            raise UsageError(
                f"{file_path} is named for two formats, of which one would overwrite the other: name two files"
            )
    console = make_console()
    file, model, thresholds = load_model(model_dir)
    unrolled = circuit_of(file, model, thresholds)
    if not paths:
        print_counts(console, unrolled.counts)
        return
    simplified = unrolled.simplify()
    for suffix, path in outputs.items():
        if path is not None:
            content = (
                verilog_text(simplified, path, pipeline) if suffix == ".v" else FORMATS[suffix](simplified, path.stem)
            )
            write_atomically(path, content)
            called = NAMED[suffix].format(name=safe_name(path.stem))
            console.print(f"{path}: {called}{simplified.num_gates:,} gates, {len(content):,} bytes", soft_wrap=True)
    if verify:
        from .circuit_verification import verify_exports

        console.print(verify_exports(file, model, thresholds, simplified, verilog, c_file, images, data_dir))


def verilog_text(simplified: "Circuit", path: Path, pipeline: int | None) -> bytes:
    from convlogic_core.circuit.verilog import verilog

    return verilog(simplified, path.stem, pipeline).encode()


def print_counts(console: "Console", counts: "CircuitCounts") -> None:
    """Gates in all conventions, then layer by layer, then of which kind."""
    from rich.table import Table

    def table(*names: str) -> Table:
        made = Table(box=None, pad_edge=False)
        for number, name in enumerate(names):
            made.add_column(name, justify="right" if number else "left", no_wrap=True)
        return made

    whole: Any = table("gates", "")
    for name in ("raw", "core", "total", "depth"):
        whole.add_row(name, f"{getattr(counts, name):,}")
    layers = table("layer", "raw", "core", "pass-through")
    for layer in counts.layers:
        learned = not layer.name.startswith("pool")
        layers.add_row(layer.name, f"{layer.raw:,}", f"{layer.core:,}", f"{layer.pass_through:.1%}" if learned else "")
    kinds = table("raw gate", "number", "share")
    learned_gates = sum(counts.histogram.values())
    for name, number in sorted(counts.histogram.items(), key=lambda item: -item[1]):
        if number:
            kinds.add_row(name, f"{number:,}", f"{number / learned_gates:.1%}")
    kinds.add_row("passes an input on", "", f"{counts.pass_through:.1%}")
    console.print(whole, "", layers, "", kinds, sep="\n")


if __name__ == "__main__":
    run_command(circuit)
