"""What a figure must say with it: the machine, the versions, the commit and the date."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from convlogic_core.ops.backend import native, native_built


def circumstances(threads: int) -> dict[str, object]:
    """Of a run of a benchmark, for its JSON."""
    return {
        "machine": machine(),
        "threads": threads,
        "torch": torch.__version__,
        "native": native().isa() if native_built() else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
    }


def machine() -> str:
    """The processor's name, as far as the system tells, and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def resident_mb(name: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" at most since `restart_peak`; Linux only."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith(name))


def restart_peak() -> None:
    """Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def _commit() -> str | None:
    root = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return found.stdout.strip() or None
