from collections.abc import Callable

import pytest
import torch

from convlogic_core.gates import (
    GATE_A,
    GATE_EXPRESSIONS,
    GATE_NAMES,
    GATE_TABLE,
    NUM_GATES,
    coefficients_of,
    truth_row,
)

# What each name says, written out a second time.
MEANINGS: dict[str, Callable[[bool, bool], bool]] = {
    "false": lambda a, b: False,
    "a and b": lambda a, b: a and b,
    "a and not b": lambda a, b: a and not b,
    "a": lambda a, b: a,
    "not a and b": lambda a, b: (not a) and b,
    "b": lambda a, b: b,
    "a xor b": lambda a, b: a != b,
    "a or b": lambda a, b: a or b,
    "a nor b": lambda a, b: not (a or b),
    "a xnor b": lambda a, b: a == b,
    "not b": lambda a, b: not b,
    "b implies a": lambda a, b: a if b else True,
    "not a": lambda a, b: not a,
    "a implies b": lambda a, b: b if a else True,
    "a nand b": lambda a, b: not (a and b),
    "true": lambda a, b: True,
}
INPUTS = [(False, False), (False, True), (True, False), (True, True)]
DIFFLOGIC_ORDER = list(MEANINGS)


def test_numbers_are_those_of_difflogic() -> None:
    assert list(GATE_NAMES) == DIFFLOGIC_ORDER
    assert NUM_GATES == 16
    assert GATE_NAMES[GATE_A] == "a"


@pytest.mark.parametrize("gate", range(16))
def test_name_truth_row_and_coefficients_are_one_function(gate: int) -> None:
    meant = [int(MEANINGS[GATE_NAMES[gate]](a, b)) for a, b in INPUTS]
    assert list(truth_row(gate)) == meant
    # Python writes these operators as Verilog and C do
    assert [eval(GATE_EXPRESSIONS[gate].format(a=int(a), b=int(b))) & 1 for a, b in INPUTS] == meant
    c0, c1, c2, c3 = GATE_TABLE[gate].tolist()
    assert [c0 + c1 * a + c2 * b + c3 * a * b for a, b in INPUTS] == meant


def test_the_sixteen_rows_are_sixteen_functions() -> None:
    assert GATE_TABLE.shape == (16, 4)
    assert len(set(map(tuple, GATE_TABLE.tolist()))) == 16


@pytest.mark.parametrize("gate", range(16))
def test_relaxed_gate_is_the_expectation_over_random_bits(gate: int) -> None:
    a, b = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c0, c1, c2, c3 = GATE_TABLE[gate].double()
    chances = [(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b]
    expected = sum(
        chance * int(MEANINGS[GATE_NAMES[gate]](*bits)) for chance, bits in zip(chances, INPUTS, strict=True)
    )
    torch.testing.assert_close(c0 + c1 * a + c2 * b + c3 * a * b, torch.as_tensor(expected).expand(50).double())


def test_coefficients_without_the_table() -> None:
    assert torch.equal(coefficients_of(torch.arange(16).reshape(2, 8)), GATE_TABLE.long().reshape(2, 8, 4))
