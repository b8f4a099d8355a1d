"""The JSON, evaluated by what it says about itself alone."""

import json
from typing import Any

import pytest

from convlogic_core.circuit.json_netlist import ABOUT, json_netlist

from .hardware_tools import bits_of, random_circuit, random_images


def sums_of(netlist: dict[str, Any], bits: list[int]) -> list[int]:
    values = [0, *bits]
    for number, a, b in netlist["gates"]:
        _, *row = netlist["gate_types"][str(number)]
        values.append(row[2 * values[a] + values[b]])
    ones = [values[node] ^ inverted for node, inverted in netlist["outputs"]]
    size = len(ones) // netlist["num_classes"]
    return [sum(ones[k * size : (k + 1) * size]) for k in range(netlist["num_classes"])]


@pytest.mark.parametrize("thresholds", [None, [[100, 200], [3, 128]]])
def test_netlist_is_the_circuit(thresholds: list[list[int]] | None) -> None:
    circuit = random_circuit(41, (4, 3, 2), 80, 7, 3, thresholds)
    netlist = json.loads(json_netlist(circuit, "a net"))
    assert (netlist["format"], netlist["version"], netlist["name"]) == ("convlogic-netlist", 1, "a_net")
    assert netlist["input_shape"] == [4, 3, 2]
    assert netlist["thresholds"] == thresholds
    assert netlist["tau"] == circuit.tau
    assert ABOUT.keys() - {"nodes", "classes"} <= netlist.keys()
    bits = bits_of(circuit, random_images(circuit, 30))
    found = [sums_of(netlist, image) for image in bits.flatten(1).tolist()]
    assert found == circuit.sums(bits).tolist()
    assert len(set(map(tuple, found))) > 3


def test_a_gate_a_line() -> None:
    circuit = random_circuit(42, (5,), 20, 2, 2)
    lines = json_netlist(circuit).splitlines()
    start = lines.index('"gates": [') + 1
    triples = [json.loads(line.rstrip(",")) for line in lines[start : start + 20]]
    assert triples == [
        list(gate) for gate in zip(*(x.tolist() for x in (circuit.gate, circuit.a, circuit.b)), strict=True)
    ]


def test_no_gates_at_all() -> None:
    netlist = json.loads(json_netlist(random_circuit(43, (3,), 0, 1, 2)))
    assert netlist["gates"] == []
    assert len(netlist["outputs"]) == 2
