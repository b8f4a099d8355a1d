"""Every CUDA op on a real device: against the reference in float64, and the same bits twice.

The examples and tolerances are those of the emulated tests.
"""

import pytest
import torch

from convlogic_core.ops import cuda, logic_dense, logic_tree
from convlogic_core.parametrization import soft_coefficients
from tests.cuda import test_logic_dense as dense
from tests.cuda import test_logic_tree as tree
from tests.cuda import test_packed as packed

pytestmark = pytest.mark.gpu

BATCHES = [1, 3, 32, 33, 130, 1000, 4096]


def gradients(y, x, coefficients, weight):
    return [y, *torch.autograd.grad(y, (x, coefficients), weight)]


def on_gpu(x, coefficients):
    return x.cuda().requires_grad_(), coefficients.cuda().requires_grad_()


def run_dense(x, indices_0, indices_1, coefficients, weight):
    x, coefficients = on_gpu(x, coefficients)
    y = logic_dense(x, indices_0.cuda(), indices_1.cuda(), coefficients, "cuda")
    return gradients(y, x, coefficients, weight.cuda())


def run_tree(x, selection, coefficients, geometry):
    x, coefficients = on_gpu(x, coefficients)
    y = logic_tree(x, selection.cuda(), coefficients, **geometry, implementation="cuda")
    return gradients(y, x, coefficients, tree.weight_of(y.detach().cpu()).cuda())


def assert_close(ours, expected, dtype):
    for index, (result, exact) in enumerate(zip(ours, expected, strict=True)):
        tolerance = dense.TOLERANCE[torch.float32 if index == 2 else dtype] * max(1.0, exact.abs().max().item())
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
    args = tree.example(batch, channels=5, image=(13, 14), num_kernels=19, depth=depth, pool=pool, dtype=dtype)
    results = [run_tree(*args) for _ in range(2)]
    assert_close(results[0], tree.reference(*args), dtype)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("batch", BATCHES)
def test_tree_over_batches(batch):
    args = tree.example(batch, depth=2, stride=(2, 1), padding=(2, 0), dtype=torch.float32)
    assert_close(run_tree(*args), tree.reference(*args), torch.float32)


def test_batch_beyond_one_grid():
    batch = 65535 * 32 + 37
    x = torch.rand(1, batch, device="cuda").T.requires_grad_()
    indices = torch.zeros(1, dtype=torch.int64, device="cuda")
    coefficients = torch.tensor([[0.5, -1.0, 0.25, 2.0]], device="cuda")
    results = []
    for implementation in ("cuda", "python"):
        y = logic_dense(x, indices, indices.clone(), coefficients, implementation)
        results.append([y, *torch.autograd.grad(y.sum(), x)])
    torch.testing.assert_close(*results)


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
