"""Running a circuit on packed bits: 64 images a word.

Shape letters: N images, F input bits, G gates, O outputs, K classes, W words.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..ops import pack_bits
from ..ops.backend import native, native_built
from ..ops.packed import reference_packed_class_sums, reference_packed_dense
from .simplify import addresses

if TYPE_CHECKING:
    from .netlist import Circuit

REFERENCE_IMAGES = 1024  # at a time: bounds the memory


class Evaluator:
    """A circuit made ready to run: with the native kernels, put into an order that keeps values in the cache."""

    def __init__(self, circuit: "Circuit") -> None:
        self.circuit = circuit
        self._program = None
        if native_built():
            sizes = addresses(circuit.num_inputs, circuit.gates)
            self._program = native().NetlistProgram(num_classes=circuit.num_classes, **sizes)

    def sums(self, x: Tensor) -> Tensor:
        """(N, F) bits -> (N, K) int32."""
        if self._program is None:
            return torch.cat([reference_sums(self.circuit, part) for part in x.split(REFERENCE_IMAGES)])
        words = pack_bits(x)
        sums = words.new_empty((self.circuit.num_classes, len(x)), dtype=torch.int32)
        self._program.sums(x=words.data_ptr(), sums=sums.data_ptr(), images=len(x), threads=torch.get_num_threads())
        return sums.T


def reference_sums(circuit: "Circuit", x: Tensor) -> Tensor:
    """The specification, in plain PyTorch: gates of the same depth together. (N, F) bits -> (N, K) int32."""
    words = pack_bits(x)
    depths = circuit.node_depths()
    nodes = words.new_zeros(len(depths), words.shape[1])
    nodes[1 : 1 + circuit.num_inputs] = words
    first = 1 + circuit.num_inputs
    a, b, gate = (torch.from_numpy(array.astype(np.int64)) for array in (circuit.a, circuit.b, circuit.gate))
    order = np.argsort(depths[first:], kind="stable")
    for level in np.split(order, np.flatnonzero(np.diff(depths[first:][order])) + 1):
        here = torch.from_numpy(level)
        nodes[first + here] = reference_packed_dense(nodes, a[here], b[here], gate[here])
    inverted = -torch.from_numpy(circuit.inverted.astype(np.int64))
    outputs = nodes[torch.from_numpy(circuit.outputs.astype(np.int64))] ^ inverted[:, None]
    return reference_packed_class_sums(outputs, circuit.num_classes, len(x))
