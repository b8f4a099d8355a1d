"""Time of a full training step: forward, cross-entropy, backward and AdamW, on random binary images.

    python -m benchmarks.train_step --presets mnist_s --batches 128 512 --peer --json step.json

Ways: "network" is the training loop's own; "model" and "layers" are plain PyTorch loops, over what `build_model` gives
and over the same layers in an nn.Sequential; "torchlogix" (--peer) is one over the same architecture in that package,
on a GPU compiled by torch. Their steps are interleaved in one run; figures are of the median. On the CPU the limits of
multiplication and of memory bandwidth are measured in the same run (see `benchmarks.limits`). Memory is, on the CPU,
the growth of a process of its own in which one way made steps, on a GPU what torch allocated at most. A yardstick
(--prototype) is a compiled program that runs before and after the steps and prints lines such as
"... B=128 T=2 opt=16: best 2.5 ms = 50650 img/s", where opt is the logits of a gate.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from convlogic_core import PRESETS, ModelSpec, build_model
from convlogic_core.parametrization import NUM_LOGITS
from convlogic_core.training_step import PlainStep, training_step

from .limits import activation_bytes, measure_limits, multiply_adds
from .machine import circumstances, resident_mb, restart_peak
from .peer import torchlogix_model

NUM_IMAGES: Final = 2048
TURN: Final = 12  # steps in a row; the first, in a cache that others have filled, is not counted
PEER_TURN: Final = 2  # of the peer, which takes as long for one as we for a hundred


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["mnist_s"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--parametrizations", nargs="+", choices=["softmax", "iwp"], default=["softmax", "iwp"])
    parser.add_argument("--k", nargs="+", type=int, help="widths in place of the preset's own, to see how time grows")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each preset and batch (default 6)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peer", action="store_true", help="time torchlogix in the same run")
    parser.add_argument("--memory", action="store_true", help="measure memory too, a process a way")
    parser.add_argument("--prototype", type=Path, metavar="PATH", help="a yardstick program, run before and after")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--grow", metavar="WAY", help=argparse.SUPPRESS)  # the process that --memory starts
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.grow:
        spec = scaled(PRESETS[arguments.presets[0]], arguments.k[0] if arguments.k else None)
        spec = replace(spec, parametrization=arguments.parametrizations[0])
        print(memory_growth(arguments.grow, spec, arguments.batches[0]))
        return
    if arguments.peer:
        try:
            torchlogix_model(PRESETS["mnist_s"])
        except ImportError as error:
            parser.exit(1, f"{error}; install the peer: python -m pip install --no-deps torchlogix==0.1.1\n")
    report = circumstances(arguments.threads) | {"device": arguments.device}
    rows: list[dict[str, Any]] = []
    print(f"{report['machine']}, {arguments.threads} threads, torch {report['torch']}, kernels {report['native']}")
    for name in arguments.presets:
        for k in arguments.k or [None]:
            for batch in arguments.batches:
                rows += compare(name, k, batch, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(report | {"results": rows}, indent=2) + "\n")


def compare(name: str, k: int | None, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of all ways for one preset and batch, printed as they are found."""
    device = torch.device(arguments.device)
    specs = {
        parametrization: replace(scaled(PRESETS[name], k), parametrization=parametrization)
        for parametrization in arguments.parametrizations
    }
    steps = {
        (way, parametrization): make_step(way, spec, batch, device)
        for parametrization, spec in specs.items()
        for way in ("network", "model", "layers")
    }
    if arguments.peer:
        steps["torchlogix", "softmax"] = make_step("torchlogix", scaled(PRESETS[name], k), batch, device)
    prototype = run_prototype(arguments)
    times = time_interleaved(steps, arguments.seconds, device)
    prototype += run_prototype(arguments)
    # afterwards: what it allocates and frees would lie between what the steps allocate
    limit = measure_limits(arguments.threads) if arguments.device == "cpu" else None
    spec = next(iter(specs.values()))
    work, num_bytes = multiply_adds(spec), activation_bytes(spec)
    rows = []
    for (way, parametrization), seconds in times.items():
        median = statistics.median(seconds)
        row: dict[str, Any] = {
            "preset": name if k is None else f"{name} at k={k}",
            "batch": batch,
            "way": way,
            "parametrization": parametrization,
            "median_ms": 1e3 * median,
            "min_ms": 1e3 * min(seconds),
            "n": len(seconds),
            "images_per_second": batch / median,
            "multiply_adds_per_image": work,
            "activation_bytes_per_image": num_bytes,
        }
        if limit:
            row["limit_images_per_second"] = limit.multiply_adds / work
            row["share_of_limit"] = row["images_per_second"] / row["limit_images_per_second"]
            row["share_of_bandwidth"] = row["images_per_second"] * num_bytes / limit.bytes
        if arguments.peer:
            row["times_torchlogix"] = statistics.median(times["torchlogix", "softmax"]) / median
        if arguments.memory:
            row["memory_mb"] = (
                allocated_mb(way, specs[parametrization], batch, device)
                if device.type == "cuda"
                else grown_memory_mb(way, parametrization, name, k, batch, arguments.threads)
            )
        rates = prototype_rates(prototype, batch, arguments.threads, NUM_LOGITS[parametrization])
        if rates:
            row["prototype_images_per_second"] = max(rates)
            row["times_prototype"] = batch / min(seconds) / max(rates)  # best against best
        rows.append(row)
        print(
            f"{row['preset']:20} batch {batch:<5} {way:10} {parametrization:8} median {row['median_ms']:8.2f} ms  "
            f"min {row['min_ms']:8.2f} ms  n={row['n']:<4} {row['images_per_second']:8,.0f} images/s"
            + (f"  {row['share_of_limit']:6.1%} of the multiply limit" if limit else "")
            + (f"  {row['share_of_bandwidth']:6.1%} of the bandwidth" if limit else "")
            + (f"  {row['times_torchlogix']:6.1f}x torchlogix" if arguments.peer else "")
            + (f"  {row['times_prototype']:5.2f}x the prototype" if rates else "")
            + (f"  {row['memory_mb']:,.0f} MB" if arguments.memory else ""),
            flush=True,
        )
    return rows


