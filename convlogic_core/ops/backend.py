"""Which implementation runs an op: a native extension where it was built, the reference elsewhere."""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Final

import torch

IMPLEMENTATIONS: Final = ("auto", "cuda", "cpu", "python")
LEAST_CAPABILITY: Final = (8, 0)  # of the devices that the CUDA kernels are compiled for
CUDA_DTYPES: Final = (torch.float32, torch.bfloat16)  # of activations; coefficients are float32


def _extension(name: str) -> tuple[ModuleType | None, str]:
    """The compiled extension, or why there is none."""
    try:
        return import_module(f"convlogic_core.{name}"), ""
    except ImportError as error:
        return None, str(error)


_native, _import_error = _extension("_native")
_cuda, _cuda_import_error = _extension("_cuda")
_known_cuda_problem: str | None = None
_warned_without_cuda = False


def native() -> ModuleType:
    """The compiled extension; only called where `use_native` said yes."""
    assert _native is not None
    return _native


def native_built() -> bool:
    """Whether the extension can be used."""
    return _native is not None


def warn_once_without_native() -> None:
    """Told when the first layer is made, and not when the package is imported."""
    global _import_error
    if _import_error:
        warnings.warn(
            f"convlogic_core runs without its native kernels ({_import_error}); the plain PyTorch reference is used, "
            "about 100x slower on a CPU. `pip install .` with a C++ compiler builds them.",
            RuntimeWarning,
            stacklevel=2,
        )
        _import_error = ""


def cuda_problem() -> str:
    """What keeps the CUDA kernels from running in this process, asked once; empty where nothing does."""
    global _known_cuda_problem
    if _known_cuda_problem is None:
        _known_cuda_problem = _cuda_problem()
    return _known_cuda_problem


def _cuda_problem() -> str:
    if _cuda is None:
        return f"the kernels were not built ({_cuda_import_error}): install the package with nvcc on PATH"
    if not torch.backends.cuda.is_built():
        return "this PyTorch was built without CUDA"
    if problem := str(_cuda.device_problem()):
        return problem
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < LEAST_CAPABILITY:
            return (
                f"device {device} ({torch.cuda.get_device_name(device)}) has compute capability {major}.{minor}, the "
                f"kernels need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}: leave it out of CUDA_VISIBLE_DEVICES"
            )
    return ""


def cuda() -> ModuleType:
    """The extension of CUDA kernels; only called where `use_native` said yes."""
    assert _cuda is not None
    return _cuda


def call_cuda(function: str, device: torch.device, **arguments: object) -> None:
    """Calls a function of the CUDA extension on torch's current stream of the device.

    Raises:
        RuntimeError: the launch failed; names the kernel and the error.
    """
    with torch.cuda.device(device):
        getattr(cuda(), function)(**arguments, stream=torch.cuda.current_stream(device).cuda_stream)


def check_implementation(implementation: str | None) -> str:
    """The name itself, None read as "auto".

    Raises:
        ValueError: unknown name, or a backend this process does not have.
    """
    name = implementation or "auto"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {name!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if name == "cuda" and (problem := cuda_problem()):
        raise ValueError(f'implementation "cuda" needs a CUDA device and its kernels: {problem}; use "auto" or "cpu"')
    if name == "cpu" and _native is None:
        raise ValueError('implementation "cpu" needs the native extension, which was not built; use "auto" or "python"')
    if name == "auto":
        warn_once_without_native()
    return name


def use_native(
    implementation: str,
    x: torch.Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    cuda_dtypes: tuple[torch.dtype, ...] = (),
) -> bool:
    """Whether an op on x goes to a native extension, whose kernels take the given dtypes; no dtypes, no kernel.

    Raises:
        ValueError: unknown implementation, or it and the device or dtype of x contradict each other.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    device = x.device.type
    if implementation in ("cpu", "cuda") and device != implementation:
        raise ValueError(f'implementation "{implementation}" was given a tensor on {x.device}; move it, or use "auto"')
    taken = {"cpu": dtypes, "cuda": cuda_dtypes}.get(device, ())
    if implementation == "python" or not taken:
        return False
    if implementation == "auto" and torch._C._are_functorch_transforms_active():
        return False  # torch.func.grad cannot go through registered ops, and vmap calls them a sample at a time
    if x.dtype not in taken:
        if implementation == device:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in taken)
            raise ValueError(f'implementation "{implementation}" takes {names}, got {x.dtype}; use "auto"')
        return False
    if device == "cpu":
        return _native is not None
    if cuda_problem():
        if implementation == "cuda":
            check_implementation(implementation)  # tells what is missing
        _warn_once_without_cuda()
    return not cuda_problem()


def _warn_once_without_cuda() -> None:
    global _warned_without_cuda
    if not _warned_without_cuda:
        _warned_without_cuda = True
        warnings.warn(
            f"convlogic_core: {cuda_problem()}; tensors on a GPU take the plain PyTorch reference",
            RuntimeWarning,
            stacklevel=4,
        )


def is_like(tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether it is a plain tensor of these on the CPU. Kernels are given addresses: anything else is misread."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.shape == shape
        and tensor.layout == torch.strided
    )


def version_of(tensor: torch.Tensor) -> object:
    """What is equal for as long as the tensor is not changed in place; without versions (`inference_mode`) never."""
    return object() if tensor.is_inference() else tensor._version


def batch_innermost_empty(x: torch.Tensor, *sizes: int) -> torch.Tensor:
    """An empty tensor (B, *sizes) of the dtype and device of x, B = x.shape[0], its samples contiguous in memory."""
    return x.new_empty((*sizes, x.shape[0])).movedim(-1, 0)


def batch_innermost(x: torch.Tensor) -> torch.Tensor:
    """x itself where samples already lie contiguous and features dense, else a copy that does."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def check_tensors(op: str, x: torch.Tensor, ndim: int, coefficients: torch.Tensor) -> None:
    """What every op asks of its input and coefficients.

    Raises:
        ValueError: dimensions, dtypes or devices that no kernel takes.
    """
    if x.ndim != ndim or not x.is_floating_point():
        raise ValueError(f"{op} needs a floating-point input of {ndim} dimensions, got {x.dtype} {tuple(x.shape)}")
    mixed = x.dtype == torch.bfloat16 and coefficients.dtype == torch.float32
    if (coefficients.dtype != x.dtype and not mixed) or coefficients.device != x.device:
        raise ValueError(
            f"{op} needs input and coefficients of one dtype on one device (or bfloat16 with float32 coefficients), "
            f"got {x.dtype} on {x.device} and {coefficients.dtype} on {coefficients.device}"
        )
    if coefficients.ndim != ndim // 2 + 1 or coefficients.shape[-1] != 4:
        gates = "(gates, 4)" if ndim == 2 else "(kernels, gates, 4)"
        raise ValueError(f"{op} needs coefficients of shape {gates}, got {tuple(coefficients.shape)}")
