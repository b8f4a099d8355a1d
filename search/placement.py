"""How workers share machines: cores and GPUs divided by what the nodes have, never by what they have together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .errors import UsageError

WORKERS_PER_CPU_NODE: Final = 4
GPU_HEADROOM: Final = 1.25  # the first trial is the baseline: others may need more, as for shifted images
GPU_CONTEXT_BYTES: Final = 2**29  # what CUDA itself takes of a device for each process
GPU_PARTS: Final = 8


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray counts it."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """What is asked for: so many workers, and for each its threads, the CPUs that Ray counts for them, and GPUs."""

    num_workers: int
    threads: int
    num_cpus: int
    gpus: float

    def each(self) -> str:
        """What one worker asks for, in words."""
        return f"{self.num_cpus} CPUs and {self.gpus:g} GPUs"


def place(nodes: Sequence[Node], workers: int, gpus: float | None) -> Placement:
    """Workers on these nodes, each with as many threads as fit.

    Args:
        nodes: what there is.
        workers: how many; 0 is one a GPU, or without GPUs one a core and at most four a node.
        gpus: for each worker; None is one where there are any.

    Raises:
        UsageError: no node has so many GPUs, or all together have too few.
    """
    if gpus is None:
        gpus = 1.0 if any(node.gpus for node in nodes) else 0.0
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-trial {gpus:g}: above 1 only whole GPUs can be asked for")
    most = max((node.gpus for node in nodes), default=0)
    if gpus > most:
        have = f"the largest node has {most:g} GPUs" if most else "there are no GPUs"
        raise UsageError(f"--gpus-per-trial {gpus:g}: {have}; ask for at most that")
    room = sum(_gpu_room(node, gpus) for node in nodes) if gpus else 0
    cpu_default = sum(min(int(node.cpus), WORKERS_PER_CPU_NODE) for node in nodes)
    num_workers = workers or max(1, room if gpus else cpu_default)
    if gpus and num_workers > room:
        raise UsageError(
            f"{num_workers} workers with {gpus:g} GPUs each need more than the "
            f"{sum(node.gpus for node in nodes):g} there are: lower --workers or --gpus-per-trial"
        )

    def fit(threads: int) -> int:
        by_cpu = [int(node.cpus) // threads for node in nodes]
        return sum(min(n, _gpu_room(node, gpus)) if gpus else n for n, node in zip(by_cpu, nodes, strict=True))

    most_threads = max((int(node.cpus) for node in nodes), default=0)
    threads = next((n for n in range(most_threads, 0, -1) if fit(n) >= num_workers), 0)
    # more workers than cores: Ray must not wait for a core to be free
    return Placement(num_workers, max(1, threads), threads, gpus)


def _gpu_room(node: Node, gpus: float) -> int:
    """Workers that a node's GPUs take: a fraction never spans two of them."""
    if gpus < 1:
        return int(node.gpus) * int(1 / gpus + 1e-9)
    return int(node.gpus // gpus)


def gpu_fraction(peak_bytes: int, device_bytes: int) -> float:
    """The part of a GPU, in eighths, that trials need of which one took `peak_bytes` at most."""
    needed = GPU_HEADROOM * peak_bytes + GPU_CONTEXT_BYTES
    return min(GPU_PARTS, max(1, math.ceil(GPU_PARTS * needed / device_bytes))) / GPU_PARTS
