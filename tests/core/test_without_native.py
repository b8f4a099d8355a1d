"""Without the compiled extension: the package imports, warns once, and computes with the reference."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, warnings
sys.modules["convlogic_core._native"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from convlogic_core import ConvLogicLayer, GroupSum, LogicLayer
    assert not [w for w in caught if "native" in str(w.message)], "the import alone must not warn"
    model = torch.nn.Sequential(ConvLogicLayer(1, 2), torch.nn.Flatten(), LogicLayer(8, 10), GroupSum(5))
    model(torch.rand(3, 1, 4, 4)).sum().backward()
    from convlogic_core.training_step import training_step
    x, y = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.arange(3)
    step = training_step(model, torch.optim.AdamW(model.parameters()), x, y)
    before = model[0].weights.clone()
    assert torch.isfinite(step(torch.arange(3), 0.1)) and not torch.equal(model[0].weights, before)
    told = [str(w.message) for w in caught if "native" in str(w.message)]
    assert len(told) == 1 and "plain PyTorch reference is used" in told[0], told
try:
    LogicLayer(2, 2, implementation="cpu")
except ValueError as error:
    assert "was not built" in str(error)
else:
    raise AssertionError("cpu without the extension must be refused")
print("ok")
"""


def test_without_the_extension() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
