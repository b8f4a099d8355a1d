"""Time of a full training step: forward, cross-entropy, backward and AdamW, on random binary images.

    python -m benchmarks.train_step --preset mnist_s --batch 128 --steps 50 --peer --json step.json

With --peer also torchlogix (https://pypi.org/project/torchlogix/, 0.1.1), the same architecture, batch, optimizer and
threads, its steps interleaved with ours. Times are per step; images/s are of the median.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convlogic_core import PRESETS, ModelSpec, build_model
from convlogic_core.ops.backend import native, native_built

PEER_SHARE = 10  # steps of ours for each of the peer's


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="mnist_s")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50, help="timed steps of ours (default 50)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer", action="store_true", help="time torchlogix in the same run and print the ratio")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    spec = PRESETS[arguments.preset]
    steps = {"convlogic_core": training_step(build_model(spec, seed=0), spec, arguments.batch)}
    if arguments.peer:
        try:
            steps["torchlogix"] = training_step(torchlogix_model(spec), spec, arguments.batch)
        except ImportError as error:
            parser.exit(1, f"{error}; install the peer: python -m pip install --no-deps torchlogix==0.1.1\n")

    times = time_interleaved(steps, arguments.steps)
    report = {
        "preset": arguments.preset,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "machine": machine(),
        "torch": torch.__version__,
        "native": native().isa() if native_built() else None,
        "results": {name: summary(values, arguments.batch) for name, values in times.items()},
    }
    print(f"{arguments.preset}, batch {arguments.batch}, {arguments.threads} threads, {report['machine']}")
    for name, values in times.items():
        result = summary(values, arguments.batch)
        print(
            f"{name:15} median {result['median_ms']:9.2f} ms  min {result['min_ms']:9.2f} ms  n={result['n']:<4} "
            f"{result['images_per_second']:9.0f} images/s"
        )
    if arguments.peer:
        ratios = {f.__name__: f(times["torchlogix"]) / f(times["convlogic_core"]) for f in (statistics.median, min)}
        report["ratio_of_medians"], report["ratio_of_minima"] = ratios["median"], ratios["min"]
        print(f"torchlogix takes {ratios['median']:.1f} times as long (medians; {ratios['min']:.1f} by minima)")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def training_step(model: nn.Module, spec: ModelSpec, batch: int) -> Callable[[], None]:
    """One full step on a fixed batch (batch, C, H, W) of random bits, as a function without arguments."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(batch, *spec.input_shape, generator=generator) > 0.8).float()
    labels = torch.randint(0, spec.num_classes, (batch,), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def torchlogix_model(spec: ModelSpec) -> nn.Module:
    """The peer's network of the same sizes.

    Raises:
        ImportError: torchlogix, or what it needs, is not installed.
    """
    peer: Any = importlib.import_module("torchlogix.layers")
    channels, side, _ = spec.input_shape
    modules: list[nn.Module] = []
    for block in spec.conv:
        modules.append(
            peer.LogicConv2d(
                in_dim=side,
                channels=channels,
                num_kernels=block.out_channels,
                tree_depth=block.tree_depth,
                receptive_field_size=block.kernel,
                stride=block.stride,
                padding=block.padding,
                parametrization="raw",
            )
        )
        modules.append(peer.OrPooling2d(kernel_size=block.pool, stride=block.pool, padding=0))
        channels = block.out_channels
        side = ((side + 2 * block.padding - block.kernel) // block.stride + 1) // block.pool
    modules.append(nn.Flatten())
    features = spec.flat_features
    for layer in spec.dense:
        modules.append(peer.LogicDense(features, layer.out_dim, parametrization="raw"))
        features = layer.out_dim
    modules.append(peer.GroupSum(k=spec.num_classes, tau=spec.tau))
    return nn.Sequential(*modules)


def time_interleaved(steps: dict[str, Callable[[], None]], num_steps: int) -> dict[str, list[float]]:
    """Seconds of each step, two warm-up steps left out; the first of `steps` runs PEER_SHARE times for each other."""
    for step in steps.values():
        step()
        step()
    ours, *others = steps
    times: dict[str, list[float]] = {name: [] for name in steps}

    def run(name: str) -> None:
        start = time.perf_counter()
        steps[name]()
        times[name].append(time.perf_counter() - start)

    for done in range(num_steps):
        run(ours)
        if done % PEER_SHARE == PEER_SHARE - 1 or done == num_steps - 1:
            for name in others:
                run(name)
    return times


def summary(seconds: list[float], batch: int) -> dict[str, float]:
    """Median and minimum in milliseconds, how many were timed, images a second by the median."""
    median = statistics.median(seconds)
    return {
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "n": len(seconds),
        "images_per_second": batch / median,
    }


def machine() -> str:
    """The processor's name, as far as the system tells, and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


if __name__ == "__main__":
    main()
