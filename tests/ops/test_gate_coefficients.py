"""gate_coefficients: the native kernel against the reference in float64, and what torch asks of a custom op."""

import pytest
import torch

from convlogic_core.ops.gate_coefficients import gate_coefficients, reference_gate_coefficients

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_logits", [4, 16])
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (63,), (9, 7)])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_parity(isa, dtype, num_logits, shape, scale):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(*shape, num_logits, dtype=dtype, generator=generator) * scale).requires_grad_()
    weight = torch.randn(*shape, 4, dtype=dtype, generator=generator)
    coefficients = gate_coefficients(logits, "cpu")
    ours = coefficients, *torch.autograd.grad(coefficients, logits, weight)
    exact = reference_gate_coefficients(logits.double())
    expected = exact, *torch.autograd.grad(exact, logits, weight.double())
    for result, reference in zip(ours, expected, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), reference.double(), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_logits", [4, 16])
def test_nan_and_infinite_logits(isa, dtype, num_logits):
    logits = torch.zeros(8, num_logits, dtype=dtype)
    logits[2, 1], logits[4, 3] = torch.nan, -torch.inf
    coefficients = gate_coefficients(logits, "cpu")
    assert coefficients.isnan().any(1).nonzero().tolist() == [[2]]
    torch.testing.assert_close(coefficients[4], reference_gate_coefficients(logits)[4])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@pytest.mark.parametrize("num_logits", [4, 16])
def test_opcheck(num_logits):
    logits, weight = torch.randn(5, num_logits), torch.randn(5, 4)
    torch.library.opcheck(torch.ops.convlogic.gate_coefficients.default, (logits.clone().requires_grad_(),))
    torch.library.opcheck(torch.ops.convlogic.gate_coefficients_backward.default, (weight, logits))


@pytest.mark.parametrize("logits", [torch.zeros(3, 8), torch.zeros(3, 16, dtype=torch.int64), torch.tensor(1.0)])
def test_errors(logits):
    with pytest.raises(ValueError, match=r"\(\.\.\., 16\) or \(\.\.\., 4\)"):
        gate_coefficients(logits, "cpu")


@pytest.mark.parametrize("change", [lambda t: t.half(), lambda t: t.double(), lambda t: t[:2], lambda t: t[..., :1]])
def test_logits_changed_before_the_backward_pass(change):
    """As by `module.half()`: autograd does not see it, and the kernel would read beyond them."""
    logits = torch.zeros(5, 16, requires_grad=True)
    coefficients = gate_coefficients(logits, "cpu")
    logits.data = change(logits.data)
    with pytest.raises(ValueError, match="at its backward pass"):
        coefficients.sum().backward()
