"""What a rung pays to know its gates: seconds and memory of unrolling, simplifying and counting a network.

    python -m benchmarks.counting runs/mnist_s/seed_N --json benchmarks/results/counting.json

Presets have random gates, so that more is left to simplify than of trained ones; a MODEL is a folder of search.train.
Each network has a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from convlogic_core import PRESETS, build_model
from convlogic_core.circuit import Circuit
from search.circuit_files import circuit_of, load_model

from .machine import circumstances, resident_mb, restart_peak

STEPS = ("unroll_s", "simplify_s", "count_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="folders of search.train")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=["mnist_s", "mnist_m", "cifar10_m"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--one", metavar="NETWORK", help=argparse.SUPPRESS)  # the process of one network
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(options.one, options.repeats)))
        return
    rows = []
    for network in (*options.presets, *options.models):
        command = [
            sys.executable,
            "-m",
            "benchmarks.counting",
            "--one",
            str(network),
            "--repeats",
            str(options.repeats),
        ]
        rows.append(row := json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        steps = ", ".join(f"{step.removesuffix('_s')} {row[step]:.2f} s" for step in STEPS)
        print(f"{row['network']:24} {row['raw']:9,} raw, {row['core']:9,} core: {steps}; {row['memory_mb']:,.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({**circumstances(1), "results": rows}, indent=1) + "\n")


def measure(network: str, repeats: int) -> dict[str, Any]:
    """Medians of the seconds of each step, and the megabytes by which the first time grew this process at most."""
    name, unroll = unroller(network)
    seconds: dict[str, list[float]] = {step: [] for step in STEPS}
    restart_peak()
    before, memory_mb = resident_mb("VmRSS"), 0.0
    for _ in range(repeats):
        times = [time.perf_counter()]
        circuit = unroll()
        times.append(time.perf_counter())
        circuit.simplify()
        times.append(time.perf_counter())
        counts = circuit.counts
        times.append(time.perf_counter())
        for step, start, end in zip(STEPS, times, times[1:], strict=False):
            seconds[step].append(end - start)
        memory_mb = memory_mb or resident_mb("VmHWM") - before
    medians = {step: statistics.median(durations) for step, durations in seconds.items()}
    facts = {"network": name, "raw": counts.raw, "core": counts.core, "total": counts.total, "depth": counts.depth}
    return facts | medians | {"memory_mb": memory_mb, "n": repeats}


def unroller(network: str) -> tuple[str, Any]:
    """A name, and what makes the circuit of a preset or of a folder, whose network is loaded already."""
    if network in PRESETS:
        spec = PRESETS[network]
        model = build_model(spec, seed=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data.normal_(generator=generator)
        return f"{network}, random gates", lambda: Circuit.from_model(model, spec.input_shape)
    loaded = load_model(Path(network))
    return f"{Path(network).resolve().parent.name}, trained", lambda: circuit_of(*loaded)


if __name__ == "__main__":
    main()
