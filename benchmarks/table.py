"""The tables of README.md and docs/cluster.md, from the committed figures: `python -m benchmarks.table`."""

import json
import statistics
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"
DIFFLOGIC: Final = (
    "| difflogic's MNIST network (published) | 48,000 raw | | its C: 625 ns an image | 1.60 M | not stated |"
)


def step_table() -> str:
    """Markdown: a line for each preset, parametrization and batch of results/train_step.json."""
    report = json.loads((RESULTS / "train_step.json").read_text())
    rows: dict[tuple[str, int], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in report["results"]:
        rows.setdefault((row["preset"], row["batch"]), {})[row["way"], row["parametrization"]] = row
    lines = [
        "| network, batch | gates | training loop | share of the multiply limit | plain loop | in nn.Sequential "
        "| torchlogix |",
        "|---|---|---|---|---|---|---|",
    ]
    for (preset, batch), ways in rows.items():
        peer = ways.get(("torchlogix", "softmax"))
        for parametrization in ("softmax", "iwp"):
            if ("network", parametrization) not in ways:
                continue
            network, model, layers = (ways[way, parametrization] for way in ("network", "model", "layers"))
            cells = [
                f"{preset}, {batch}",
                parametrization,
                _speed(network),
                f"{network['share_of_limit']:.0%}",
                _speed(model),
                _speed(layers),
                f"{peer['images_per_second']:,.0f} images/s" if peer and parametrization == "softmax" else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def circuit_table() -> str:
    """Markdown: a line for each circuit and way of results/circuit.json, and what is said of all of them."""
    report = json.loads((RESULTS / "circuit.json").read_text())
    lines = ["| circuit | core | total | way | images/s on one core | compiled in |", "|---|---|---|---|---|---|"]
    for row in report["results"]:
        compiled = f"{row['compile_s']:.0f} s" if "compile_s" in row else "nothing"
        millions = (
            f"{row['images_per_second'] / 1e6:.2f} M (best of {row['n']}: {row['best_images_per_second'] / 1e6:.2f} M)"
        )
        gates = f"{row['core']:,} | {row['total']:,}"
        lines.append(f"| {row['circuit']} | {gates} | {row['way']} | {millions} | {compiled} |")
    lines += [
        DIFFLOGIC,
        "",
        f"One core of: {report['machine']}, {report['native']}; medians, packing and class sums included.",
    ]
    images = {row["circuit"]: row["images_equal"] for row in report["results"] if "images_equal" in row}
    for circuit, num in images.items():
        lines.append(f"The logits of {circuit} were first found equal to the discrete model's on {num:,} test images.")
    return "\n".join(lines) + "\n"


def counting_table() -> str:
    """Markdown: a line for each network of results/counting.json."""
    report = json.loads((RESULTS / "counting.json").read_text())
    lines = [
        "| network | raw | core | unrolled in | simplified in | counted in | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        seconds = " | ".join(f"{row[step]:.2f} s" for step in ("unroll_s", "simplify_s", "count_s"))
        lines.append(
            f"| {row['network']} | {row['raw']:,} | {row['core']:,} | {seconds} | {row['memory_mb']:,.0f} MB |"
        )
    return "\n".join(lines) + "\n"


def synthesis_table() -> str:
    """Markdown: the random networks together and each circuit of results/synthesis.json."""
    report = json.loads((RESULTS / "synthesis.json").read_text())
    lines = ["| circuit | core | abc, optimised | yosys synth, whole module |", "|---|---|---|---|"]
    if found := report.get("random_networks"):
        core = statistics.median(net["core"] for net in found["networks"])
        fewer = 1 - found["median_abc_over_core"]
        lines.append(f"| {found['n']} random networks, medians | {core:,.0f} | {fewer:.0%} fewer | |")
    for row in report["circuits"]:
        abc = f"not done in {row['abc_s']:,.0f} s"
        if row["abc"] is not None:
            abc = f"{row['abc']:,}: {1 - row['abc_over_core']:.0%} fewer, {row['abc_s']:,.0f} s"
        cells = "not done" if row["yosys_cells"] is None else f"{row['yosys_cells']:,} cells"
        lines.append(f"| {row['circuit']} | {row['core']:,} | {abc} | {cells} in {row['yosys_s']:,.0f} s |")
    return "\n".join(lines) + "\n"


def studies_table() -> str:
    """Markdown: a line for each way of results/digits_studies.json."""
    report = json.loads((RESULTS / "digits_studies.json").read_text())
    lines = [
        "| digits_small at equal compute | hypervolume | of the test set | trials | compute saved |",
        "|---|---|---|---|---|",
    ]
    for row in report["results"]:
        cells = f"{row['hypervolume']:.3f} | {row['test_hypervolume']:.3f} | {row['trials']:.0f} | {row['saved']:.0%}"
        lines.append(f"| {row['way']} | {cells} |")
    return "\n".join(lines) + "\n"


def driver_table() -> str:
    """Markdown: a line for each row of results/driver.json."""
    report = json.loads((RESULTS / "driver.json").read_text())
    lines = ["| driver | a trial |", "|---|---|"]
    for row in report["results"]:
        if "way" in row:
            lines.append(f"| {row['way']}, one epoch | {row['trials_per_second']:.1f} trials/s |")
        else:
            number = f"trials {report['trials'] - row['n']} to {report['trials']}"
            lines.append(f"| {row['sampler']}, {row['objectives']}, {number} | {row['wall_ms']:.0f} ms |")
    return "\n".join(lines) + "\n"


def simulated_table() -> str:
    """Markdown: a line for each study of results/simulate.json."""
    report = json.loads((RESULTS / "simulate.json").read_text())
    lines = [
        "| sampler | trials | workers | a worker's time a trial | the driver's | driver at work | saturated by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["simulations"]:
        times = f"{row['worker_s_a_trial']:.1f} s | {row['driver_ms_a_trial']:.0f} ms"
        cells = f"{row['sampler']} | {row['trials']:,} | {row['workers']:,} | {times} | {row['busy']:.1%}"
        lines.append(f"| {cells} | {row['saturating_workers']:,} workers |")
    return "\n".join(lines) + "\n"


def _speed(row: dict[str, Any]) -> str:
    ratio = f" ({row['times_torchlogix']:.0f}x)" if "times_torchlogix" in row else ""
    return f"{row['images_per_second']:,.0f} images/s{ratio}"


TABLES: Final = (
    step_table,
    circuit_table,
    counting_table,
    synthesis_table,
    studies_table,
    driver_table,
    simulated_table,
)

if __name__ == "__main__":
    for table in TABLES:
        print(table())
