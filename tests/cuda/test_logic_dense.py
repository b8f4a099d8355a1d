"""logic_dense on CUDA, emulated: against the reference in float64.

Shape letters: B batch, F features, O gates.
"""

import pytest
import torch

from convlogic_core.ops import cuda
from convlogic_core.ops.logic_dense import reference_logic_dense

# of the largest value, and growing with the root of the batch for sums over it
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ORDERS = (0, 1, 17)  # ascending, descending, shuffled threads and blocks


def example(batch, features=21, gates=35, dtype=torch.float32):
    """x (B, F) batch-innermost, indices, coefficients, and a weight (B, O) of every output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(features, batch, generator=generator).to(dtype).T
    indices_0, indices_1 = torch.randint(0, features, (2, gates), generator=generator).unbind(0)
    coefficients = torch.randn(gates, 4, generator=generator)
    return x, indices_0, indices_1, coefficients, torch.randn(gates, batch, generator=generator).to(dtype).T


def run(x, indices_0, indices_1, coefficients, weight):
    """y and the gradients of x and of the coefficients."""
    y = cuda.dense_forward(x, indices_0, indices_1, coefficients)
    return [y, *cuda.dense_backward(weight, x, indices_0, indices_1, coefficients, True)]


def reference(x, indices_0, indices_1, coefficients, weight):
    x, coefficients = x.double().requires_grad_(), coefficients.double().requires_grad_()
    y = reference_logic_dense(x, indices_0, indices_1, coefficients)
    return [y, *torch.autograd.grad(y, (x, coefficients), weight.double())]


def assert_parity(*args):
    x = args[0]
    ours = run(*args)
    assert [tensor.dtype for tensor in ours] == [x.dtype, x.dtype, torch.float32]
    for index, (result, expected) in enumerate(zip(ours, reference(*args), strict=True)):
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        tolerance = TOLERANCE[torch.float32 if index == 2 else x.dtype] * scale
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 1, 3, 31, 32, 33, 130, 1000])
def test_parity(emulated, batch, dtype):
    assert_parity(*example(batch, dtype=dtype))


@pytest.mark.parametrize("features, gates", [(1, 1), (2, 1), (3, 200), (100, 7), (33, 65), (3, 0)])
def test_odd_widths(emulated, features, gates):
    assert_parity(*example(40, features, gates))


@pytest.mark.parametrize("batch", [36, 37])
def test_one_feature_twice_and_empty_fan_out(emulated, batch):
    x, _, _, coefficients, weight = example(batch, features=6, gates=4)
    indices = torch.tensor([2, 2, 5, 0])
    _, grad_x, _ = assert_parity(x, indices, indices.clone(), coefficients, weight)
    assert not grad_x[:, [1, 3, 4]].any()


@pytest.mark.parametrize("batch", [33, 160])
def test_any_order_of_threads_and_blocks_gives_the_same_bits(emulated, batch):
    args = example(batch)
    results = []
    for order in ORDERS:
        emulated(order)
        results.append(run(*args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unaligned_memory_gives_the_same_bits(emulated, dtype):
    x, *rest, coefficients, weight = example(64, dtype=dtype)

    def shifted(tensor):
        """The same values, one element beyond an aligned address."""
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.T.shape)
        return memory.copy_(tensor.T).T

    aligned = run(x, *rest, coefficients, weight)
    for args in ((shifted(x), weight), (x, shifted(weight)), (shifted(x), shifted(weight))):
        unaligned = run(args[0], *rest, coefficients, args[1])
        assert all(torch.equal(a, b) for a, b in zip(aligned, unaligned, strict=True))


def test_any_strides(emulated):
    x, indices_0, indices_1, coefficients, weight = example(24)
    wide = torch.stack([coefficients, coefficients], -1)[..., 0]
    for layout in (x.contiguous(), torch.cat([x, x], 1)[:, :21], x[:, :1].expand(24, 21)):
        for grad in (weight.contiguous(), weight[:1, :1].expand_as(weight)):
            assert_parity(layout, indices_0, indices_1, wide, grad)


def test_first_layer_has_no_input_gradient(emulated):
    x, indices_0, indices_1, coefficients, weight = args = example(70)
    grad_x, grad_coefficients = cuda.dense_backward(weight, x, indices_0, indices_1, coefficients, False)
    assert grad_x.shape == (0,)
    assert torch.equal(grad_coefficients, run(*args)[2])


def test_nan_stays_where_it_is(emulated):
    args = example(19)
    args[0][3, args[1][0]] = torch.nan
    for ours, theirs in zip(run(*args), reference(*args), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan()) and theirs.isnan().any()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [-1, 21, 2**40])
def test_wiring_outside_the_input_is_refused(emulated, bad, side):
    args = example(4)
    args[1 + side][17] = bad
    with pytest.raises(ValueError, match=rf"indices_{side}\[17\] = {bad} is outside the 21 features"):
        run(*args)


def test_wiring_changed_in_place_is_seen(emulated):
    args = example(8)
    run(*args)
    args[2][5] = (args[2][5] + 1) % 21
    assert_parity(*args)


def test_sizes_beyond_an_index_are_refused_before_memory_is_taken(emulated):
    x, indices_0, indices_1, coefficients, _ = example(1)
    with pytest.raises(ValueError, match="at most 2147483584 batch"):
        cuda.dense_forward(x.expand(2**31, 21), indices_0, indices_1, coefficients)
