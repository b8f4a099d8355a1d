"""The native side of packed evaluation: layers put together, then run depth-first, a chunk of images at a time.

Shape letters as in `packed`.
"""

import math
from collections.abc import Sequence

import torch

from .backend import native
from .wiring_checks import check_dense, check_selection


class PackedStack:
    """Layers that follow one another on planes of the given shape, (C, H, X) or (F,). Wiring and gates are copied.

    Raises:
        ValueError: wiring outside the planes, or a number that is no gate.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._stack = native().PackedStack(rows=math.prod(shape))

    def add_dense(self, indices_0: torch.Tensor, indices_1: torch.Tensor, gates: torch.Tensor) -> None:
        """Gates over all rows of the planes, all (O,) int64.

        A layer below that has at least a gate for every input is evaluated together with this one, as trees.
        """
        check_dense("packed_dense", indices_0, indices_1, math.prod(self.shape))
        leaves, gates = torch.stack((indices_0, indices_1), 1), gates.contiguous()
        self._stack.add_forest(leaves=leaves.data_ptr(), gates=gates.data_ptr(), trees=len(gates), gates_a_tree=1)
        self.shape = (len(gates),)

    def add_tree(
        self,
        selection: torch.Tensor,
        gates: torch.Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        pool: int,
        out_size: tuple[int, int],
    ) -> None:
        """A tree convolution: selection (K, L) int32, gates (K, G) int64; out_size after pooling."""
        channels, height, width = self.shape
        check_selection("packed_tree", selection, channels, kernel)
        selection, gates = selection.contiguous(), gates.contiguous()
        num_kernels, num_gates = gates.shape
        self._stack.add_tree(
            selection=selection.data_ptr(),
            gates=gates.data_ptr(),
            channels=channels,
            image=(height, width),
            kernels=num_kernels,
            gates_a_tree=num_gates,
            kernel=kernel,
            stride=stride,
            padding=padding,
            pool=pool,
        )
        self.shape = (num_kernels, *out_size)

    def planes(self, words: torch.Tensor) -> torch.Tensor:
        """(*shape, W) int64 words of the first planes -> those of the last layer."""
        words = words.contiguous()
        y = words.new_empty(*self.shape, words.shape[-1])
        self._stack.planes(x=words.data_ptr(), y=y.data_ptr(), words=words.shape[-1], threads=torch.get_num_threads())
        return y

    def class_sums(self, words: torch.Tensor, num_classes: int, num_images: int) -> torch.Tensor:
        """(*shape, W) int64 words of the first planes -> (N, num_classes) int32 sums over the last layer's."""
        words = words.contiguous()
        sums = words.new_empty((num_classes, num_images), dtype=torch.int32)
        self._stack.class_sums(
            x=words.data_ptr(),
            sums=sums.data_ptr(),
            images=num_images,
            classes=num_classes,
            threads=torch.get_num_threads(),
        )
        return sums.T
