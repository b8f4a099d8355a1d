"""The example of docs/gates.md: the circuit in its table has the counts that its text derives."""

import re
from pathlib import Path

import numpy as np

from convlogic_core.circuit import Circuit
from convlogic_core.circuit.unroll import Layer
from convlogic_core.gates import GATE_NAMES, NUM_GATES

TEXT = (Path(__file__).parents[1] / "docs/gates.md").read_text(encoding="utf-8")
NUM_PIXELS, NUM_CLASSES, NUM_OUTPUTS, THRESHOLD = 5, 2, 4, 192


def table(header: str) -> list[list[str]]:
    """The rows under a header."""
    body = TEXT.partition(f"| {header} |\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[1:]]


def example() -> Circuit:
    rows = table("layer | gate | is | a | b | what becomes of it")
    nodes = {f"x{number}": number for number in range(1, NUM_PIXELS + 1)}
    nodes |= {row[1]: 1 + NUM_PIXELS + number for number, row in enumerate(rows)}
    gates = [GATE_NAMES.index(row[2]) for row in rows]
    layers = []
    for name in dict.fromkeys(row[0] for row in rows):
        own = [gate for row, gate in zip(rows, gates, strict=True) if row[0] == name]
        layers.append(Layer(name, len(own), tuple(np.bincount(own, minlength=NUM_GATES).tolist())))
    return Circuit(
        input_shape=(1, 1, NUM_PIXELS),
        a=np.array([nodes[row[3]] for row in rows], np.int32),
        b=np.array([nodes[row[4]] for row in rows], np.int32),
        gate=np.array(gates, np.uint8),
        outputs=np.array([nodes[row[1]] for row in rows[-NUM_OUTPUTS:]], np.int32),
        inverted=np.zeros(NUM_OUTPUTS, np.bool_),
        num_classes=NUM_CLASSES,
        tau=1.0,
        layers=tuple(layers),
        thresholds=np.array([[THRESHOLD]], np.uint8),
    )


def test_the_counts_are_those_of_the_text() -> None:
    counts = example().counts
    (figures,) = table("raw | core | total | depth")
    assert [counts.raw, counts.core, counts.total, counts.depth] == [int(figure) for figure in figures]
    steps = TEXT.partition("1. raw")[2]
    outputs, adders = re.search(r"(\d+) \* 7 = (\d+)\.", steps).groups()  # type: ignore[union-attr]
    comparators = re.search(r"4 pixels, (\d+) gates\.", steps)[1]  # type: ignore[index]
    assert (counts.num_outputs, counts.comparator_gates) == (int(outputs), int(comparators))
    assert f"total: {counts.core} + {adders} + {comparators}." in steps
    assert counts.total == counts.core + int(adders) + int(comparators)


def test_the_gates_that_stay_are_those_of_the_text() -> None:
    rows = table("layer | gate | is | a | b | what becomes of it")
    for layer in example().counts.layers:
        kept = [row[5].startswith("stays") for row in rows if row[0] == layer.name]
        assert (layer.raw, layer.core) == (len(kept), sum(kept))


def test_the_simplified_example_says_what_the_text_says() -> None:
    """Nodes 1 to 5 are the pixels; 6 is g1, 7 is g1 or x3, 8 is x3 xor x4."""
    simplified = example().simplify()
    gates = [GATE_NAMES[gate] for gate in simplified.gate]
    read = list(zip(simplified.a.tolist(), gates, simplified.b.tolist(), strict=True))
    assert read[0] == (1, "a and b", 2)
    assert sorted(read[1:]) == [(3, "a or b", 6), (3, "a xor b", 4)]
    assert simplified.outputs.tolist() == [7, 6, 8, 0]
    assert simplified.inverted.tolist() == [False, True, True, True]
