"""The wiring as the CUDA kernels take it: checked, and with the readers of every input listed (its fan-out).

Backward gathers over these lists, which makes it deterministic without atomics. They follow from the wiring, so they
are made when an op first meets it, and kept as long as the tensor lives. Making them waits for the GPU once; a step
to be captured in a CUDA graph must therefore have run before. Wiring that is changed in place (`load_state_dict`) is
prepared again by the next call outside a graph, into the same memory, so that a captured step reads the new wiring too.
Shape letters: O gates, F features, K kernels, L leaves, C channels.
"""

from collections.abc import Callable
from typing import Final, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .backend import version_of
from .wiring_checks import check_dense, check_selection


class FanOut(NamedTuple):
    """Readers of input i: edges[start[i]:start[i + 1]], int32 (., 2); `wiring` is the wiring itself, int32."""

    wiring: Tensor
    start: Tensor
    edges: Tensor


class _Entry(NamedTuple):
    others: tuple[ref[Tensor], ...]  # the rest of the wiring
    sizes: tuple[object, ...]
    versions: tuple[object, ...]
    fan_out: FanOut


_prepared: Final = WeakTensorKeyDictionary()


def dense_fan_out(indices_0: Tensor, indices_1: Tensor, num_features: int) -> FanOut:
    """wiring (O, 2); readers of feature f are {2 * gate + side, the gate's other feature}, O = len(indices_0).

    Raises:
        ValueError: an index outside [0, F).
    """
    return _cached((indices_0, indices_1), (num_features,), lambda: _dense(indices_0, indices_1, num_features))


def tree_fan_out(selection: Tensor, num_channels: int, kernel: tuple[int, int]) -> FanOut:
    """wiring (K, L); readers of channel c are {kernel * L + leaf, row << 8 | column}.

    Raises:
        ValueError: a leaf outside the channels or the window.
    """
    return _cached((selection,), (num_channels, kernel), lambda: _tree(selection, num_channels, kernel))


def _cached(wiring: tuple[Tensor, ...], sizes: tuple[object, ...], prepare: Callable[[], FanOut]) -> FanOut:
    owner, *others = wiring
    versions = tuple(version_of(tensor) for tensor in wiring)
    entry: _Entry | None = _prepared.get(owner)
    same_tensors = (
        entry is not None
        and entry.sizes == sizes
        and all(kept() is other for kept, other in zip(entry.others, others, strict=True))
    )
    if entry and same_tensors and entry.versions == versions:
        return entry.fan_out
    if owner.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError("wiring met for the first time while a CUDA graph is captured: run a step before the capture")
    fan_out = FanOut(*(tensor.to(owner.device) for tensor in prepare()))
    if entry and same_tensors:
        for old, new in zip(entry.fan_out, fan_out, strict=True):
            old.copy_(new)
        fan_out = entry.fan_out
    _prepared[owner] = _Entry(tuple(ref(other) for other in others), sizes, versions, fan_out)
    return fan_out


def _dense(indices_0: Tensor, indices_1: Tensor, num_features: int) -> FanOut:
    check_dense("logic_dense", indices_0, indices_1, num_features)
    wiring = torch.stack((indices_0, indices_1), 1).cpu()
    others = wiring.flip(1).flatten()
    return _by_input(wiring, wiring.flatten(), torch.arange(wiring.numel()), others, num_features)


def _tree(selection: Tensor, num_channels: int, kernel: tuple[int, int]) -> FanOut:
    check_selection("logic_tree", selection, num_channels, kernel)
    codes = selection.cpu().flatten().long()
    return _by_input(selection.cpu(), codes >> 16, torch.arange(codes.numel()), codes & 65535, num_channels)


def _by_input(wiring: Tensor, inputs: Tensor, readers: Tensor, details: Tensor, num_inputs: int) -> FanOut:
    """The edges {reader, detail}, grouped by input and in order within a group."""
    order = inputs.argsort(stable=True)
    start = torch.zeros(num_inputs + 1, dtype=torch.int64)
    start[1:] = inputs.bincount(minlength=num_inputs).cumsum(0)
    edges = torch.stack((readers, details), 1)[order]
    return FanOut(*(tensor.to(torch.int32).contiguous() for tensor in (wiring, start, edges)))
