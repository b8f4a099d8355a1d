"""BLIF, read by hand: a table for each kind of gate. Readers of others: test_equivalence."""

import numpy as np
import pytest

from convlogic_core.circuit import Circuit
from convlogic_core.circuit.blif import blif
from convlogic_core.circuit.unroll import Layer
from convlogic_core.gates import truth_row


def one_gate(gate: int, inverted: bool = False) -> Circuit:
    a, b = np.array([1], np.int32), np.array([2], np.int32)
    layer = Layer("dense_1", 1, (0,) * gate + (1,) + (0,) * (15 - gate))
    outputs, complements = np.array([3, 1], np.int32), np.array([inverted, False])
    return Circuit((2,), a, b, np.array([gate], np.uint8), outputs, complements, 2, 1.0, (layer,))


def value(text: str, net: str, known: dict[str, int]) -> int:
    """Of a net, by the tables of a model: the rows of a table all say when it is one, or all when it is not."""
    if net in known:
        return known[net]
    lines = text.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith(".names") and line.split()[-1] == net)
    inputs = "".join(str(value(text, name, known)) for name in lines[start].split()[1:-1])
    rows = []
    for line in lines[start + 1 :]:
        if line.startswith("."):
            break
        rows.append(line.split())
    if not rows:
        return 0
    says = int(rows[0][-1])
    return says if any("".join(row[:-1]) == inputs for row in rows) else 1 - says


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("gate", range(16))
def test_tables(gate: int, inverted: bool) -> None:
    text = blif(one_gate(gate, inverted))
    for row, (a, b) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        bits = {"bits[0]": a, "bits[1]": b}
        assert value(text, "outputs[0]", bits) == truth_row(gate)[row] ^ inverted
        assert value(text, "outputs[1]", bits) == a


def test_layout() -> None:
    assert blif(one_gate(7), "7 nets") == (
        ".model circuit_7_nets\n.inputs bits[0] bits[1]\n.outputs outputs[0] outputs[1]\n.names n0\n"
        ".names bits[0] bits[1] n3\n00 0\n.names n3 outputs[0]\n1 1\n.names bits[0] outputs[1]\n1 1\n.end\n"
    )
