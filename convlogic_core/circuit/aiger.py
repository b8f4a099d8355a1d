"""Circuits as binary AIGER (format 1.9 of Biere, Heljanko and Wieringa, FMV report 11/2): the gates alone, as ANDs.

Inputs are the bits of the flattened image, all of them; outputs are those that the class sums count, class by class;
the symbol table calls them `bits[i]` and `outputs[o]`. An XOR takes three ANDs, every other gate of two inputs one.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .netlist import Circuit


def aiger(circuit: "Circuit") -> bytes:
    """The bytes of an .aig file. The circuit is written as it is, not simplified."""
    num_inputs = circuit.num_inputs
    literals = [2 * node for node in range(1 + num_inputs)]  # of each node: 2 * variable + whether complemented
    ands = bytearray()
    num_ands = 0

    def add_and(a: int, b: int) -> int:
        """Literal of a AND b; stored as its distance to the larger of them and theirs to one another."""
        nonlocal num_ands
        num_ands += 1
        literal = 2 * (num_inputs + num_ands)
        high, low = max(a, b), min(a, b)
        for distance in (literal - high, high - low):
            while distance > 127:
                ands.append(distance & 127 | 128)
                distance >>= 7
            ands.append(distance)
        return literal

    for a, b, gate in zip(circuit.a.tolist(), circuit.b.tolist(), circuit.gate.tolist(), strict=True):
        a, b = literals[a], literals[b]
        complemented = gate >> 3  # f(0, 0); what is left is one of the first eight
        match gate ^ 15 * complemented:
            case 0:
                literal = 0
            case 1:
                literal = add_and(a, b)
            case 2:
                literal = add_and(a, b ^ 1)
            case 3:
                literal = a
            case 4:
                literal = add_and(a ^ 1, b)
            case 5:
                literal = b
            case 6:
                literal = add_and(add_and(a, b) ^ 1, add_and(a ^ 1, b ^ 1) ^ 1)
            case _:
                literal = add_and(a ^ 1, b ^ 1) ^ 1
        literals.append(literal ^ complemented)
    outputs = [literals[o] ^ inverted for o, inverted in zip(circuit.outputs, circuit.inverted.tolist(), strict=True)]
    head = f"aig {num_inputs + num_ands} {num_inputs} 0 {len(outputs)} {num_ands}\n"
    symbols = [f"i{i} bits[{i}]\n" for i in range(num_inputs)] + [f"o{o} outputs[{o}]\n" for o in range(len(outputs))]
    return b"".join(
        (head.encode(), "".join(f"{output}\n" for output in outputs).encode(), ands, "".join(symbols).encode())
    )
