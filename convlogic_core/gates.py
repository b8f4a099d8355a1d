"""The 16 two-input Boolean gates: their numbers, names, truth tables and real-valued coefficients.

Every gate, relaxed over [0, 1], is bilinear: g(a, b) = c0 + c1*a + c2*b + c3*a*b. A mixture of gates is again
such a function, so a gate costs four coefficients, never sixteen. Numbers are those of difflogic (Petersen et
al. 2022, "Deep Differentiable Logic Gate Networks", table 1). This is the only file that knows them.
"""

from typing import Final, TypeVar

import torch

Number = TypeVar("Number", int, torch.Tensor)

GATE_NAMES: Final = (
    "false",
    "a and b",
    "a and not b",
    "a",
    "not a and b",
    "b",
    "a xor b",
    "a or b",
    "a nor b",
    "a xnor b",
    "not b",
    "b implies a",
    "not a",
    "a implies b",
    "a nand b",
    "true",
)

# The same in Verilog, of single bits, and in C, of words of any width.
GATE_EXPRESSIONS: Final = (
    "0",
    "{a} & {b}",
    "{a} & ~{b}",
    "{a}",
    "~{a} & {b}",
    "{b}",
    "{a} ^ {b}",
    "{a} | {b}",
    "~({a} | {b})",
    "~({a} ^ {b})",
    "~{b}",
    "{a} | ~{b}",
    "~{a}",
    "~{a} | {b}",
    "~({a} & {b})",
    "~0",
)

NUM_GATES: Final = 16
GATE_A: Final = 3  # "a": the gate that residual initialisation favours


def truth_row(gate: int) -> tuple[int, int, int, int]:
    """Outputs of a gate for (a, b) = (0,0), (0,1), (1,0), (1,1): the gate's number read as a binary word."""
    return (gate >> 3) & 1, (gate >> 2) & 1, (gate >> 1) & 1, gate & 1


def coefficients_of_row(f00: Number, f01: Number, f10: Number, f11: Number) -> tuple[Number, Number, Number, Number]:
    """(c0, c1, c2, c3) of the gate with these outputs, which may be probabilities."""
    return f00, f10 - f00, f01 - f00, f11 - f10 - f01 + f00


# (16, 4): row g holds (c0, c1, c2, c3) of gate g.
GATE_TABLE: Final = torch.tensor(
    [coefficients_of_row(*truth_row(gate)) for gate in range(NUM_GATES)], dtype=torch.float32
)


def coefficients_of(gates: torch.Tensor) -> torch.Tensor:
    """GATE_TABLE[gates] as integers, (...,) -> (..., 4), computed where the gates lie: nothing is copied to a GPU."""
    return torch.stack(coefficients_of_row(*(gates >> shift & 1 for shift in (3, 2, 1, 0))), -1)
