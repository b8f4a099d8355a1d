"""Circuits as JSON that explains itself, for whoever writes a back end of their own."""

import json
from typing import TYPE_CHECKING, Final

from ..gates import GATE_NAMES, truth_row
from .names import safe_name

if TYPE_CHECKING:
    from .netlist import Circuit

FORMAT: Final = "convlogic-netlist"
VERSION: Final = 1
ABOUT: Final = {
    "nodes": "0 is constant false; 1 to F are the input bits, bit i of the flattened input_shape being node i + 1; "
    "F + 1 + g is gate g",
    "thresholds": "null: the input is bits; else a row a channel: bit plane channel * T + t of the input is "
    "byte >= thresholds[channel][t]",
    "gate_types": "name, then the outputs for (a, b) = (0, 0), (0, 1), (1, 0), (1, 1)",
    "gates": "[number of the gate type, node a, node b], in an order in which nodes come before their readers",
    "outputs": "[node, 1 where it is complemented], class by class, equally many each",
    "classes": "the sum of a class is how many of its outputs are one, its logit the sum / tau; the highest sum is the "
    "image's class, of equal ones the lowest class",
}


def json_netlist(circuit: "Circuit", name: str = "circuit") -> str:
    """JSON of the fields that ABOUT explains, a gate a line. The circuit is written as it is, not simplified."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "name": safe_name(name),
        "about": ABOUT,
        "input_shape": circuit.input_shape,
        "thresholds": None if circuit.thresholds is None else circuit.thresholds.tolist(),
        "num_classes": circuit.num_classes,
        "tau": circuit.tau,
        "gate_types": {str(number): [name, *truth_row(number)] for number, name in enumerate(GATE_NAMES)},
        "layers": [{"name": layer.name, "num_gates": layer.num_gates} for layer in circuit.layers],
    }
    gates = zip(circuit.gate.tolist(), circuit.a.tolist(), circuit.b.tolist(), strict=True)
    outputs = zip(circuit.outputs.tolist(), circuit.inverted.astype(int).tolist(), strict=True)
    lists = {"gates": [f"[{gate}, {a}, {b}]" for gate, a, b in gates], "outputs": [f"[{o}, {i}]" for o, i in outputs]}
    fields = [f"{json.dumps(key)}: {json.dumps(value, indent=1)}" for key, value in head.items()]
    fields += ["{}: [\n{}\n]".format(json.dumps(key), ",\n".join(items)) for key, items in lists.items()]
    return "{\n" + ",\n".join(fields) + "\n}\n"
