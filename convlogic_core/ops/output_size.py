"""How large the output of a tree convolution is."""

from collections.abc import Sequence


def window_positions(
    image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Rows and columns of windows; below 1 where none fits, whatever the stride."""
    height, width = ((image[axis] + 2 * padding[axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1))
    return height, width


def tree_output_size(
    image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], pool: int
) -> tuple[int, int]:
    """H' and W' of a tree convolution, pooling included.

    Raises:
        ValueError: sizes that cannot be, or an image smaller than the kernel or than the pooling window.
    """
    if min(kernel) < 1 or max(kernel) > 256 or min(stride) < 1 or min(padding) < 0 or pool not in (1, 2):
        raise ValueError(
            f"a tree convolution needs kernel 1..256, stride >= 1, padding >= 0 and pool 1 or 2; "
            f"got kernel={kernel}, stride={stride}, padding={padding}, pool={pool}"
        )
    height, width = (positions // pool for positions in window_positions(image, kernel, stride, padding))
    if height < 1 or width < 1:
        raise ValueError(
            f"an image of {image[0]}x{image[1]} with padding {padding} is too small for kernel {kernel}, "
            f"stride {stride} and pool {pool}: use fewer blocks, a smaller kernel or more padding"
        )
    return height, width
