"""Bit-packed discrete evaluation: 64 images a word, gates on words. Not differentiable.

Words are int64, image n is bit n % 64 of word n // 64. Unused bits of the last word may be anything and never count.

Shape letters: N images, W = ceil(N / 64) words, F features, O gates, C channels, H X image rows and columns, K kernels,
L = 2**depth leaves, G = L - 1 gates, H' X' output size.
"""

from typing import Final

import torch
from torch.nn.functional import pad

from ..gates import GATE_TABLE, NUM_GATES
from . import cuda
from .backend import native, use_native
from .output_size import tree_output_size
from .packed_native import PackedStack
from .wiring_checks import check_dense, check_indices, check_selection

WORD_BITS: Final = 64


def pack_bits(x: torch.Tensor, implementation: str = "auto") -> torch.Tensor:
    """Words from bits.

    Args:
        x: (N, ...) of zeros and ones, uint8, bool or floating-point; uint8 and bool are fast.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (..., W) int64; unused bits are zero.

    Raises:
        ValueError: another dtype, no dimension, or a value that is neither 0 nor 1. (The CUDA kernel does not wait: it
            takes what is not one for a zero.)
    """
    if x.ndim == 0 or not (x.is_floating_point() or x.dtype in (torch.uint8, torch.bool)):
        raise ValueError(f"pack_bits needs (N, ...) uint8, bool or floating-point, got {x.dtype} {tuple(x.shape)}")
    kernel = use_native(implementation, x.new_empty(0, dtype=torch.uint8), (torch.uint8,), (torch.uint8,))
    if x.dtype not in (torch.uint8, torch.bool):
        bits = x == 1
        if not (kernel and x.is_cuda) and not (bits | (x == 0)).all():
            raise ValueError("pack_bits takes zeros and ones only, and found another value: round or encode the input")
        x = bits
    x = x.view(torch.uint8)
    if not kernel:
        return reference_pack_bits(x)
    if x.is_cuda:
        return cuda.cuda_pack_bits(x)
    x = x.contiguous()
    words = x.new_empty((*x.shape[1:], _num_words(len(x))), dtype=torch.int64)
    native().pack_bits(
        x=x.data_ptr(),
        y=words.data_ptr(),
        images=len(x),
        features=x[:1].numel(),
        threads=torch.get_num_threads(),
    )
    return words


def reference_pack_bits(x: torch.Tensor) -> torch.Tensor:
    """The specification, in plain PyTorch. (N, ...) uint8 -> (..., W) int64."""
    if x.numel() and x.max() > 1:
        raise ValueError("pack_bits takes zeros and ones only, and found another value: round or encode the input")
    bits = pad(x.movedim(0, -1), (0, -len(x) % WORD_BITS)).unflatten(-1, (-1, WORD_BITS))
    words: torch.Tensor = (bits.long() << torch.arange(WORD_BITS, device=x.device)).sum(-1)
    return words


def unpack_bits(words: torch.Tensor, num_images: int) -> torch.Tensor:
    """(..., W) int64 words -> (N, ...) uint8 bits of the first N = num_images images."""
    bits = words[..., None] >> torch.arange(WORD_BITS, device=words.device) & 1
    return bits.flatten(-2)[..., :num_images].movedim(-1, 0).to(torch.uint8)


def packed_dense(
    words: torch.Tensor,
    indices_0: torch.Tensor,
    indices_1: torch.Tensor,
    gates: torch.Tensor,
    implementation: str = "auto",
) -> torch.Tensor:
    """O gates, gate o on the features indices_0[o] and indices_1[o].

    Args:
        words: (F, W) int64.
        indices_0, indices_1: (O,) int64, the features that are a and b.
        gates: (O,) int64, numbers of gates, 0 to 15.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (O, W) int64.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, an index outside [0, F), or a number that is no gate.
    """
    _check_words("packed_dense", words, 2)
    for name, tensor in (("indices_0", indices_0), ("indices_1", indices_1), ("gates", gates)):
        _check_wiring("packed_dense", name, tensor, (len(gates),), torch.int64, words.device)
    check_indices("packed_dense", "gates", gates, NUM_GATES, "gates")
    return dense_words(words, indices_0, indices_1, gates, implementation)


