"""Which implementation runs an op: the native extension where it was built, the reference elsewhere."""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Final

import torch

IMPLEMENTATIONS: Final = ("auto", "cuda", "cpu", "python")

_native: ModuleType | None = None
_import_error = ""
try:
    _native = import_module("convlogic_core._native")
except ImportError as error:
    _import_error = str(error)


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


def check_implementation(implementation: str | None) -> str:
    """The name itself, None read as "auto".

    Raises:
        ValueError: unknown name, or a backend this process does not have.
    """
    name = implementation or "auto"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {name!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError('implementation "cuda" needs a CUDA device and none is available; use "auto" or "cpu"')
    if name == "cpu" and _native is None:
        raise ValueError('implementation "cpu" needs the native extension, which was not built; use "auto" or "python"')
    if name == "auto":
        warn_once_without_native()
    return name


def use_native(
    implementation: str, x: torch.Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
) -> bool:
    """Whether an op on x goes to the native extension, whose kernels take the given dtypes.

    Raises:
        ValueError: unknown implementation, or it and the device or dtype of x contradict each other.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if implementation in ("cpu", "cuda") and x.device.type != implementation:
        raise ValueError(f'implementation "{implementation}" was given a tensor on {x.device}; move it, or use "auto"')
    if implementation == "python" or x.device.type != "cpu":
        return False
    if x.dtype not in dtypes:
        if implementation == "cpu":
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f'implementation "cpu" takes {names}, got {x.dtype}; use "auto"')
        return False
    return native_built()


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
    if coefficients.dtype != x.dtype or coefficients.device != x.device:
        raise ValueError(
            f"{op} needs input and coefficients of one dtype on one device, got {x.dtype} on {x.device} "
            f"and {coefficients.dtype} on {coefficients.device}"
        )
    if coefficients.ndim != ndim // 2 + 1 or coefficients.shape[-1] != 4:
        gates = "(gates, 4)" if ndim == 2 else "(kernels, gates, 4)"
        raise ValueError(f"{op} needs coefficients of shape {gates}, got {tuple(coefficients.shape)}")
