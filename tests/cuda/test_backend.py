"""What is said where CUDA kernels cannot run, and how the wiring is kept. No kernel runs here."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convlogic_core.ops import backend
from convlogic_core.ops.fan_out import dense_fan_out, tree_fan_out


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """What keeps the kernels from running is asked once a process."""
    monkeypatch.setattr(backend, "_known_cuda_problem", None)
    monkeypatch.setattr(backend, "_warned_without_cuda", False)


def pretend_device(monkeypatch, capability=(9, 0), problem=""):
    """An extension that was built, and one device; how often it was asked for is in the list that comes back."""
    asked = []
    monkeypatch.setattr(backend, "_cuda", SimpleNamespace(device_problem=lambda: asked.append(1) or problem))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Model T")
    return asked


def test_not_built(monkeypatch):
    monkeypatch.setattr(backend, "_cuda", None)
    with pytest.raises(ValueError, match="kernels were not built"):
        backend.check_implementation("cuda")


def test_built_but_no_driver(monkeypatch):
    pretend_device(monkeypatch, problem="CUDA driver version is insufficient")
    with pytest.raises(
        ValueError, match=r'"cuda" needs a CUDA device.*: CUDA driver version is insufficient; use "auto"'
    ):
        backend.check_implementation("cuda")


def test_torch_without_cuda(monkeypatch):
    pretend_device(monkeypatch)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ValueError, match="PyTorch was built without CUDA"):
        backend.check_implementation("cuda")


def test_built_module_loads_and_a_failed_launch_is_an_exception():
    module = pytest.importorskip("convlogic_core._cuda", reason="built where nvcc is found")
    problem = module.device_problem()
    if not problem:
        pytest.skip("there is a device: see tests/gpu")
    if not Path("/proc/driver/nvidia").exists():
        assert problem == "no NVIDIA driver"  # CUDA itself calls it one that is too old
    with pytest.raises(RuntimeError, match="CUDA kernel coefficients_forward: "):
        module.coefficients_forward(logits=0, coefficients=0, gates=1, num_logits=16, stream=0)


def fake_cuda_tensor(dtype=torch.float32):
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)


def test_which_tensors_take_the_kernels(monkeypatch):
    pretend_device(monkeypatch, capability=(8, 0))
    for dtype, native in ((torch.float32, True), (torch.bfloat16, True), (torch.float64, False)):
        assert backend.use_native("auto", fake_cuda_tensor(dtype), cuda_dtypes=backend.CUDA_DTYPES) is native
    assert not backend.use_native("python", fake_cuda_tensor(), cuda_dtypes=backend.CUDA_DTYPES)
    assert not backend.use_native("auto", fake_cuda_tensor())
    with pytest.raises(ValueError, match="takes float32 or bfloat16"):
        backend.use_native("cuda", fake_cuda_tensor(torch.float64), cuda_dtypes=backend.CUDA_DTYPES)
    assert not backend.use_native("cuda", fake_cuda_tensor())  # an op without a CUDA kernel


def test_gpu_tensors_without_kernels_warn_once(monkeypatch):
    monkeypatch.setattr(backend, "_cuda", None)
    with pytest.warns(RuntimeWarning, match="kernels were not built"):
        assert not backend.use_native("auto", fake_cuda_tensor(), cuda_dtypes=backend.CUDA_DTYPES)
    assert not backend.use_native("auto", fake_cuda_tensor(), cuda_dtypes=backend.CUDA_DTYPES)


@pytest.mark.parametrize(
    "device, message",
    [
        ({"problem": "CUDA driver version is insufficient"}, "CUDA driver version is insufficient"),
        (
            {"capability": (7, 5)},
            r"device 0 \(Model T\) has compute capability 7\.5, the kernels need 8\.0",
        ),
    ],
)
def test_kernels_that_cannot_run_here_warn_once_and_are_asked_for_once(monkeypatch, device, message):
    asked = pretend_device(monkeypatch, **device)
    with pytest.warns(RuntimeWarning, match=f"{message}.*; tensors on a GPU take the plain PyTorch reference"):
        assert not backend.use_native("auto", fake_cuda_tensor(), cuda_dtypes=backend.CUDA_DTYPES)
    assert not backend.use_native("auto", fake_cuda_tensor(), cuda_dtypes=backend.CUDA_DTYPES)
    with pytest.raises(ValueError, match=f'"cuda" needs a CUDA device.*{message}'):
        backend.use_native("cuda", fake_cuda_tensor(), cuda_dtypes=backend.CUDA_DTYPES)
    assert len(asked) == 1


def test_dense_fan_out_lists_every_reader():
    indices_0, indices_1 = torch.tensor([2, 0, 2]), torch.tensor([0, 0, 1])
    wiring, start, edges = dense_fan_out(indices_0, indices_1, 4)
    assert wiring.tolist() == [[2, 0], [0, 0], [2, 1]]
    assert start.tolist() == [0, 3, 4, 6, 6]
    assert edges.tolist() == [[1, 2], [2, 0], [3, 0], [5, 2], [0, 0], [4, 1]]


def test_fan_out_is_made_once_and_again_where_the_wiring_changes():
    indices_0, indices_1 = torch.tensor([2, 0]), torch.tensor([0, 1])
    first = dense_fan_out(indices_0, indices_1, 3)
    assert dense_fan_out(indices_0, indices_1, 3) is first
    indices_1[0] = 1
    again = dense_fan_out(indices_0, indices_1, 3)
    assert again.wiring is first.wiring and again.wiring.tolist() == [[2, 1], [0, 1]]  # the same memory
    other = dense_fan_out(indices_0, indices_1.clone(), 3)
    assert other.wiring is not first.wiring
    selection = torch.tensor([[0, 1]], dtype=torch.int32)
    assert tree_fan_out(selection, 1, (1, 2)) is tree_fan_out(selection, 1, (1, 2))
    with pytest.raises(ValueError, match="column 1"):
        tree_fan_out(selection, 1, (1, 1))
