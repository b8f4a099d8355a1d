"""Every CUDA op on a real device: against the reference in float64, and the same bits twice.

The examples and tolerances are those of the emulated tests.
"""

import pytest
import torch

from convlogic_core.gates import GATE_TABLE
from convlogic_core.ops import cuda, logic_dense, logic_tree, pack_bits
from convlogic_core.ops.logic_tree import reference_logic_tree
from convlogic_core.parametrization import soft_coefficients
from tests.cuda import test_logic_dense as dense
from tests.cuda import test_logic_tree as tree
from tests.cuda import test_packed as packed

pytestmark = pytest.mark.gpu

BATCHES = [1, 3, 32, 33, 130, 1000, 4096]
BEYOND_ONE_GRID = 65535 * 32 + 37
CLEAR_GAP = 5e-4  # between the two largest values of a pool block: below it, rounding may choose the other


def gradients(y, x, coefficients, weight):
    inputs = (x, coefficients) if x.requires_grad else (coefficients,)
    return [y, *torch.autograd.grad(y, inputs, weight)]


def run_dense(x, indices_0, indices_1, coefficients, weight, needs_grad_x=True):
    x, coefficients = x.cuda().requires_grad_(needs_grad_x), coefficients.cuda().requires_grad_()
    y = logic_dense(x, indices_0.cuda(), indices_1.cuda(), coefficients, "cuda")
    return gradients(y, x, coefficients, weight.cuda())


def run_tree(x, selection, coefficients, geometry, weight, needs_grad_x=True):
    x, coefficients = x.cuda().requires_grad_(needs_grad_x), coefficients.cuda().requires_grad_()
    y = logic_tree(x, selection.cuda(), coefficients, **geometry, implementation="cuda")
    return gradients(y, x, coefficients, weight.cuda())


def tree_example(batch, **sizes):
    """A call with the weight of every output, which is zero where rounding may choose another winner of the pool."""
    x, selection, coefficients, geometry = tree.example(batch, **sizes)
    pool = geometry["pool"]
    values = reference_logic_tree(x.double(), selection, coefficients.double(), **geometry | {"pool": 1})
    blocks = values.unfold(2, pool, pool).unfold(3, pool, pool).flatten(4)
    weight = tree.weight_of(blocks[..., 0].to(x.dtype))
    if pool > 1:
        largest, second = blocks.topk(2).values.unbind(-1)
        clear = largest - second >= CLEAR_GAP
        assert clear.double().mean() > 0.5
        weight *= clear
    return x, selection, coefficients, geometry, weight


def assert_close(ours, expected, dtype, of_sums=dense.TOLERANCE[torch.float32]):
    """y, the gradient of x and, with the tolerance of_sums, that of the coefficients, which is float32."""
    for index, (result, exact) in enumerate(zip(ours, expected, strict=True)):
        tolerance = (of_sums if index == 2 else dense.TOLERANCE[dtype]) * max(1.0, exact.abs().max().item())
        torch.testing.assert_close(result.double().cpu(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES)
def test_dense(batch, dtype):
    args = dense.example(batch, features=200, gates=333, dtype=dtype)
    results = [run_dense(*args) for _ in range(2)]
    assert_close(results[0], dense.reference(*args), dtype)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [7, 128])
def test_tree(batch, depth, pool, dtype):
    args = tree_example(batch, channels=5, image=(13, 14), num_kernels=19, depth=depth, pool=pool, dtype=dtype)
    results = [run_tree(*args) for _ in range(2)]
    assert_close(results[0], tree.reference(*args), dtype)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("batch", BATCHES)
def test_tree_over_batches(batch):
    args = tree_example(batch, depth=2, stride=(2, 1), padding=(2, 0), dtype=torch.float32)
    assert_close(run_tree(*args), tree.reference(*args), torch.float32)


@pytest.mark.parametrize("batch", [64, 72, 130])
def test_tree_backward_in_rounds(batch, monkeypatch):
    args = tree_example(batch)
    monkeypatch.setattr(cuda, "LEAF_GRADIENT_BYTES", 1)  # rounds of 32 images
    assert_close(run_tree(*args), tree.reference(*args), torch.float32)


@pytest.mark.parametrize("run, args", [(run_dense, dense.example(1000)), (run_tree, tree_example(130))])
def test_first_layer_has_no_input_gradient(run, args):
    y, _, grad_coefficients = run(*args)
    ours = run(*args, needs_grad_x=False)
    assert torch.equal(ours[0], y) and torch.equal(ours[1], grad_coefficients)