def scaled(spec: ModelSpec, k: int | None) -> ModelSpec:
    """The preset with its first block k kernels wide and all other layers in proportion."""
    if k is None:
        return spec
    of = spec.conv[0].out_channels
    return replace(
        spec,
        conv=tuple(replace(block, out_channels=block.out_channels * k // of) for block in spec.conv),
        dense=tuple(replace(layer, out_dim=layer.out_dim * k // of) for layer in spec.dense),
    )


def data_of(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """NUM_IMAGES random images as planes of bytes, and their classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (NUM_IMAGES, *spec.input_shape), generator=generator, dtype=torch.uint8) == 0
    return x.to(torch.uint8), torch.randint(0, spec.num_classes, (NUM_IMAGES,), generator=generator)


def make_step(
    way: str, spec: ModelSpec, batch: int, device: torch.device, data: tuple[Tensor, Tensor] | None = None
) -> Callable[[], Tensor]:
    """A full step on the next random batch of images that lie ready as bytes, as a function without arguments."""
    generator = torch.Generator().manual_seed(0)
    x, y = (tensor.to(device) for tensor in data or data_of(spec))
    model = torchlogix_model(spec) if way == "torchlogix" else build_model(spec, seed=0)
    model = (nn.Sequential(*model.children()) if way == "layers" else model).to(device)
    if way == "torchlogix" and device.type == "cuda":
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    step = (training_step if way == "network" else PlainStep)(model, optimizer, x, y)
    return lambda: step(torch.randint(0, NUM_IMAGES, (batch,), generator=generator).to(device), 0.01)


def time_interleaved(
    steps: dict[tuple[str, str], Callable[[], Tensor]], seconds: float, device: torch.device
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each step, five warm-up steps (of the peer two) left out, in turns until `seconds` are over."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for (way, _), step in steps.items():
        for _ in range(2 if way == "torchlogix" else 5):
            step()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    begin, turns = time.perf_counter(), 0
    while turns < 3 or time.perf_counter() - begin < seconds:
        for key, step in steps.items():
            for number in range(PEER_TURN if key[0] == "torchlogix" else TURN):
                synchronize()
                start = time.perf_counter()
                step()
                synchronize()
                if number:
                    times[key].append(time.perf_counter() - start)
        turns += 1
    return times


def run_prototype(arguments: argparse.Namespace) -> str:
    """What the yardstick prints; nothing where there is none."""
    if not arguments.prototype:
        return ""
    return subprocess.run([arguments.prototype.resolve()], check=True, capture_output=True, text=True).stdout


def prototype_rates(output: str, batch: int, threads: int, num_logits: int) -> list[float]:
    """Images a second in the lines of a yardstick's output that are of this batch, these threads and logits a gate."""
    return [
        float(found[1])
        for line in output.splitlines()
        if {f"B={batch}", f"T={threads}", f"opt={num_logits}:"} <= set(line.split())
        and (found := re.search(r"= *([\d.]+) img/s", line))
    ]


def allocated_mb(way: str, spec: ModelSpec, batch: int, device: torch.device) -> float:
    """Megabytes that torch had allocated on the GPU at most, beyond what was there, while one way made steps."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = make_step(way, spec, batch, device)
    for _ in range(5):
        step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def memory_growth(way: str, spec: ModelSpec, batch: int) -> float:
    """Megabytes by which this process grew at most while it built a model and made three steps; Linux only."""
    make_step(way, scaled(spec, 1), 32, torch.device("cpu"))()  # loads what torch loads at first use
    x, y = data_of(spec)
    restart_peak()
    before = resident_mb("VmRSS")
    step = make_step(way, spec, batch, torch.device("cpu"), (x, y))
    for _ in range(3):
        step()
    return resident_mb("VmHWM") - before


def grown_memory_mb(way: str, parametrization: str, preset: str, k: int | None, batch: int, threads: int) -> float:
    """`memory_growth` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--grow", way, "--presets", preset]
    command += ["--batches", str(batch), "--parametrizations", parametrization, "--threads", str(threads)]
    command += ["--k", str(k)] if k else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
