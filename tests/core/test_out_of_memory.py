"""Memory that runs out within a native kernel is a torch.OutOfMemoryError, and the process goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from convlogic_core.ops.backend import native_built

SCRIPT = """
import resource, torch
from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model
from convlogic_core.network_step import NetworkStep

torch.set_num_threads(1)
spec = ModelSpec((4, 96, 96), (ConvSpec(64, tree_depth=1),), (DenseSpec(80000), DenseSpec(40000)), 4, 9.0)
model = build_model(spec, 0)
x, y = torch.zeros(40, 4, 96, 96, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64)
step = NetworkStep.of(model, torch.optim.AdamW(model.parameters()), x, y)
network, rows = step._network._network, torch.arange(40)  # made before memory is short

unlimited = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), unlimited[1]))
try:
    network.gradients(
        images=x.data_ptr(), num_images=40, rows=rows.data_ptr(), labels=y.data_ptr(), size=40, threads=1
    )
except torch.OutOfMemoryError as error:
    told = str(error)
else:
    told = "no error"
resource.setrlimit(resource.RLIMIT_AS, unlimited)
print(told, float(step(rows, 0.1)) > 0)
"""


@pytest.mark.skipif(
    not native_built() or not sys.platform.startswith("linux"), reason="limits a native kernel's memory"
)
def test_the_process_lives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("out of memory in a native kernel"), done.stdout + done.stderr
    assert (done.returncode, done.stdout.split()[-1]) == (0, "True"), done.stderr