def dense_words(
    words: torch.Tensor,
    indices_0: torch.Tensor,
    indices_1: torch.Tensor,
    gates: torch.Tensor,
    implementation: str,
) -> torch.Tensor:
    """`packed_dense` of gates that are known to be gates: checking new numbers would wait for a GPU."""
    if not use_native(implementation, words, (torch.int64,), (torch.int64,)):
        check_dense("packed_dense", indices_0, indices_1, len(words))
        return reference_packed_dense(words, indices_0, indices_1, gates)
    if words.is_cuda:
        return cuda.cuda_packed_dense(words, indices_0, indices_1, gates)
    stack = PackedStack(words.shape[:1])
    stack.add_dense(indices_0, indices_1, gates)
    return stack.planes(words)


def reference_packed_dense(
    words: torch.Tensor, indices_0: torch.Tensor, indices_1: torch.Tensor, gates: torch.Tensor
) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `packed_dense`."""
    return _apply(gates[:, None], words.index_select(0, indices_0), words.index_select(0, indices_1))


def packed_tree(
    words: torch.Tensor,
    selection: torch.Tensor,
    gates: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    pool: int = 2,
    implementation: str = "auto",
) -> torch.Tensor:
    """K gate trees at every window position, then the OR of each pool x pool block.

    Args:
        words: (C, H, X, W) int64.
        selection: (K, L) int32, channel << 16 | row << 8 | column of each leaf within the window; L = 2, 4, 8 or 16.
        gates: (K, G) int64, numbers of gates, 0 to 15, level by level from the leaves.
        kernel: height and width of the window.
        stride: vertical and horizontal step of the window.
        padding: rows and columns of zeros added on each side.
        pool: 1 or 2; odd sizes floor.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (K, H', X', W) int64.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, the image is smaller than the kernel, a leaf outside
            its window or the channels, or a number that is no gate.
    """
    _check_words("packed_tree", words, 4)
    num_kernels, num_gates = gates.shape if gates.ndim == 2 else (0, 0)
    if num_gates not in (1, 3, 7, 15):
        raise ValueError(
            "packed_tree needs gates of shape (kernels, 1, 3, 7 or 15), trees of depth 1 to 4; "
            f"got {tuple(gates.shape)}"
        )
    _check_wiring("packed_tree", "gates", gates, (num_kernels, num_gates), torch.int64, words.device)
    _check_wiring("packed_tree", "selection", selection, (num_kernels, num_gates + 1), torch.int32, words.device)
    check_indices("packed_tree", "gates", gates, NUM_GATES, "gates")
    return tree_words(words, selection, gates, kernel, stride, padding, pool, implementation)


def tree_words(
    words: torch.Tensor,
    selection: torch.Tensor,
    gates: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    pool: int,
    implementation: str,
) -> torch.Tensor:
    """`packed_tree` of gates that are known to be gates, as `dense_words`."""
    size = tree_output_size(words.shape[1:3], kernel, stride, padding, pool)
    if not use_native(implementation, words, (torch.int64,), (torch.int64,)):
        check_selection("packed_tree", selection, len(words), kernel)
        return reference_packed_tree(words, selection, gates, kernel, stride, padding, pool)
    if words.is_cuda:
        return cuda.cuda_packed_tree(words, selection, gates, kernel, stride, padding, pool)
    stack = PackedStack(words.shape[:3])
    stack.add_tree(selection, gates, kernel, stride, padding, pool, size)
    return stack.planes(words)


def reference_packed_tree(
    words: torch.Tensor,
    selection: torch.Tensor,
    gates: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    pool: int = 2,
) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `packed_tree`."""
    planes = pad(words, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    _, height, width, _ = planes.shape
    channel, row, column = selection >> 16 & 65535, selection >> 8 & 255, selection & 255
    rows = torch.arange(0, height - kernel[0] + 1, stride[0], device=words.device)
    columns = torch.arange(0, width - kernel[1] + 1, stride[1], device=words.device)
    windows = rows[:, None] * width + columns  # (H', X') before pooling
    index = ((channel * height + row) * width + column)[:, :, None, None] + windows
    values: torch.Tensor  # (K, L, H', X', W)
    values = planes.flatten(0, 2).index_select(0, index.flatten()).unflatten(0, index.shape)
    num_leaves = selection.shape[1]
    for level in gates.split([num_leaves >> depth for depth in range(1, num_leaves.bit_length())], 1):
        values = _apply(level[..., None, None, None], values[:, 0::2], values[:, 1::2])
    values = values.squeeze(1)
    if pool == 1:
        return values
    height, width = len(rows) // 2 * 2, len(columns) // 2 * 2
    values = values[:, 0:height:2] | values[:, 1:height:2]
    return values[:, :, 0:width:2] | values[:, :, 1:width:2]


def packed_class_sums(
    words: torch.Tensor, num_classes: int, num_images: int, implementation: str = "auto"
) -> torch.Tensor:
    """How many of each class's O / num_classes consecutive outputs are one.

    Args:
        words: (O, W) int64.
        num_classes: must divide O.
        num_images: N, more than 64 * (W - 1) and at most 64 * W.
        implementation: "auto", "cpu", "cuda" or "python".

    Returns:
        (N, num_classes) int32; batch-innermost from the native kernel.

    Raises:
        ValueError: sizes, dtypes or devices do not fit together.
    """
    _check_words("packed_class_sums", words, 2)
    if num_classes < 1 or len(words) % num_classes:
        raise ValueError(f"packed_class_sums cannot divide {len(words)} outputs among {num_classes} classes")
    if num_images < 0 or _num_words(num_images) != words.shape[1]:
        raise ValueError(f"packed_class_sums: {num_images} images do not fill {words.shape[1]} words of 64")
    if not use_native(implementation, words, (torch.int64,), (torch.int64,)):
        return reference_packed_class_sums(words, num_classes, num_images)
    if words.is_cuda:
        return cuda.cuda_packed_class_sums(words, num_classes, num_images)
    return PackedStack(words.shape[:1]).class_sums(words, num_classes, num_images)


def reference_packed_class_sums(words: torch.Tensor, num_classes: int, num_images: int) -> torch.Tensor:
    """The specification, in plain PyTorch. Arguments as in `packed_class_sums`."""
    sums: torch.Tensor = unpack_bits(words, num_images).unflatten(1, (num_classes, -1)).sum(2, dtype=torch.int32)
    return sums


def highest_class(sums: torch.Tensor) -> torch.Tensor:
    """(N, num_classes) int32 sums of at most 2**30 outputs -> (N,) int64; of equal sums the lowest class."""
    num_classes = sums.shape[1]
    # argmax goes image by image; the largest of these keys, which tell sum and class, is found on vectors
    ranks = torch.arange(num_classes - 1, -1, -1, dtype=torch.int32, device=sums.device)
    keys = sums * num_classes + ranks
    return (num_classes - 1 - keys.amax(-1) % num_classes).long()


def _num_words(num_images: int) -> int:
    return -(-num_images // WORD_BITS)


def _apply(gates: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The gates' polynomials over GF(2), where + is XOR and * is AND; gates and words broadcast."""
    c0, c1, c2, c3 = (-(GATE_TABLE.to(gates.device).long() % 2))[gates].unbind(-1)
    y: torch.Tensor = c0 ^ (c1 & a) ^ (c2 & b) ^ (c3 & a & b)
    return y


def _check_words(op: str, words: torch.Tensor, ndim: int) -> None:
    if words.ndim != ndim or words.dtype != torch.int64:
        raise ValueError(f"{op} needs int64 words of {ndim} dimensions, got {words.dtype} {tuple(words.shape)}")


def _check_wiring(
    op: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{op} needs {name} of shape {shape}, {dtype}, on {device}; "
            f"got {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
        )
