"""AIGER, decoded and evaluated afresh. Readers of others: test_equivalence."""

import torch

from convlogic_core.circuit.aiger import aiger

from .hardware_tools import random_circuit, random_images
from .test_blif import one_gate


def evaluated(data: bytes, images: list[list[int]]) -> list[list[int]]:
    """Outputs for images of bits."""
    head, _, rest = data.partition(b"\n")
    _, maximum, num_inputs, latches, num_outputs, num_ands = (
        int(word) if word.isdigit() else 0 for word in head.split(b" ")
    )
    assert latches == 0 and maximum == num_inputs + num_ands
    *outputs, rest = rest.split(b"\n", num_outputs)
    position = 0

    def number() -> int:
        nonlocal position
        result = shift = 0
        while True:
            byte = rest[position]
            position += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    ands = []
    for variable in range(num_inputs + 1, maximum + 1):
        high = 2 * variable - number()
        low = high - number()
        assert 0 <= low <= high < 2 * variable
        ands.append((high, low))
    symbols = [f"i{i} bits[{i}]\n" for i in range(num_inputs)] + [f"o{o} outputs[{o}]\n" for o in range(num_outputs)]
    assert rest[position:].decode() == "".join(symbols)
    results = []
    for image in images:
        values = [0, *image]
        for high, low in ands:
            values.append((values[high >> 1] ^ high & 1) & (values[low >> 1] ^ low & 1))
        results.append([values[int(output) >> 1] ^ int(output) & 1 for output in outputs])
    return results


def test_every_gate_is_itself_at_the_least_cost() -> None:
    inputs = [[0, 0], [0, 1], [1, 0], [1, 1]]
    for gate in range(16):
        data = aiger(one_gate(gate))
        assert [row[0] for row in evaluated(data, inputs)] == [gate >> shift & 1 for shift in (3, 2, 1, 0)]
        assert int(data.split(b"\n")[0].split()[-1]) == (
            0 if gate in (0, 3, 5, 10, 12, 15) else 1 + 2 * (gate in (6, 9))
        )
        assert [row[0] for row in evaluated(aiger(one_gate(gate, inverted=True)), inputs)] == [
            1 - (gate >> shift & 1) for shift in (3, 2, 1, 0)
        ]


def test_many_gates() -> None:
    """Distances of one byte and of more, constants, gates that read one node twice."""
    circuit = random_circuit(31, (200,), 900, 10, 3)
    images = random_images(circuit, 30)
    sums = torch.tensor(evaluated(aiger(circuit), images.tolist())).view(30, 3, 10).sum(2)
    assert sums.tolist() == circuit.sums(images).tolist()
    assert len(sums.unique(dim=0)) > 3
