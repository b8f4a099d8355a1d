"""Simplification: what local rules can tell, in one pass over the gates and one back from the outputs.

Forward, every gate is seen as a function of the simplified nodes it reads, complements included (inverters are free
everywhere, so they never cost a gate):

- constants fold, and a gate whose inputs are the same node is a function of one;
- a gate that depends on one input or none is a wire, an inverter or a constant, and is absorbed by its readers;
- what is left has f(0, 0) = 0 (else its complement is taken) and a before b, so that gates of the same function up to
  complement (AND and NAND of the same two nodes) are the same five-way choice and are merged by their key.

Backward, gates that no output needs are dropped. Readers come after what they read, so one pass reaches the fixed point
of these rules: simplifying again changes nothing.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..ops.backend import native, native_built


class Gates(NamedTuple):
    """The arrays of a `Circuit` that simplification changes; see there."""

    a: npt.NDArray[np.int32]
    b: npt.NDArray[np.int32]
    gate: npt.NDArray[np.uint8]
    outputs: npt.NDArray[np.int32]
    inverted: npt.NDArray[np.bool_]


def simplify_gates(num_inputs: int, gates: Gates) -> tuple[Gates, npt.NDArray[np.int32]]:
    """The simplified gates, and for each of them the number of the gate it was, rising."""
    if not native_built():
        return reference_simplify(num_inputs, gates)
    result = native().simplify(**addresses(num_inputs, gates))
    a, b, outputs, was = (np.frombuffer(result[i], np.int32) for i in (0, 1, 3, 5))
    return Gates(a, b, np.frombuffer(result[2], np.uint8), outputs, np.frombuffer(result[4], np.bool_)), was


def addresses(num_inputs: int, gates: Gates) -> dict[str, int]:
    """Sizes, and where the arrays lie, as native functions take them: of arrays in C order, that a caller keeps."""
    sizes = {"num_inputs": num_inputs, "num_gates": len(gates.gate), "num_outputs": len(gates.outputs)}
    return sizes | {name: array.ctypes.data for name, array in gates._asdict().items()}


def reference_simplify(num_inputs: int, gates: Gates) -> tuple[Gates, npt.NDArray[np.int32]]:
    """The specification, in plain Python."""
    literals = [2 * node for node in range(1 + num_inputs)]  # of each node: 2 * what it became + whether complemented
    known: dict[tuple[int, int, int], int] = {}  # (a, b, gate) -> node
    new: list[tuple[int, int, int, int]] = []  # a, b, gate, and which gate it was
    for number, (a, b, gate) in enumerate(zip(gates.a.tolist(), gates.b.tolist(), gates.gate.tolist(), strict=True)):
        a, b, gate, complemented = normalized(literals[a], literals[b], gate)
        if gate in (0, 3):  # false, a
            literals.append(2 * a * (gate == 3) + complemented)
            continue
        node = known.setdefault((a, b, gate), 1 + num_inputs + len(new))
        if node == 1 + num_inputs + len(new):
            new.append((a, b, gate, number))
        literals.append(2 * node + complemented)
    outputs = [literals[node] ^ inverted for node, inverted in zip(gates.outputs, gates.inverted.tolist(), strict=True)]
    live = [False] * (1 + num_inputs + len(new))
    for literal in outputs:
        live[literal >> 1] = True
    for index in reversed(range(len(new))):
        if live[1 + num_inputs + index]:
            live[new[index][0]] = live[new[index][1]] = True
    renumbered = list(range(1 + num_inputs))
    kept: list[tuple[int, int, int, int]] = []
    for index, (a, b, gate, number) in enumerate(new):
        renumbered.append(1 + num_inputs + len(kept))
        if live[1 + num_inputs + index]:
            kept.append((renumbered[a], renumbered[b], gate, number))
    columns = np.array(kept, np.int64).reshape(-1, 4).T
    simplified = Gates(
        columns[0].astype(np.int32),
        columns[1].astype(np.int32),
        columns[2].astype(np.uint8),
        np.array([renumbered[literal >> 1] for literal in outputs], np.int32),
        np.array([literal & 1 for literal in outputs], np.bool_),
    )
    return simplified, columns[3].astype(np.int32)


def normalized(a: int, b: int, gate: int) -> tuple[int, int, int, int]:
    """A gate of two literals as a gate of nodes, and whether the result is its complement.

    The gate is 0 (false), 3 (a), or one that depends on both with a < b and f(0, 0) = 0: 1, 2, 4, 6 or 7.
    """
    if a & 1:  # f(0, b) and f(1, b) change places
        gate = (gate & 3) << 2 | gate >> 2
    if b & 1:
        gate = (gate & 5) << 1 | (gate & 10) >> 1
    a, b = a >> 1, b >> 1
    if a == 0:  # constant false
        gate = gate & 12 | gate >> 2
    if b == 0:
        gate = gate & 10 | (gate & 10) >> 1
    if a == b:  # f(0, 0) and f(1, 1) are all that can be
        gate = 12 * (gate >> 3) | 3 * (gate & 1)
    if gate >> 2 == gate & 3:  # does not depend on a: take b for it
        a, gate = b, 12 * (gate >> 3) | 3 * (gate & 1)
    elif (gate & 10) >> 1 != gate & 5 and a > b:
        a, b, gate = b, a, gate & 9 | (gate & 4) >> 1 | (gate & 2) << 1
    complemented = gate >> 3
    return a, b, gate ^ 15 * complemented, complemented
