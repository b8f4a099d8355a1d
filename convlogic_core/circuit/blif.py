"""Circuits as BLIF, the Berkeley Logic Interchange Format: the gates alone, for synthesis tools.

Inputs `bits[i]` are the bits of the flattened image, all of them; outputs `outputs[o]` are those that the class sums
count, class by class.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..gates import NUM_GATES, truth_row
from .names import safe_name

if TYPE_CHECKING:
    from .netlist import Circuit

NAMES_A_LINE: Final = 8
PATTERNS: Final = ("00", "01", "10", "11")


def blif(circuit: "Circuit", name: str = "circuit") -> str:
    """The text of a model of that name, made safe by `safe_name`. The circuit is written as it is, not simplified."""
    covers = [_cover(truth_row(gate)) for gate in range(NUM_GATES)]
    nodes = ["n0", *(f"bits[{i}]" for i in range(circuit.num_inputs))]
    lines = [
        f".model {safe_name(name)}\n",
        *_listed(".inputs", nodes[1:]),
        *_listed(".outputs", [f"outputs[{o}]" for o in range(len(circuit.outputs))]),
        ".names n0\n",
    ]
    gates = zip(circuit.a.tolist(), circuit.b.tolist(), circuit.gate.tolist(), strict=True)
    for node, (a, b, gate) in enumerate(gates, len(nodes)):
        nodes.append(f"n{node}")
        inputs = f"{nodes[a]} {nodes[b]} " if len(set(truth_row(gate))) == 2 else ""
        lines.append(f".names {inputs}n{node}\n{covers[gate]}")
    for number, (node, inverted) in enumerate(zip(circuit.outputs.tolist(), circuit.inverted.tolist(), strict=True)):
        lines.append(f".names {nodes[node]} outputs[{number}]\n{int(not inverted)} 1\n")
    return "".join((*lines, ".end\n"))


def _cover(row: tuple[int, ...]) -> str:
    """A gate's table: where it is one or, if that is fewer lines, where it is not. Constants have no inputs."""
    if len(set(row)) == 1:
        return "1\n" * row[0]
    value = int(sum(row) < 3)
    return "".join(f"{pattern} {value}\n" for pattern, bit in zip(PATTERNS, row, strict=True) if bit == value)


def _listed(keyword: str, names: list[str]) -> Iterator[str]:
    """Names of inputs or outputs, in lines of moderate length."""
    for start in range(0, len(names), NAMES_A_LINE):
        yield f"{keyword} {' '.join(names[start : start + NAMES_A_LINE])}\n"
