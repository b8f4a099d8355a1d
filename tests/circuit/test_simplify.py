"""Simplification: the same function, nothing left to simplify, native and reference alike to the last gate."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convlogic_core.circuit import Circuit
from convlogic_core.circuit.evaluate import reference_sums
from convlogic_core.circuit.simplify import normalized, reference_simplify, simplify_gates
from convlogic_core.gates import truth_row
from tests.circuit.hardware_tools import random_circuit
from tests.core.conftest import WITH_EXTENSION

circuits = st.builds(
    random_circuit,
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 6)),
    st.integers(0, 60),
    st.integers(1, 20),
    st.integers(1, 4),
)


def all_inputs(num_inputs: int) -> torch.Tensor:
    numbers = torch.arange(2**num_inputs)
    return (numbers[:, None] >> torch.arange(num_inputs) & 1).to(torch.uint8)


@settings(deadline=None, max_examples=100)
@given(circuit=circuits)
def test_same_function_and_nothing_left(circuit: Circuit) -> None:
    simplified = circuit.simplify()
    x = all_inputs(circuit.num_inputs)
    expected = reference_sums(circuit, x)
    assert torch.equal(reference_sums(simplified, x), expected)
    assert torch.equal(simplified.sums(x), expected)
    assert torch.equal(circuit.sums(x), expected)
    again = Circuit(**{name: getattr(simplified, name) for name in simplified.__dataclass_fields__}).simplify()
    for name, array in simplified.gates._asdict().items():
        assert np.array_equal(array, getattr(again, name)), name
    assert again.layers == simplified.layers
    assert (simplified.a < simplified.b).all() and set(simplified.gate.tolist()) <= {1, 2, 4, 6, 7}
    keys = list(zip(simplified.a.tolist(), simplified.b.tolist(), simplified.gate.tolist(), strict=True))
    assert len(set(keys)) == len(keys)
    read = {*simplified.a.tolist(), *simplified.b.tolist(), *simplified.outputs.tolist()}
    assert all(node in read for node in range(1 + circuit.num_inputs, 1 + circuit.num_inputs + len(keys)))


@WITH_EXTENSION
@settings(deadline=None, max_examples=100)
@given(circuit=circuits)
def test_native_is_the_reference(circuit: Circuit) -> None:
    expected, expected_was = reference_simplify(circuit.num_inputs, circuit.gates)
    gates, was = simplify_gates(circuit.num_inputs, circuit.gates)
    assert np.array_equal(was, expected_was)
    for name, array in expected._asdict().items():
        assert np.array_equal(array, getattr(gates, name)), name
        assert array.dtype == getattr(gates, name).dtype, name


@pytest.mark.parametrize("gate", range(16))
def test_a_gate_of_any_two_literals(gate: int) -> None:
    """Node 0 is false; nodes 1 and 2 take all values."""

    def output(number: int, left: int, right: int) -> int:
        return truth_row(number)[2 * left + right]

    for a, b, first, second in product(range(6), range(6), (0, 1), (0, 1)):
        new_a, new_b, new_gate, complemented = normalized(a, b, gate)
        assert new_gate in (0, 3, 1, 2, 4, 6, 7)
        value = (0, first, second)
        expected = output(gate, value[a >> 1] ^ (a & 1), value[b >> 1] ^ (b & 1))
        assert output(new_gate, value[new_a], value[new_b]) ^ complemented == expected
