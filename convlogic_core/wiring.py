"""Who reads whom: the fixed random wiring of dense and convolutional logic, drawn from an explicit generator.

Shapes: O gates of a dense layer, K kernels, L = 2**tree_depth leaves.
"""

import torch
from torch import Generator, Tensor


def dense_connections(in_dim: int, out_dim: int, kind: str, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """The two inputs of every gate, (O,) int64 each.

    "random": a permutation of all 2*O gate inputs over the features, so that every feature is used.
    "unique": as difflogic draws it, no pair of features twice.

    Raises:
        ValueError: 2*out_dim < in_dim, too few distinct pairs for "unique", or an unknown kind.
    """
    check_connections(in_dim, out_dim, kind)
    if kind == "random":
        order = torch.randperm(2 * out_dim, generator=generator) % in_dim
        features = torch.randperm(in_dim, generator=generator)[order]
        return features[:out_dim], features[out_dim:]
    return _unique_pairs(in_dim, out_dim, generator)


def check_connections(in_dim: int, out_dim: int, kind: str) -> None:
    """Refuse a dense layer that cannot be wired.

    Raises:
        ValueError: as in `dense_connections`.
    """
    if 2 * out_dim < in_dim:
        raise ValueError(
            f"out_dim={out_dim} gates read at most {2 * out_dim} of the {in_dim} inputs: "
            f"2*out_dim must be at least in_dim; use out_dim >= {-(-in_dim // 2)}"
        )
    if kind not in ("random", "unique"):
        raise ValueError(f'connections={kind!r} is neither "random" nor "unique"')
    num_pairs = in_dim * (in_dim - 1) // 2
    if kind == "unique" and out_dim > num_pairs:
        raise ValueError(
            f'connections="unique": {in_dim} inputs have {num_pairs} distinct pairs, fewer than out_dim={out_dim}; '
            'use "random" or fewer gates'
        )


def _unique_pairs(in_dim: int, out_dim: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Neighbouring features first, then pairs ever farther apart, shuffled: all inputs used, no pair twice."""
    firsts, seconds, count = [], [], 0
    # Step 1 in two strides covers every feature with the fewest gates; steps 2, 3, ... add further pairs.
    for step in range(1, in_dim):
        starts = torch.arange(in_dim - step)
        if step == 1:
            starts = torch.cat([starts[::2], starts[1::2]])
            if in_dim % 2:  # the last feature is only in an odd-position pair: bring that one forward
                half = (in_dim - 1) // 2
                starts = torch.cat([starts[:half], starts[-1:], starts[half:-1]])
        firsts.append(starts)
        seconds.append(starts + step)
        count += len(starts)
        if count >= out_dim:
            break
    features = torch.randperm(in_dim, generator=generator)
    a, b = features[torch.cat(firsts)[:out_dim]], features[torch.cat(seconds)[:out_dim]]
    swap = torch.rand(out_dim, generator=generator) < 0.5
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    order = torch.randperm(out_dim, generator=generator)
    return a[order], b[order]


def tree_selection(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, int],
    groups: int,
    tree_depth: int,
    generator: Generator | None,
) -> Tensor:
    """The leaves of every kernel's tree: (K, L) int32, channel<<16 | row<<8 | column.

    A kernel draws two input channels of its group, with replacement (two different ones for a 1x1 kernel); each leaf
    takes one of the two, with row and column uniform in the window. The two leaves of one gate are never the same
    (channel, row, column), except where a 1x1 kernel on one channel leaves no choice. Source: Petersen et al. 2024,
    arXiv 2411.04732, section 3.1; packing as in lkorinek/convlogic.
    """
    num_leaves = 2**tree_depth
    rows, columns = kernel
    base, remainder = divmod(in_channels, groups)
    sizes = torch.full((groups,), base)
    sizes[:remainder] += 1
    starts = sizes.cumsum(0) - sizes
    group = (torch.arange(out_channels) // (out_channels // groups)).clamp(max=groups - 1)

    def draw(shape: tuple[int, ...], limit: Tensor | int) -> Tensor:
        """Uniform integers in [0, limit), limit a number or a tensor that broadcasts to shape."""
        return (torch.rand(shape, generator=generator, dtype=torch.float64) * limit).long()

    size = sizes[group]
    chosen = draw((out_channels, 2), size[:, None])
    if rows * columns == 1:  # one window position: only two different channels can keep a gate's leaves apart
        chosen[:, 1] = (chosen[:, 0] + 1 + draw((out_channels,), (size - 1).clamp(min=1))) % size
    chosen += starts[group, None]
    side = draw((out_channels, num_leaves), 2)
    channel = chosen.gather(1, side)
    # One number a window position; a clash with the gate's first leaf moves the second by a uniform non-zero offset.
    area = rows * columns
    position = draw((out_channels, num_leaves), area)
    first, second = position[:, 0::2], position[:, 1::2]
    if area > 1:
        clash = (channel[:, 0::2] == channel[:, 1::2]) & (first == second)
        offset = 1 + draw((out_channels, num_leaves // 2), area - 1)
        position[:, 1::2] = torch.where(clash, (second + offset) % area, second)
    else:
        clash = channel[:, 0::2] == channel[:, 1::2]
        other = chosen.gather(1, 1 - side)[:, 1::2]
        channel[:, 1::2] = torch.where(clash, other, channel[:, 1::2])
    return ((channel << 16) | (position // columns << 8) | (position % columns)).to(torch.int32)
