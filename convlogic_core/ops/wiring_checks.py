"""Wiring is checked before it is used, whatever implementation runs: an entry out of range is a ValueError.

A tensor is checked when an op first meets it and again when it was changed in place. On a GPU that waits once: a step
to be captured in a CUDA graph must have run before.
Shape letters: O gates, K kernels or trees, L leaves, G gates a tree.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .backend import version_of


class _Entry(NamedTuple):
    versions: list[object]
    others: list[ref[Tensor]]  # the rest of the wiring
    made: Any


_kept: Final = WeakTensorKeyDictionary()  # of each tensor, entries by rule


def check_indices(op: str, name: str, indices: Tensor, limit: int, of_what: str = "features") -> None:
    """Every entry is in [0, limit).

    Raises:
        ValueError: names the first that is not.
    """
    _once(indices, ("indices", limit), lambda: _check_range(f"{op}: {name}", indices, limit, of_what))


def check_dense(op: str, indices_0: Tensor, indices_1: Tensor, num_features: int) -> None:
    """Both (O,); as `check_indices`."""
    check_indices(op, "indices_0", indices_0, num_features)
    check_indices(op, "indices_1", indices_1, num_features)


def check_rows(op: str, gate_rows: Tensor) -> None:
    """(K, G): every row number from 0 to K * G - 1 once.

    Raises:
        ValueError: names the first entry out of range, or the first that names a row again.
    """

    def check() -> None:
        _check_range(f"{op}: gate_rows", gate_rows, gate_rows.numel(), "rows of coefficients")
        rows, order = gate_rows.flatten().sort(stable=True)
        again = order[1:][rows[1:] == rows[:-1]]
        if len(again):
            entry = int(again.min())
            k, gate = divmod(entry, gate_rows.shape[1])
            raise ValueError(
                f"{op}: gate_rows[{k}, {gate}] names row {int(gate_rows[k, gate])} twice; every gate has its own"
            )

    _once(gate_rows, ("rows",), check)


def check_selection(op: str, selection: Tensor, num_channels: int, kernel: tuple[int, int]) -> None:
    """(K, L) codes channel << 16 | row << 8 | column: every leaf is in the window and names a channel that exists.

    Raises:
        ValueError: names the first that is not.
    """

    def check() -> None:
        parts = (("channel", 16, num_channels), ("row", 8, kernel[0]), ("column", 0, kernel[1]))
        for part, shift, limit in parts:
            value = selection >> shift if part == "channel" else selection >> shift & 255
            wrong = ((value < 0) | (value >= limit)).nonzero()
            if len(wrong):
                k, leaf = wrong[0].tolist()
                raise ValueError(
                    f"{op}: selection[{k}, {leaf}] names {part} {int(value[k, leaf])}, outside 0..{limit - 1}"
                )

    _once(selection, ("selection", num_channels, *kernel), check)


def _check_range(name: str, indices: Tensor, limit: int, of_what: str) -> None:
    wrong = ((indices < 0) | (indices >= limit)).nonzero()
    if len(wrong):
        entry = wrong[0].tolist()
        value = int(indices[tuple(entry)])
        raise ValueError(f"{name}[{', '.join(map(str, entry))}] = {value} is outside the {limit} {of_what}")


def _once(wiring: Tensor, rule: tuple[object, ...], check: Callable[[], None]) -> None:
    if not torch.compiler.is_compiling():  # values are not known there
        prepared((wiring,), rule, check)


def prepared(wiring: tuple[Tensor, ...], rule: tuple[object, ...], prepare: Callable[[], Any]) -> Any:
    """What `prepare` makes of this wiring, made once a version of it and kept as long as its first tensor lives."""
    owner, *others = wiring
    entries = _kept.setdefault(owner, {})
    entry: _Entry | None = entries.get(rule)
    versions = [version_of(tensor) for tensor in wiring]
    if entry and entry.versions == versions and all(a() is b for a, b in zip(entry.others, others, strict=True)):
        return entry.made
    if owner.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError("wiring met for the first time while a CUDA graph is captured: run a step before the capture")
    made = prepare()
    entries[rule] = _Entry(versions, [ref(other) for other in others], made)
    return made
