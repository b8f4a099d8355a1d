"""Ops called directly and through torch's dispatcher are the same ops."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from convlogic_core.ops import gate_coefficients

pytest.importorskip("convlogic_core._native", reason="the native extension was not built")
DISPATCHED = torch.ops.convlogic.gate_coefficients.default


class Seen(TorchDispatchMode):
    """The operators that were dispatched."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def test_both_ways_give_the_same_bits():
    logits = torch.randn(9, 16, requires_grad=True)
    direct, dispatched = gate_coefficients(logits), DISPATCHED(logits)
    assert torch.equal(direct, dispatched)
    weight = torch.randn_like(direct)
    gradients = [torch.autograd.grad(y, logits, weight)[0] for y in (direct, dispatched)]
    assert torch.equal(*gradients)
    assert type(direct.grad_fn).__name__ == "DirectBackward"


def test_modes_and_traces_see_the_op():
    logits = torch.randn(9, 16)
    with Seen() as seen:
        gate_coefficients(logits)
    assert DISPATCHED in seen.operators
    graph = make_fx(lambda tensor: gate_coefficients(tensor))(logits).graph
    assert any(node.target is DISPATCHED for node in graph.nodes)


def test_second_derivatives_are_refused():
    logits = torch.randn(9, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(gate_coefficients(logits).square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_function_transforms_take_the_reference():
    logits = torch.randn(3, 9, 16)
    torch.testing.assert_close(torch.func.vmap(gate_coefficients)(logits), gate_coefficients(logits))
    gradient = torch.func.grad(lambda tensor: gate_coefficients(tensor).square().sum())(logits)
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(gate_coefficients(logits).square().sum(), logits)
    torch.testing.assert_close(gradient, expected)
