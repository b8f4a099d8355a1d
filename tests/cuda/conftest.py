"""The CUDA kernels on the host: `emulated` lets the functions of `convlogic_core.ops.cuda` take tensors of the CPU."""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from convlogic_core.ops import backend
from tests.cuda.emulation import MODULE_VARIABLE, build

SetSchedule = Callable[[int], None]


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulation's fibers are those of Linux")
    path = Path(os.environ.get(MODULE_VARIABLE) or build(tmp_path_factory.mktemp("emulated")))
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated(emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[SetSchedule]:
    """Puts the emulation where the extension would be; the value chooses the order of threads and blocks.

    Memory that ops allocate is filled with NaN first, so that what a kernel leaves out is seen.
    """
    monkeypatch.setattr(backend, "_cuda", emulated_module)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    set_schedule: SetSchedule = ctypes.CDLL(str(emulated_module.__file__)).set_schedule
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # together with torch.utils.deterministic.fill_uninitialized_memory
    set_schedule(0)
    yield set_schedule
    set_schedule(0)
    torch.use_deterministic_algorithms(before)
