"""Time of each op of a preset, forward and backward: on the CPU also how far from the machine's limits each is.

    python -m benchmarks.kernels --preset mnist_s --batch 128 --json kernels.json

Multiply-adds are counted as in `benchmarks.limits`; bytes are what an op must read and write at least once.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from convlogic_core import PRESETS, ModelSpec, build_model, num_parameters
from convlogic_core.network import native_network, plain_stack
from convlogic_core.ops import gate_coefficients, logic_dense, logic_forest, logic_tree
from convlogic_core.packed import packed_predict
from convlogic_core.plain_stack import forest_of

from .limits import measure_limits, multiply_adds
from .machine import circumstances


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="mnist_s")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    limits = measure_limits(arguments.threads) if arguments.device == "cpu" else None
    report = circumstances(arguments.threads) | {
        "preset": arguments.preset,
        "batch": arguments.batch,
        "device": arguments.device,
    }
    print(f"{report['machine']}, {arguments.threads} threads, kernels {report['native']}, device {arguments.device}")
    if limits:
        report |= {"multiply_adds_per_second": limits.multiply_adds, "bytes_per_second": limits.bytes}
        print(f"{limits.multiply_adds / 1e9:.1f} G multiply-adds/s, {limits.bytes / 1e9:.1f} GB/s copied")
    print(f"{arguments.preset}, batch {arguments.batch}; n={arguments.repeats}, median and minimum")
    results = []
    for name, work, num_bytes, call in kernels(arguments.preset, arguments.batch, torch.device(arguments.device)):
        seconds = timed(call, arguments.repeats)
        median = statistics.median(seconds)
        row: dict[str, object] = {
            "kernel": name,
            "median_us": 1e6 * median,
            "min_us": 1e6 * min(seconds),
            "n": len(seconds),
            "multiply_adds": work,
            "bytes": num_bytes,
        }
        line = f"{name:32} {1e6 * median:9.0f} us {1e6 * min(seconds):9.0f} us  "
        line += f"{1e6 * median / arguments.batch:7.2f} us an image"
        if limits:
            shares = work / median / limits.multiply_adds, num_bytes / median / limits.bytes
            row |= {"share_of_multiply_adds": shares[0], "share_of_bytes": shares[1]}
            line += f"  {shares[0]:6.1%} of multiply-adds {shares[1]:6.1%} of bandwidth"
        results.append(row)
        print(line)
    if arguments.json:
        arguments.json.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call after two warm-up calls; of a GPU's until it is done."""
    call()
    call()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def kernels(preset: str, batch: int, device: torch.device) -> Iterator[tuple[str, int, int, Callable[[], object]]]:
    """Name, multiply-adds, bytes and call of every op, on activations as they come from the layer before."""
    spec = PRESETS[preset]
    model = build_model(spec, seed=0).to(device)
    stack = plain_stack(model)
    assert stack is not None
    images = (torch.rand(batch, *spec.input_shape) > 0.8).to(torch.uint8).to(device)
    x = images.float().movedim(0, -1).contiguous().movedim(-1, 0)
    for number, block in enumerate(stack.conv, 1):
        coefficients = block.coefficients().detach().requires_grad_()
        x = x.detach().requires_grad_(number > 1)
        geometry = (block.kernel, block.stride, block.padding, block.pool)

        def forward(x: Tensor = x, block=block, c: Tensor = coefficients, geometry=geometry) -> Tensor:  # type: ignore[no-untyped-def]
            return logic_tree(x, block.selection, c, *geometry)

        y = forward()
        gates, windows = coefficients.shape[1], y.numel()
        leaf_gates = (gates + 1) // 2 if number == 1 else 0
        work = windows * block.pool**2 * 3 * gates
        yield f"conv {number} forward", work, 4 * x.numel() + 5 * y.numel(), forward
        work = windows * (3 * (gates - 1) + 3 * gates + 4 * (gates - leaf_gates))
        num_bytes = (8 if number > 1 else 4) * x.numel() + 5 * y.numel()
        yield f"conv {number} backward", work, num_bytes, backward_of(y)
        x = y
    features = x.detach().flatten(1)
    x = features.requires_grad_()
    for number, layer in enumerate(stack.dense, 1):
        coefficients = layer.coefficients().detach().requires_grad_()
        x = x.detach().requires_grad_()

        def dense(x: Tensor = x, layer=layer, c: Tensor = coefficients) -> Tensor:  # type: ignore[no-untyped-def]
            return logic_dense(x, layer.indices_0, layer.indices_1, c)

        y = dense()
        yield f"dense {number} forward", 3 * y.numel(), 4 * (x.numel() + y.numel()), dense
        yield f"dense {number} backward", 7 * y.numel(), 4 * (2 * x.numel() + y.numel()), backward_of(y)
        x = y
    wiring = forest_of(stack.dense) if device.type == "cpu" else None  # an op of the CPU alone
    if wiring:
        coefficients = torch.cat([layer.coefficients() for layer in stack.dense]).detach().requires_grad_()

        def forest() -> Tensor:
            return logic_forest(features, *wiring, coefficients, len(wiring[0]) // spec.num_classes)

        y = forest()
        gates = len(coefficients) * batch
        yield "forest and class sums forward", 3 * gates, 4 * (features.numel() + y.numel()), forest
        work = 10 * gates - 3 * len(wiring[0]) * batch
        yield "forest and class sums backward", work, 4 * (2 * features.numel() + y.numel()), backward_of(y)
    logits = torch.cat([layer.weights.detach().flatten(0, -2) for layer in (*stack.conv, *stack.dense)])
    logits.requires_grad_()
    coefficients = gate_coefficients(logits)
    size = 4 * (logits.numel() + coefficients.numel())
    yield "coefficients of logits forward", 0, size, lambda: gate_coefficients(logits)
    yield "coefficients of logits backward", 0, size + 4 * logits.numel(), backward_of(coefficients)
    yield from whole_network(spec, model, images)


def whole_network(
    spec: ModelSpec, model: torch.nn.Module, images: Tensor
) -> Iterator[tuple[str, int, int, Callable[[], object]]]:
    """What the training loop calls instead of the ops above."""
    network = native_network(model, images.shape[1:])
    if network is None:
        yield "packed discrete evaluation", 0, images.numel(), lambda: packed_predict(model.eval(), images)
        return
    labels, rows = torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    network.compute_coefficients()
    size = num_parameters(spec)
    num_gates = size // 16
    num_bytes = images.numel() + 16 * 2 * num_gates
    yield (
        "network forward and backward",
        multiply_adds(spec) * len(images),
        num_bytes,
        lambda: network.gradients(images, labels, rows),
    )
    yield "network AdamW, new coefficients", 0, 24 * size + 32 * num_gates, lambda: network.step(optimizer)
    model.eval()
    yield "packed discrete evaluation", 0, images.numel(), lambda: packed_predict(model, images)


def backward_of(y: Tensor) -> Callable[[], object]:
    """Backward from y alone, to the tensors that it was computed from."""
    grad_y = torch.randn(y.shape, device=y.device)
    grad_y = grad_y.movedim(0, -1).contiguous().movedim(-1, 0) if y.ndim > 1 else grad_y
    leaves = [leaf for leaf in leaves_of(y) if leaf.requires_grad]
    return lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True)


def leaves_of(y: Tensor) -> list[Tensor]:
    """The tensors at the end of y's graph."""
    assert y.grad_fn is not None
    return [node.variable for node, _ in y.grad_fn.next_functions if node is not None and hasattr(node, "variable")]


if __name__ == "__main__":
    main()
