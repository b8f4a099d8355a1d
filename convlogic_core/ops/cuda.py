"""What calls the CUDA kernels: tensors in, batch-innermost tensors out, sizes checked.

Every function runs on torch's current stream of the tensors' device, waits for nothing and, once the wiring is prepared
(see `fan_out`), can be captured in a CUDA graph. Sums are float32; results are the same bits every time.
Shape letters: B/N batch, F features, O gates, C channels, H W image, K kernels, L leaves, G gates a tree, P logits a
gate, S words of 64 images.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from .backend import batch_innermost, batch_innermost_empty, call_cuda, cuda
from .fan_out import dense_fan_out, tree_fan_out
from .output_size import tree_output_size

MAX_INDEX: Final = 2**31 - 64  # rows are 32-bit numbers, rounded up to the next block
LEAF_GRADIENT_BYTES: Final = 256 << 20  # workspace of logic_tree's backward; larger batches take several rounds
CHUNK_IMAGES: Final = 32  # a round takes a multiple of these


def dense_forward(x: Tensor, indices_0: Tensor, indices_1: Tensor, coefficients: Tensor) -> Tensor:
    """x (B, F), indices (O,) int64, coefficients (O, 4) float32 -> (B, O)."""
    _check_limits("logic_dense", batch=x.shape[0], features=x.shape[1], gate_inputs=2 * len(coefficients))
    wiring = dense_fan_out(indices_0, indices_1, x.shape[1]).wiring
    x, coefficients = batch_innermost(x), aligned(coefficients)
    y = batch_innermost_empty(x, len(coefficients))
    call_cuda(
        "logic_dense_forward",
        x.device,
        x=x.data_ptr(),
        wiring=wiring.data_ptr(),
        coefficients=coefficients.data_ptr(),
        y=y.data_ptr(),
        **_dense_sizes(x, coefficients),
    )
    return y


def dense_backward(
    grad_y: Tensor, x: Tensor, indices_0: Tensor, indices_1: Tensor, coefficients: Tensor, needs_grad_x: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x, (0,) where nobody needs it, and of the coefficients."""
    _, start, edges = dense_fan_out(indices_0, indices_1, x.shape[1])
    grad_y, x, coefficients = batch_innermost(grad_y), batch_innermost(x), aligned(coefficients)
    grad_x = batch_innermost_empty(x, x.shape[1]) if needs_grad_x else x.new_empty(0)
    grad_coefficients = torch.empty_like(coefficients)
    num_chunks = cuda().num_dense_chunks(x.shape[0], x.dtype == torch.bfloat16)
    partials = coefficients.new_empty(num_chunks, *coefficients.shape)
    call_cuda(
        "logic_dense_backward",
        x.device,
        grad_y=grad_y.data_ptr(),
        x=x.data_ptr(),
        coefficients=coefficients.data_ptr(),
        start=start.data_ptr(),
        edges=edges.data_ptr(),
        grad_x=grad_x.data_ptr() if needs_grad_x else 0,
        partials=partials.data_ptr(),
        grad_coefficients=grad_coefficients.data_ptr(),
        **_dense_sizes(x, coefficients),
    )
    return grad_x, grad_coefficients


def _dense_sizes(x: Tensor, coefficients: Tensor) -> dict[str, int]:
    return {
        "batch": x.shape[0],
        "features": x.shape[1],
        "gates": len(coefficients),
        "bfloat16": x.dtype == torch.bfloat16,
    }


