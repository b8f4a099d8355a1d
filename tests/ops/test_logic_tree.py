"""logic_tree: the native kernel against the reference, and what torch asks of a custom op.

Shape letters: N batch, C channels, H W image, K kernels, L leaves.
"""

import pytest
import torch

from convlogic_core.ops import logic_tree

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def example(
    batch=5,
    channels=3,
    image=(7, 8),
    num_kernels=6,
    depth=3,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    pool=2,
    dtype=torch.float32,
):
    """x, selection, coefficients (both tensors need gradients) and the geometry of a call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, channels, *image, dtype=dtype, generator=generator).requires_grad_()
    leaves = (num_kernels, 2**depth)
    channel, row, column = (
        torch.randint(0, limit, leaves, generator=generator, dtype=torch.int32) for limit in (channels, *kernel)
    )
    coefficients = torch.randn(num_kernels, 2**depth - 1, 4, dtype=dtype, generator=generator).requires_grad_()
    geometry = {"kernel": kernel, "stride": stride, "padding": padding, "pool": pool}
    return x, channel << 16 | row << 8 | column, coefficients, geometry


def run(x, selection, coefficients, geometry, implementation, weight=None):
    """y and the gradients of x (where it needs them) and of the coefficients."""
    y = logic_tree(x, selection, coefficients, **geometry, implementation=implementation)
    if weight is None:
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    wanted = [tensor for tensor in (x, coefficients) if tensor.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, weight)]


def assert_parity(x, *rest, weight=None):
    native, reference = run(x, *rest, "cpu", weight), run(x, *rest, "python", weight)
    for ours, theirs in zip(native, reference, strict=True):
        scale = max(1.0, theirs.abs().max().item() * len(x) ** 0.5) if theirs.numel() else 1.0  # sums of many samples
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[x.dtype] * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_parity(isa, depth, pool, dtype):
    assert_parity(*example(batch=21, depth=depth, pool=pool, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 7, 16, 128, 1500])
def test_parity_over_batches(isa, batch, dtype):
    pool = 2 if dtype == torch.float64 else 1  # in float32 a large batch has maxima that differ by rounding alone
    assert_parity(*example(batch=batch, image=(5, 4), num_kernels=4, depth=2, pool=pool, dtype=dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel": (1, 1), "padding": (0, 0)},
        {"kernel": (5, 2), "padding": (0, 2)},
        {"kernel": (2, 3), "stride": (2, 1), "padding": (3, 0)},
        {"kernel": (3, 3), "stride": (2, 3), "padding": (2, 2), "pool": 1},
        {"kernel": (7, 7), "image": (8, 8), "padding": (0, 0)},
        {"kernel": (7, 7), "image": (7, 7), "padding": (0, 0), "pool": 1},
        {"image": (9, 11)},
        {"image": (1, 1), "kernel": (1, 1), "padding": (0, 0), "pool": 1, "channels": 40, "num_kernels": 70},
        {"channels": 1, "num_kernels": 1},
    ],
)
def test_parity_over_geometry(isa, sizes):
    assert_parity(*example(batch=19, **sizes))


def test_one_leaf_twice(isa):
    x, selection, coefficients, geometry = example()
    selection[:, 1::2] = selection[:, 0::2]
    assert_parity(x, selection, coefficients, geometry)


def test_unread_channel_gets_zero_gradient(isa):
    x, selection, coefficients, geometry = example()
    selection = selection & 0xFFFF | 2 << 16
    assert_parity(x, selection, coefficients, geometry)
    assert not run(x, selection, coefficients, geometry, "cpu")[1][:, :2].any()


def test_gradient_goes_to_the_first_of_equal_maxima(isa):
    x, selection, coefficients, geometry = example(batch=18, image=(10, 10))
    bits = (x > 0.5).to(x.dtype).detach().requires_grad_()
    with torch.no_grad():  # the gate `a or b` everywhere, so every value is 0 or 1 and most blocks tie
        coefficients[:] = torch.tensor([0.0, 1.0, 1.0, -1.0])
    assert_parity(bits, selection, coefficients, geometry)


def test_nan_wins_the_pool(isa):
    x, selection, coefficients, geometry = example(batch=17)
    with torch.no_grad():
        x[3, :, 2, 5] = torch.nan
        x[16, 1] = torch.nan
    y, reference = (run(x, selection, coefficients, geometry, name)[0] for name in ("cpu", "python"))
    assert torch.equal(y.isnan(), reference.isnan()) and reference.isnan().any()


def test_any_strides(isa):
    x, selection, coefficients, geometry = example(batch=18)
    values = x.detach()
    shape = logic_tree(x, selection, coefficients, **geometry).shape
    dense = torch.rand(shape)
    for layout in (
        values,
        values.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        values.contiguous(memory_format=torch.channels_last),
        torch.cat([values, values], 3)[..., :8],
        values[:1].expand_as(values),
    ):
        layout.requires_grad_()
        for weight in (dense, dense.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), torch.ones(1).expand(shape)):
            assert_parity(layout, selection, coefficients, geometry, weight=weight)


def test_saved_tensors_in_another_memory_format(isa):
    x, selection, coefficients, geometry = example(batch=18)
    expected = run(x, selection, coefficients, geometry, "cpu")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().contiguous(), lambda t: t):
        found = run(x, selection, coefficients, geometry, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_results_are_batch_innermost():
    x, selection, coefficients, geometry = example(batch=18)
    y, grad_x, _ = run(x, selection, coefficients, geometry, "cpu")
    assert y.movedim(0, -1).is_contiguous() and grad_x.movedim(0, -1).is_contiguous()


def test_first_layer_has_no_input_gradient(isa):
    x, *rest = example(batch=18)
    assert_parity(x.detach(), *rest)


def test_gradcheck():
    x, selection, coefficients, geometry = example(batch=2, image=(4, 4), num_kernels=2, dtype=torch.float64)

    def f(x, coefficients):
        return logic_tree(x, selection, coefficients, **geometry, implementation="cpu")

    assert torch.autograd.gradcheck(f, (x, coefficients))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@pytest.mark.parametrize("pool", [1, 2])
def test_opcheck(pool):
    x, selection, coefficients, geometry = example(pool=pool)
    sizes = [*geometry.values()]
    torch.library.opcheck(torch.ops.convlogic.logic_tree.default, (x, selection, coefficients, *sizes))
    x, coefficients = x.detach(), coefficients.detach()
    y, winner = torch.ops.convlogic.logic_tree.default(x, selection, coefficients, *sizes)
    for needs_grad_x in (True, False):
        arguments = (torch.ones_like(y), x, selection, coefficients, winner, *sizes, needs_grad_x)
        torch.library.opcheck(torch.ops.convlogic.logic_tree_backward.default, arguments)


def test_compiles_in_one_graph():
    x, selection, coefficients, geometry = example()

    def f(x):
        return logic_tree(2 * x, selection, coefficients, **geometry).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(f(x), x))


@pytest.mark.parametrize("batch", [33, 400])
def test_thread_count_does_not_change_a_bit(isa, batch):
    args = example(batch=batch)
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


@pytest.mark.parametrize("implementation", ["cpu", "python"])
@pytest.mark.parametrize(
    ("code", "message"), [(3 << 16, "channel 3"), (3 << 8, "row 3"), (3, "column 3"), (-1, "channel -1")]
)
def test_wiring_outside_the_window_is_refused(code, message, implementation):
    x, selection, coefficients, geometry = example()
    logic_tree(x, selection, coefficients, **geometry, implementation=implementation)
    selection[4, 5] = code
    with pytest.raises(ValueError, match=rf"logic_tree: selection\[4, 5\] names {message}, outside 0\.\.2$"):
        logic_tree(x, selection, coefficients, **geometry, implementation=implementation)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.rand(3, 7, 8)}, "input of 4 dimensions"),
        ({"x": torch.rand(5, 3, 7, 8, dtype=torch.float64)}, "one dtype on one device"),
        ({"x": torch.rand(5, 3, 2, 2), "padding": (0, 0)}, r"image of 2x2 .* too small for kernel \(3, 3\)"),
        ({"x": torch.rand(5, 3, 3, 3), "padding": (0, 0)}, r"image of 3x3 .* and pool 2"),
        ({"coefficients": torch.rand(6, 7, 16)}, r"\(kernels, gates, 4\)"),
        ({"coefficients": torch.rand(6, 6, 4)}, "depth 1 to 4"),
        ({"coefficients": torch.rand(5, 7, 4)}, r"shape \(5, 8\)"),
        ({"selection": torch.zeros(6, 8, dtype=torch.int64)}, "int32"),
        ({"pool": 3}, "pool 1 or 2"),
        ({"stride": (0, 1)}, "stride >= 1"),
        ({"padding": (0, -1)}, "padding >= 0"),
        ({"kernel": (0, 3)}, r"kernel 1\.\.256"),
        ({"implementation": "cuda"}, "tensor on cpu"),
    ],
)
def test_errors(change, message):
    x, selection, coefficients, geometry = example()
    arguments = {"x": x, "selection": selection, "coefficients": coefficients, **geometry}
    with pytest.raises(ValueError, match=message):
        logic_tree(**(arguments | change))
