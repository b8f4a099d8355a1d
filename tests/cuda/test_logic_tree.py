"""logic_tree on CUDA, emulated: against the reference in float64.

Shape letters: N batch, C channels, H W image, K kernels, L leaves.
"""

import pytest
import torch

from convlogic_core.ops import cuda, logic_tree
from convlogic_core.ops.logic_tree import reference_logic_tree

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the largest value
ORDERS = (0, 1, 17)  # ascending, descending, shuffled threads and blocks


def example(
    batch=5,
    channels=3,
    image=(7, 8),
    num_kernels=4,
    depth=3,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    pool=2,
    dtype=torch.float32,
):
    """x (batch-innermost), selection, coefficients and the geometry of a call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(channels, *image, batch, generator=generator).to(dtype).movedim(-1, 0)
    channel, row, column = (
        torch.randint(0, limit, (num_kernels, 2**depth), generator=generator, dtype=torch.int32)
        for limit in (channels, *kernel)
    )
    coefficients = torch.randn(num_kernels, 2**depth - 1, 4, generator=generator)
    geometry = {"kernel": kernel, "stride": stride, "padding": padding, "pool": pool}
    return x, channel << 16 | row << 8 | column, coefficients, geometry


def forward(x, selection, coefficients, geometry):
    """y and the winner of every pool block."""
    size = (
        ((x.shape[2 + axis] + 2 * geometry["padding"][axis] - geometry["kernel"][axis]) // geometry["stride"][axis] + 1)
        // geometry["pool"]
        for axis in (0, 1)
    )
    y = torch.empty(len(selection), *size, len(x), dtype=x.dtype).movedim(-1, 0)
    winner = torch.empty_like(y, dtype=torch.uint8)
    cuda.tree_forward(x, selection, coefficients, y, winner, **geometry)
    return y, winner


def weight_of(y):
    return torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)


def run(x, selection, coefficients, geometry):
    """y and the gradients of x and of the coefficients."""
    y, winner = forward(x, selection, coefficients, geometry)
    gradients = cuda.tree_backward(weight_of(y), x, selection, coefficients, winner, **geometry, needs_grad_x=True)
    return [y, *gradients]


def reference(x, selection, coefficients, geometry, weight=None):
    y_dtype, x, coefficients = x.dtype, x.double().requires_grad_(), coefficients.double().requires_grad_()
    y = reference_logic_tree(x, selection, coefficients, **geometry)
    weight = weight_of(y.detach().to(y_dtype)) if weight is None else weight
    return [y, *torch.autograd.grad(y, (x, coefficients), weight.double())]


def assert_parity(x, *rest):
    ours = run(x, *rest)
    assert [tensor.dtype for tensor in ours] == [x.dtype, x.dtype, torch.float32]
    for index, (result, expected) in enumerate(zip(ours, reference(x, *rest), strict=True)):
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        tolerance = TOLERANCE[torch.float32 if index == 2 else x.dtype] * scale
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_parity(emulated, depth, pool, dtype):
    assert_parity(*example(batch=20, depth=depth, pool=pool, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 1, 3, 31, 32, 33, 130, 1000])
def test_parity_over_batches(emulated, batch, dtype):
    assert_parity(*example(batch=batch, image=(5, 4), channels=2, num_kernels=2, depth=2, dtype=dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel": (1, 1), "padding": (0, 0)},
        {"kernel": (5, 2), "padding": (0, 2)},
        {"kernel": (2, 3), "stride": (2, 1), "padding": (3, 0)},
        {"kernel": (3, 3), "stride": (2, 3), "padding": (2, 2), "pool": 1},
        {"kernel": (7, 7), "image": (8, 8), "padding": (0, 0)},
        {"kernel": (7, 7), "image": (7, 7), "padding": (0, 0), "pool": 1, "stride": (1000, 10**12)},
        {"image": (9, 11)},
        {"image": (1, 1), "kernel": (1, 1), "padding": (0, 0), "pool": 1, "channels": 20, "num_kernels": 33},
        {"channels": 1, "num_kernels": 1},
    ],
)
@pytest.mark.parametrize("batch", [8, 19])
def test_parity_over_geometry(emulated, sizes, batch):
    assert_parity(*example(batch=batch, **sizes))


@pytest.mark.parametrize("batch", [64, 72, 130])
def test_backward_in_rounds(emulated, batch, monkeypatch):
    args = example(batch=batch, image=(6, 6))
    monkeypatch.setattr(cuda, "LEAF_GRADIENT_BYTES", 1)  # rounds of 32 images
    assert_parity(*args)


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("batch", [33, 68])
def test_any_order_of_threads_and_blocks_gives_the_same_bits(emulated, batch, depth):
    args = example(batch=batch, depth=depth, image=(6, 6))
    results = []
    for order in ORDERS:
        emulated(order)
        results.append(run(*args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unaligned_memory_gives_the_same_bits(emulated, dtype):
    x, *rest = example(batch=36, dtype=dtype)
    memory = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(x.movedim(0, -1).shape)
    shifted = memory.copy_(x.movedim(0, -1)).movedim(-1, 0)
    assert all(torch.equal(a, b) for a, b in zip(run(x, *rest), run(shifted, *rest), strict=True))


def test_one_leaf_twice_and_an_unread_channel(emulated):
    x, selection, coefficients, geometry = example()
    selection[:, 1::2] = selection[:, 0::2]
    selection = selection & 0xFFFF | 2 << 16
    _, grad_x, _ = assert_parity(x, selection, coefficients, geometry)
    assert not grad_x[:, :2].any()


def test_rows_that_the_pool_leaves_out_get_zero_gradient(emulated):
    _, grad_x, _ = assert_parity(*example(batch=8, image=(7, 5), kernel=(1, 1), padding=(0, 0)))
    assert not grad_x[:, :, 6].any() and not grad_x[:, :, :, 4].any()
    assert grad_x.any()


def test_gradient_goes_to_the_first_of_equal_maxima(emulated):
    x, selection, coefficients, geometry = example(batch=18, image=(10, 10))
    coefficients[:] = torch.tensor([0.0, 1.0, 1.0, -1.0])  # the gate `a or b`: values are 0 or 1, most blocks tie
    assert_parity((x > 0.5).float(), selection, coefficients, geometry)


def test_nan_wins_the_pool(emulated):
    x, *rest = example(batch=17)
    x[3, :, 2, 5] = torch.nan
    x[16, 1] = torch.nan
    y, expected = forward(x, *rest)[0], reference(x, *rest)[0]
    assert torch.equal(y.isnan(), expected.isnan()) and expected.isnan().any()


def test_first_layer_has_no_input_gradient(emulated):
    x, selection, coefficients, geometry = args = example(batch=40)
    y, winner = forward(*args)
    grad_x, grad_coefficients = cuda.tree_backward(
        weight_of(y), x, selection, coefficients, winner, **geometry, needs_grad_x=False
    )
    assert grad_x.shape == (0,)
    assert torch.equal(grad_coefficients, run(*args)[2])


@pytest.mark.parametrize(
    "code, message",
    [
        (3 << 16, r"selection\[2, 5\] names channel 3, outside 0\.\.2"),
        (3 << 8, r"names row 3, outside 0\.\.2"),
        (3, r"names column 3, outside 0\.\.2"),
        (-1, "names channel -1"),
    ],
)
def test_wiring_outside_the_input_is_refused(emulated, code, message):
    x, selection, coefficients, geometry = example()
    selection[2, 5] = code
    with pytest.raises(ValueError, match=message):
        run(x, selection, coefficients, geometry)


def test_sizes_beyond_an_index_are_refused_before_memory_is_taken(emulated):
    x, selection, coefficients, geometry = example(batch=1, image=(4, 4))
    with pytest.raises(ValueError, match="at most 2147483584 batch"):
        run_geometry = geometry | {"pool": 1}
        y = torch.empty(1, 4, 4, 4).expand(2**31, 4, 4, 4)
        cuda.tree_forward(x.expand(2**31, 3, 4, 4), selection, coefficients, y, y, **run_geometry)


def test_reference_takes_bfloat16_with_float32_coefficients():
    x, selection, coefficients, geometry = example(dtype=torch.bfloat16)
    y = logic_tree(x, selection, coefficients, **geometry)
    exact = logic_tree(x.float(), selection, coefficients, **geometry, implementation="python")
    assert torch.equal(y, exact.bfloat16())
