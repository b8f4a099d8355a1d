"""What a circuit costs, in the three conventions that the literature mixes.

- raw: every gate of the unrolled network, pooling ORs included, before any simplification.
- core: the two-input gates that are left after simplification; inverters are free.
- total: core, plus 7 for every non-constant output that a class sum counts (its share of the adder tree), plus the
  comparators that turn bytes into bits: the count that reproduces the tables of Petersen et al. 2024, arXiv 2411.04732.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ..gates import GATE_NAMES

if TYPE_CHECKING:
    from .netlist import Circuit

ADDER_GATES_AN_OUTPUT: Final = 7
WIRES: Final = (3, 5, 10, 12)  # a, b and their complements


@dataclass(frozen=True)
class LayerCounts:
    """Gates of one layer before and after simplification, and the part of them that only passes an input on."""

    name: str
    raw: int
    core: int
    pass_through: float


@dataclass(frozen=True)
class CircuitCounts:
    """See the module.

    Args:
        raw, core, total: gates.
        depth: core gates on the longest path from a bit to an output.
        num_outputs: outputs that class sums count and that are no constants.
        comparator_gates: core gates of all comparators, see `comparator_gates`.
        layers: one by one.
        histogram: raw gates by the gate's name; pooling's ORs are not among them.
        pass_through: share of those that pass on one input or its complement.
    """

    raw: int
    core: int
    total: int
    depth: int
    num_outputs: int
    comparator_gates: int
    layers: tuple[LayerCounts, ...]
    histogram: dict[str, int]
    pass_through: float

    def metrics(self) -> dict[str, float]:
        """Under the names they are logged by."""
        return {
            "gates/raw": self.raw,
            "gates/core": self.core,
            "gates/total": self.total,
            "gates/depth": self.depth,
        }


def count(circuit: "Circuit", simplified: "Circuit") -> CircuitCounts:
    """The counts of a circuit, given also as `simplify` leaves it."""
    layers = tuple(
        LayerCounts(before.name, sum(before.raw_histogram), after.num_gates, _wires(np.array(before.raw_histogram)))
        for before, after in zip(circuit.layers, simplified.layers, strict=True)
    )
    learned = np.zeros(len(GATE_NAMES), np.int64)
    for layer in circuit.layers:
        if not layer.name.startswith("pool"):
            learned += layer.raw_histogram
    core, num_outputs = simplified.num_gates, int(np.count_nonzero(simplified.outputs))
    comparators = comparator_gates(simplified)
    return CircuitCounts(
        raw=sum(layer.raw for layer in layers),
        core=core,
        total=core + ADDER_GATES_AN_OUTPUT * num_outputs + comparators,
        depth=int(simplified.node_depths()[simplified.outputs].max()),
        num_outputs=num_outputs,
        comparator_gates=comparators,
        layers=layers,
        histogram=dict(zip(GATE_NAMES, learned.tolist(), strict=True)),
        pass_through=_wires(learned),
    )


def comparator_gates(circuit: "Circuit") -> int:
    """Gates that turn the pixels' bytes into the input bits that the circuit reads.

    byte >= threshold is decided from the lowest bit of the threshold that is set: the bytes' bit there, then an AND or
    an OR for each bit above. Threshold 128 is the top bit itself and costs nothing; 0, which every byte reaches, too.
    """
    if circuit.thresholds is None:
        return 0
    live = circuit.is_read[1 : 1 + circuit.num_inputs].reshape(circuit.input_shape[0], -1).sum(1)
    lowest = [(int(threshold) & -int(threshold)).bit_length() - 1 for threshold in circuit.thresholds.reshape(-1)]
    return sum(int(num) * (7 - bit) for num, bit in zip(live, lowest, strict=True) if bit >= 0)


def _wires(histogram: "np.typing.NDArray[np.int64]") -> float:
    """Share of wires and inverters in a histogram of gate numbers."""
    total = int(histogram.sum())
    return float(histogram[list(WIRES)].sum() / total) if total else 0.0
