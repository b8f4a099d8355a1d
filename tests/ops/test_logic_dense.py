"""logic_dense: the native kernel against the reference, and what torch asks of a custom op.

Shape letters: B batch, F features, O gates.
"""

import pytest
import torch

from convlogic_core.ops import logic_dense

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def example(batch, features=37, gates=53, dtype=torch.float32, seed=0):
    """x (B, F), indices and coefficients that need gradients, and a weight (B, O) of every output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, features, dtype=dtype, generator=generator).requires_grad_()
    coefficients = torch.randn(gates, 4, dtype=dtype, generator=generator).requires_grad_()
    indices_0, indices_1 = torch.randint(0, features, (2, gates), generator=generator).unbind(0)
    return x, indices_0, indices_1, coefficients, torch.randn(batch, gates, dtype=dtype, generator=generator)


def run(x, indices_0, indices_1, coefficients, weight, implementation):
    """y and the gradients of x (where it needs them) and of the coefficients."""
    y = logic_dense(x, indices_0, indices_1, coefficients, implementation)
    wanted = [tensor for tensor in (x, coefficients) if tensor.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, weight)]


def assert_parity(x, *rest):
    native, reference = run(x, *rest, "cpu"), run(x, *rest, "python")
    for ours, theirs in zip(native, reference, strict=True):
        scale = max(1.0, theirs.abs().max().item() * len(x) ** 0.5) if theirs.numel() else 1.0  # sums of many samples
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[x.dtype] * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 7, 32, 128, 1500])
def test_parity(isa, batch, dtype):
    assert_parity(*example(batch, dtype=dtype))


@pytest.mark.parametrize("features, gates", [(1, 1), (2, 1), (5, 1000), (1000, 7), (3, 0)])
def test_parity_of_odd_widths(isa, features, gates):
    assert_parity(*example(40, features, gates))


def test_one_feature_twice_and_empty_fan_out(isa):
    x, _, _, coefficients, weight = example(33, features=6, gates=4)
    indices = torch.tensor([2, 2, 5, 0])
    assert_parity(x, indices, indices, coefficients, weight)
    grad_x = run(x, indices, indices, coefficients, weight, "cpu")[1]
    assert not grad_x[:, [1, 3, 4]].any()


def test_any_strides(isa):
    x, indices_0, indices_1, coefficients, weight = example(24)
    for layout in (
        x.detach(),
        x.detach().T.contiguous().T,
        torch.cat([x, x], 1).detach()[:, :37],
        x.detach().repeat_interleave(2, 0)[::2],
        x.detach()[:, :1].expand(24, 37),
    ):
        layout.requires_grad_()
        for grad in (weight, weight.T.contiguous().T, weight[:1, :1].expand_as(weight)):
            wide = torch.stack([coefficients, coefficients], -1).detach()[..., 0].requires_grad_()
            assert_parity(layout, indices_0, indices_1, wide, grad)


def test_batch_innermost_input_is_not_copied_and_output_is_batch_innermost():
    x, indices_0, indices_1, coefficients, _ = example(24)
    y = logic_dense(x, indices_0, indices_1, coefficients, "cpu")
    assert y.stride() == (1, 24)
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    assert grad_x.stride() == (1, 24)


def test_first_layer_has_no_input_gradient(isa):
    x, *rest = example(20)
    assert_parity(x.detach(), *rest)


def test_nan_stays_where_it_is(isa):
    x, indices_0, indices_1, coefficients, weight = example(19)
    with torch.no_grad():
        x[3, indices_0[0]] = torch.nan
    for ours, theirs in zip(
        run(x, indices_0, indices_1, coefficients, weight, "cpu"),
        run(x, indices_0, indices_1, coefficients, weight, "python"),
        strict=True,
    ):
        assert torch.equal(ours.isnan(), theirs.isnan()) and theirs.isnan().any()


def test_gradcheck():
    x, *rest, _ = example(3, features=4, gates=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, c: logic_dense(x, *rest[:2], c, "cpu"), (x, rest[2]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_opcheck():
    x, indices_0, indices_1, coefficients, weight = example(8)
    torch.library.opcheck(torch.ops.convlogic.logic_dense.default, (x, indices_0, indices_1, coefficients))
    tensors = [tensor.detach() for tensor in (weight, x, indices_0, indices_1, coefficients)]
    for needs_grad_x in (True, False):
        torch.library.opcheck(torch.ops.convlogic.logic_dense_backward.default, (*tensors, needs_grad_x))


def test_compiles_in_one_graph():
    x, indices_0, indices_1, coefficients, _ = example(8)

    def f(x):
        return logic_dense(2 * x, indices_0, indices_1, coefficients).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(f(x), x))


@pytest.mark.parametrize("batch", [33, 1500])
def test_thread_count_does_not_change_a_bit(isa, batch):
    args = example(batch, features=100, gates=300)
    threads = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(run(*args, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [-1, 37, 2**40])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("implementation", ["cpu", "python"])
def test_wiring_outside_the_input_is_refused(bad, side, implementation):
    x, *indices, coefficients, _ = example(4)
    logic_dense(x, *indices, coefficients, implementation)
    indices[side][17] = bad
    with pytest.raises(ValueError, match=rf"logic_dense: indices_{side}\[17\] = {bad} is outside the 37 features"):
        logic_dense(x, *indices, coefficients, implementation)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.rand(4, 37, 1)}, "input of 2 dimensions"),
        ({"x": torch.zeros(4, 37, dtype=torch.int64)}, "floating-point"),
        ({"x": torch.rand(4, 37, dtype=torch.float64)}, "one dtype on one device"),
        ({"coefficients": torch.rand(53, 16)}, r"\(gates, 4\)"),
        ({"coefficients": torch.rand(52, 4)}, r"shape \(52,\)"),
        ({"indices_1": torch.zeros(53, dtype=torch.int32)}, "int64"),
        ({"implementation": "gpu"}, "not one of auto, cuda, cpu, python"),
        ({"implementation": "cuda"}, "tensor on cpu"),
    ],
)
def test_errors(change, message):
    x, indices_0, indices_1, coefficients, _ = example(4)
    arguments = {"x": x, "indices_0": indices_0, "indices_1": indices_1, "coefficients": coefficients}
    with pytest.raises(ValueError, match=message):
        logic_dense(**(arguments | change))


def test_half_precision_uses_the_reference():
    x, indices_0, indices_1, coefficients, _ = example(4)
    y = logic_dense(x.bfloat16(), indices_0, indices_1, coefficients.bfloat16())
    assert y.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="float32 or float64"):
        logic_dense(x.bfloat16(), indices_0, indices_1, coefficients.bfloat16(), "cpu")
