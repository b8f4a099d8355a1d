"""logic_forest: the native kernel against the reference, and against the stack of dense layers that it replaces.

Shape letters: B batch, F features, K trees, L leaves, G gates a tree.
"""

from itertools import pairwise

import pytest
import torch

from convlogic_core.ops import forest_wiring, logic_dense, logic_forest

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def example(batch, features=23, trees=11, depth=3, dtype=torch.float32, group=1):
    """x, leaves, gate_rows (a permutation), coefficients, and a weight (B, K / group) of every output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, features, dtype=dtype, generator=generator).requires_grad_()
    leaves = torch.randint(0, features, (trees, 2**depth), generator=generator)
    gates = trees * (2**depth - 1)
    gate_rows = torch.randperm(gates, generator=generator).reshape(trees, -1)
    coefficients = torch.randn(gates, 4, dtype=dtype, generator=generator).requires_grad_()
    return x, leaves, gate_rows, coefficients, torch.randn(batch, trees // group, dtype=dtype, generator=generator)


def run(x, leaves, gate_rows, coefficients, weight, implementation):
    """y and the gradients of x (where it needs them) and of the coefficients."""
    y = logic_forest(x, leaves, gate_rows, coefficients, len(leaves) // weight.shape[1], implementation)
    wanted = [tensor for tensor in (x, coefficients) if tensor.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, weight)]


def assert_parity(x, *rest):
    native, reference = run(x, *rest, "cpu"), run(x, *rest, "python")
    for ours, theirs in zip(native, reference, strict=True):
        scale = max(1.0, theirs.abs().max().item() * len(x) ** 0.5) if theirs.numel() else 1.0  # sums of many samples
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[x.dtype] * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_parity(isa, depth, dtype):
    assert_parity(*example(45, depth=depth, dtype=dtype))


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("features", [3, 5000])
@pytest.mark.parametrize("batch", [0, 1, 7, 128, 1500])
def test_parity_where_a_tile_of_the_features_fits_the_cache_and_where_not(isa, batch, features, group):
    assert_parity(*example(batch, features=features, trees=40, depth=2, dtype=torch.float64, group=group))


def test_first_layer_has_no_input_gradient(isa):
    x, *rest = example(20)
    assert_parity(x.detach(), *rest)


@pytest.mark.parametrize("features", [100, 5000])
def test_thread_count_does_not_change_a_bit(isa, features):
    args = example(700, features=features, trees=50)
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


def dense_stack(widths):
    """Permutation wiring of layers with the given widths, the first of them the input."""
    generator = torch.Generator().manual_seed(1)
    layers = []
    for below, width in pairwise(widths):
        inputs = torch.cat([torch.randperm(below, generator=generator) for _ in range(-(-2 * width // below))])
        layers.append(tuple(inputs[: 2 * width].reshape(2, width).unbind(0)))
    return layers


@pytest.mark.parametrize("implementation", ["cpu", "python"])
@pytest.mark.parametrize("widths", [(10, 6), (10, 16, 8), (9, 40, 20, 10), (9, 80, 40, 20, 10)])
def test_forest_of_a_dense_stack_computes_the_stack(widths, implementation):
    layers = dense_stack(widths)
    coefficients = [torch.rand(width, 4, dtype=torch.float64) for width in widths[1:]]
    x = torch.rand(5, widths[0], dtype=torch.float64)
    y = x
    for (indices_0, indices_1), layer in zip(layers, coefficients, strict=True):
        y = logic_dense(y, indices_0, indices_1, layer, "python")
    leaves, gate_rows = forest_wiring(layers)
    torch.testing.assert_close(logic_forest(x, leaves, gate_rows, torch.cat(coefficients), 1, implementation), y)


def test_what_is_no_forest():
    assert forest_wiring([]) is None
    assert forest_wiring(dense_stack((9, 160, 80, 40, 20, 10))) is None  # five layers
    assert forest_wiring(dense_stack((9, 16, 16))) is None  # every output feeds two gates
    first, (indices_0, indices_1) = dense_stack((9, 16, 8))
    assert forest_wiring([first, (indices_0, indices_1.roll(1))]) is not None
    assert forest_wiring([first, (indices_0, indices_0)]) is None  # half of the outputs twice, half not at all


def test_gradcheck():
    x, leaves, gate_rows, coefficients, _ = example(3, features=4, trees=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, c: logic_forest(x, leaves, gate_rows, c, 1, "cpu"), (x, coefficients))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_opcheck():
    x, leaves, gate_rows, coefficients, weight = example(8, trees=12, group=3)
    torch.library.opcheck(torch.ops.convlogic.logic_forest.default, (x, leaves, gate_rows, coefficients, 3))
    tensors = [tensor.detach() for tensor in (weight, x, leaves, gate_rows, coefficients)]
    for needs_grad_x in (True, False):
        torch.library.opcheck(torch.ops.convlogic.logic_forest_backward.default, (*tensors, needs_grad_x, 3))


@pytest.mark.parametrize(
    "wiring, value, message",
    [
        ("leaves", 23, r"leaves\[2, 3\] = 23 is outside the 23 features"),
        ("leaves", -1, r"leaves\[2, 3\] = -1"),
        ("gate_rows", 77, r"gate_rows\[2, 3\] = 77 is outside the 77 rows"),
        ("gate_rows", "twice", r"gate_rows\[2, 3\] names row \d+ twice"),
    ],
)
@pytest.mark.parametrize("implementation", ["cpu", "python"])
def test_wrong_wiring_is_refused(wiring, value, message, implementation):
    x, leaves, gate_rows, coefficients, _ = example(4)
    tensor = {"leaves": leaves, "gate_rows": gate_rows}[wiring]
    tensor[2, 3] = tensor[0, 0] if value == "twice" else value
    with pytest.raises(ValueError, match=message):
        logic_forest(x, leaves, gate_rows, coefficients, 1, implementation)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gate_rows": torch.zeros(11, 6, dtype=torch.int64)}, "1, 3, 7 or 15"),
        ({"gate_rows": torch.zeros(10, 7, dtype=torch.int64)}, "one entry a row"),
        ({"leaves": torch.zeros(11, 4, dtype=torch.int64)}, r"leaves of shape \(11, 8\)"),
        ({"leaves": torch.zeros(11, 8, dtype=torch.int32)}, "int64"),
        ({"group": 2}, "groups of 2"),
    ],
)
def test_errors(change, message):
    x, leaves, gate_rows, coefficients, _ = example(4)
    arguments = {"x": x, "leaves": leaves, "gate_rows": gate_rows, "coefficients": coefficients}
    with pytest.raises(ValueError, match=message):
        logic_forest(**(arguments | change))
