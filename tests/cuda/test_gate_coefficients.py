"""Logits -> coefficients on CUDA, emulated: against `soft_coefficients` in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convlogic_core.ops import cuda
from convlogic_core.ops.gate_coefficients import reference_gate_coefficients
from convlogic_core.parametrization import soft_coefficients


def reference(logits, parametrization, weight):
    logits = logits.double().requires_grad_()
    coefficients = soft_coefficients(logits, parametrization)
    return coefficients, *torch.autograd.grad(coefficients, logits, weight.double())


@pytest.mark.parametrize("parametrization, num_logits", [("softmax", 16), ("iwp", 4)])
@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (300,), (9, 7)])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_parity(emulated, parametrization, num_logits, shape, scale):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, num_logits, generator=generator) * scale
    weight = torch.randn(*shape, 4, generator=generator)
    ours = cuda.cuda_coefficients_forward(logits), cuda.cuda_coefficients_backward(weight, logits)
    for result, expected in zip(ours, reference(logits, parametrization, weight), strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_logits", [4, 16])
def test_any_order_of_threads_gives_the_same_bits(emulated, num_logits):
    logits = torch.randn(200, num_logits, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    results = []
    for order in (0, 1, 17):
        emulated(order)
        results.append((cuda.cuda_coefficients_forward(logits), cuda.cuda_coefficients_backward(weight, logits)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("num_logits", [4, 16])
def test_nan_and_infinite_logits(emulated, num_logits):
    logits = torch.zeros(8, num_logits)
    logits[2, 1], logits[4, 3] = torch.nan, -torch.inf
    coefficients = cuda.cuda_coefficients_forward(logits)
    assert coefficients.isnan().any(1).nonzero().tolist() == [[2]]
    expected = soft_coefficients(logits, {16: "softmax", 4: "iwp"}[num_logits])
    torch.testing.assert_close(coefficients[4], expected[4])


@pytest.mark.parametrize("logits", [torch.zeros(3, 8), torch.zeros(3, 16, dtype=torch.float64)])
def test_wrong_logits_are_refused(emulated, logits):
    with pytest.raises(ValueError, match="4 or 16"):
        cuda.cuda_coefficients_forward(logits)


class NoHostTensors(TorchDispatchMode):
    """Refuses operations on tensors of the CPU, as the capture of a CUDA graph refuses to copy them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device.type == "meta" for tensor in tensors), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_logits", [4, 16])
def test_reference_can_be_captured(num_logits):
    logits = torch.zeros(5, num_logits, device="meta", requires_grad=True)
    with NoHostTensors():
        coefficients = reference_gate_coefficients(logits)
        torch.autograd.grad(coefficients, logits, torch.empty_like(coefficients))
    assert coefficients.shape == (5, 4)
    with NoHostTensors(), pytest.raises(AssertionError, match="_to_copy"):
        torch.zeros(4).to(logits)