def tree_forward(
    x: Tensor,
    selection: Tensor,
    coefficients: Tensor,
    y: Tensor,
    winner: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> None:
    """Writes y (N, K, H', W') and, where there is a pool, winner (the same shape, uint8), both batch-innermost."""
    shape = _tree_shape(x, coefficients, y.shape, stride, padding, pool)
    wiring = tree_fan_out(selection, x.shape[1], (kernel[0], kernel[1])).wiring
    x, coefficients = batch_innermost(x), aligned(coefficients)
    call_cuda(
        "logic_tree_forward",
        x.device,
        x=x.data_ptr(),
        selection=wiring.data_ptr(),
        coefficients=coefficients.data_ptr(),
        y=y.data_ptr(),
        winner=winner.data_ptr() if pool > 1 else 0,
        batch=x.shape[0],
        bfloat16=x.dtype == torch.bfloat16,
        shape=shape,
    )


def tree_backward(
    grad_y: Tensor,
    x: Tensor,
    selection: Tensor,
    coefficients: Tensor,
    winner: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
    needs_grad_x: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x, (0,) where nobody needs it, and of the coefficients."""
    shape = _tree_shape(x, coefficients, grad_y.shape, stride, padding, pool)
    wiring, start, edges = tree_fan_out(selection, x.shape[1], (kernel[0], kernel[1]))
    # hooks of saved tensors may give them back in another memory format
    grad_y, x, winner = batch_innermost(grad_y), batch_innermost(x), batch_innermost(winner)
    coefficients = aligned(coefficients)
    grad_x = batch_innermost_empty(x, *x.shape[1:]) if needs_grad_x else x.new_empty(0)
    grad_coefficients = torch.empty_like(coefficients)
    num_leaves, cells = wiring.numel(), grad_y.shape[2] * grad_y.shape[3]
    chunk = x.shape[0]
    if needs_grad_x:
        fitting = LEAF_GRADIENT_BYTES // max(1, num_leaves * cells * x.element_size())
        chunk = min(chunk, max(1, fitting // CHUNK_IMAGES) * CHUNK_IMAGES)
    grad_leaves = x.new_empty(num_leaves, cells, chunk) if needs_grad_x else x.new_empty(0)
    num_chunks = -(-x.shape[0] // max(1, chunk))
    partials = coefficients.new_empty(num_chunks * cuda().num_tree_partials(shape, chunk), *coefficients.shape)
    call_cuda(
        "logic_tree_backward",
        x.device,
        grad_y=grad_y.data_ptr(),
        x=x.data_ptr(),
        selection=wiring.data_ptr(),
        coefficients=coefficients.data_ptr(),
        winner=winner.data_ptr() if pool > 1 else 0,
        start=start.data_ptr(),
        edges=edges.data_ptr(),
        grad_x=grad_x.data_ptr() if needs_grad_x else 0,
        grad_leaves=grad_leaves.data_ptr(),
        partials=partials.data_ptr(),
        grad_coefficients=grad_coefficients.data_ptr(),
        chunk=chunk,
        batch=x.shape[0],
        bfloat16=x.dtype == torch.bfloat16,
        shape=shape,
    )
    return grad_x, grad_coefficients


def _tree_shape(
    x: Tensor, gates: Tensor, out: Sequence[int], stride: Sequence[int], padding: Sequence[int], pool: int
) -> object:
    """The kernels' TreeShape; gates is (K, G, ...), out the shape of the pooled output."""
    batch, channels, height, width = x.shape
    _check_limits(
        "logic_tree",
        batch=batch,
        image_values=channels * (height + 1) * (width + 1),
        leaves=gates.shape[0] * (gates.shape[1] + 1),
        outputs=gates.shape[0] * out[2] * out[3],
        padded_extent=2 * max(height + 2 * padding[0], width + 2 * padding[1]),
    )
    return cuda().TreeShape(
        channels=channels,
        image=(height, width),
        kernels=gates.shape[0],
        depth=gates.shape[1].bit_length(),
        pool=pool,
        # a stride beyond the image makes one window, as a stride of the image does
        stride=(min(stride[0], height + 2 * padding[0]), min(stride[1], width + 2 * padding[1])),
        padding=(padding[0], padding[1]),
        out=(out[2], out[3]),
    )


def cuda_coefficients_forward(logits: Tensor) -> Tensor:
    """Coefficients (..., 4) of logits (..., P) float32: P = 16, a softmax over the gates, or P = 4, sigmoids."""
    logits = aligned(logits)
    coefficients = logits.new_empty(*logits.shape[:-1], 4)
    call_cuda(
        "coefficients_forward",
        logits.device,
        logits=logits.data_ptr(),
        coefficients=coefficients.data_ptr(),
        gates=coefficients.numel() // 4,
        num_logits=_num_logits(logits),
    )
    return coefficients


def cuda_coefficients_backward(grad_coefficients: Tensor, logits: Tensor) -> Tensor:
    """The gradient of the logits (..., P), given that of the coefficients (..., 4)."""
    grad_coefficients, logits = aligned(grad_coefficients), aligned(logits)
    grad_logits = torch.empty_like(logits)
    call_cuda(
        "coefficients_backward",
        logits.device,
        grad_coefficients=grad_coefficients.data_ptr(),
        logits=logits.data_ptr(),
        grad_logits=grad_logits.data_ptr(),
        gates=grad_coefficients.numel() // 4,
        num_logits=_num_logits(logits),
    )
    return grad_logits


def _num_logits(logits: Tensor) -> int:
    if logits.dtype != torch.float32 or logits.shape[-1] not in (4, 16):
        raise ValueError(
            f"gate_coefficients on CUDA needs (..., 4 or 16) float32, got {tuple(logits.shape)} {logits.dtype}"
        )
    _check_limits("gate_coefficients", logits=logits.numel())
    return logits.shape[-1]


def cuda_pack_bits(x: Tensor) -> Tensor:
    """x (N, ...) uint8 -> words (..., S) int64; what is not one is a zero."""
    x, size = x.contiguous(), -(-len(x) // 64)
    words = x.new_empty((*x.shape[1:], size), dtype=torch.int64)
    _check_limits("pack_bits", features=x[:1].numel())
    call_cuda(
        "pack_bits",
        x.device,
        x=x.data_ptr(),
        words=words.data_ptr(),
        images=len(x),
        features=x[:1].numel(),
        num_words=2 * size,  # the kernels' words are 32 images
    )
    return words


def cuda_packed_dense(words: Tensor, indices_0: Tensor, indices_1: Tensor, gates: Tensor) -> Tensor:
    """words (F, S) int64, gates (O,) int64 numbers 0..15 -> (O, S); image n is bit n % 64 of word n // 64."""
    _check_limits("packed_dense", words=2 * words.shape[1], features=words.shape[0], gate_inputs=2 * len(gates))
    wiring = dense_fan_out(indices_0, indices_1, words.shape[0]).wiring
    words, gates = words.contiguous(), gates.contiguous()
    out = words.new_empty(len(gates), words.shape[1])
    call_cuda(
        "packed_dense",
        words.device,
        words=words.data_ptr(),
        wiring=wiring.data_ptr(),
        gates=gates.data_ptr(),
        out=out.data_ptr(),
        num_words=2 * words.shape[1],  # the kernels' words are 32 images
        num_gates=len(gates),
    )
    return out


def cuda_packed_tree(
    words: Tensor,
    selection: Tensor,
    gates: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: int,
) -> Tensor:
    """words (C, H, W, S) int64, selection (K, L) int32, gates (K, G) int64 -> (K, H', W', S); padding is zero bits."""
    words, gates = words.contiguous(), gates.contiguous()
    size = tree_output_size(words.shape[1:3], kernel, stride, padding, pool)
    out = words.new_empty(len(gates), *size, words.shape[3])
    shape = _tree_shape(words.movedim(-1, 0), gates, (0, len(gates), *size), stride, padding, pool)
    wiring = tree_fan_out(selection, words.shape[0], (kernel[0], kernel[1])).wiring
    call_cuda(
        "packed_tree",
        words.device,
        words=words.data_ptr(),
        selection=wiring.data_ptr(),
        gates=gates.data_ptr(),
        out=out.data_ptr(),
        num_words=2 * words.shape[3],
        shape=shape,
    )
    return out


def cuda_packed_class_sums(words: Tensor, num_classes: int, num_images: int) -> Tensor:
    """words (F, S) int64 -> (N, num_classes) int32: the set bits of each class's F / num_classes features."""
    if not 1 <= num_classes <= 65535 or len(words) % num_classes:
        raise ValueError(f"packed_class_sums on CUDA takes 1 to 65535 classes that divide the {len(words)} features")
    words = words.contiguous()
    sums = torch.empty(num_images, num_classes, dtype=torch.int32, device=words.device)
    call_cuda(
        "packed_class_sums",
        words.device,
        words=words.data_ptr(),
        sums=sums.data_ptr(),
        num_words=2 * words.shape[1],
        features=len(words),
        classes=num_classes,
        images=num_images,
    )
    return sums


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where it is dense and at a multiple of 16 bytes, which kernels load at once; else a copy."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _check_limits(op: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size > MAX_INDEX:
            raise ValueError(
                f"{op} on CUDA takes at most {MAX_INDEX} {name.replace('_', ' ')}, got {size}; "
                'divide the work, or use implementation "python"'
            )