def test_dense_beyond_one_grid():
    args = dense.example(BEYOND_ONE_GRID, features=2, gates=1)
    x, indices_0, indices_1, coefficients, weight = args
    args = x, indices_0, indices_1, coefficients, weight.abs()  # sums that do not cancel
    assert_close(run_dense(*args), dense.reference(*args), torch.float32, of_sums=1e-4)


def test_tree_beyond_one_grid():
    tiny = {"channels": 2, "image": (2, 2), "kernel": (1, 1), "padding": (0, 0), "num_kernels": 1, "depth": 1}
    x, selection, coefficients, geometry, weight = tree_example(BEYOND_ONE_GRID, **tiny)
    args = x, selection, coefficients, geometry, weight.abs()
    assert_close(run_tree(*args), tree.reference(*args), torch.float32, of_sums=1e-4)


@pytest.mark.parametrize("name, num_logits", [("softmax", 16), ("iwp", 4)])
def test_coefficients(name, num_logits):
    logits = torch.randn(1000, num_logits, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1000, 4, dtype=torch.float64)
    expected = soft_coefficients(logits, name)
    (expected_grad,) = torch.autograd.grad(expected, logits, weight)
    logits, weight = logits.detach().float().cuda(), weight.float().cuda()
    ours = cuda.cuda_coefficients_forward(logits), cuda.cuda_coefficients_backward(weight, logits)
    for result, exact in zip(ours, (expected, expected_grad), strict=True):
        torch.testing.assert_close(result.double().cpu(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_images", [1, 130, 5000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_packing_waits_for_nothing(num_images, dtype):
    bits = packed.random_bits(num_images, 3, 7, 8).to(torch.uint8)
    x = bits.to(dtype).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        words = pack_bits(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(words.cpu(), packed.pack(bits))


@pytest.mark.parametrize("num_images", [1, 64, 1000, 10000])
def test_packed(num_images):
    bits = packed.random_bits(num_images, 40)
    words, generator = packed.pack(bits).cuda(), torch.Generator().manual_seed(0)
    indices = torch.randint(0, 40, (2, 60), generator=generator).unbind(0)
    gates = torch.arange(60) % 16
    out = cuda.cuda_packed_dense(words, *(i.cuda() for i in indices), gates.cuda())
    a, b = bits[:, indices[0]], bits[:, indices[1]]
    expected = gates >> (3 - 2 * a - b) & 1
    assert torch.equal(packed.unpack(out.cpu(), num_images), expected)
    sums = cuda.cuda_packed_class_sums(out, 10, num_images)
    assert torch.equal(sums.cpu(), expected.unflatten(1, (10, 6)).sum(2).int())


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("num_images", [1, 130, 1000])
def test_packed_tree(num_images, depth, pool):
    _, selection, _, geometry = tree.example(1, depth=depth, pool=pool, stride=(2, 1), padding=(2, 0))
    bits = packed.random_bits(num_images, 3, 7, 8)
    gates = torch.randint(0, 16, (4, 2**depth - 1), generator=torch.Generator().manual_seed(0))
    expected = reference_logic_tree(bits.float(), selection, GATE_TABLE[gates], **geometry)
    words = cuda.cuda_packed_tree(packed.pack(bits).cuda(), selection.cuda(), gates.cuda(), **geometry)
    assert torch.equal(packed.unpack(words.cpu(), num_images), expected.long())


def test_current_stream_is_used():
    args = dense.example(1000)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results = run_dense(*args)
    stream.synchronize()
    assert_close(results, dense.reference(*args), torch.float32)


def test_out_of_memory_leaves_the_process_alive():
    _, indices_0, indices_1, coefficients, _ = dense.example(4)
    huge = torch.zeros(1, device="cuda").expand(2**31 - 1000, 21)  # 180 GB once it lies batch-innermost
    with pytest.raises(torch.OutOfMemoryError):
        logic_dense(huge, indices_0.cuda(), indices_1.cuda(), coefficients.cuda(), "cuda")
    assert run_dense(*dense.example(4))[0].shape == (4, 35)


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    x, indices_0, indices_1, coefficients, _ = (tensor.to("cuda:1") for tensor in dense.example(64))
    y = logic_dense(x, indices_0, indices_1, coefficients, "cuda")
    assert y.device == torch.device("cuda", 1)
    torch.testing.assert_close(y, logic_dense(x, indices_0, indices_1, coefficients, "python"))
    assert torch.cuda.current_device() == 0
