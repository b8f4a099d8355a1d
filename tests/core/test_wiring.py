"""Shapes: O gates, K kernels, L = 2**tree_depth leaves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from convlogic_core.wiring import dense_connections, tree_selection

SEEDS = st.integers(0, 2**32)
quick = settings(deadline=None, max_examples=100)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@st.composite
def dense_sizes(draw: st.DrawFn) -> tuple[int, int]:
    in_dim = draw(st.integers(1, 80))
    return in_dim, draw(st.integers(-(-in_dim // 2), 3 * in_dim))


@st.composite
def unique_sizes(draw: st.DrawFn) -> tuple[int, int]:
    """From the fewest gates that read every input, through a few more, to every pair there is."""
    in_dim = draw(st.integers(2, 30))
    fewest, most = -(-in_dim // 2), in_dim * (in_dim - 1) // 2
    return in_dim, draw(st.sampled_from([fewest, most]) | st.integers(fewest, min(fewest + 3, most)))


@quick
@given(sizes=dense_sizes(), seed=SEEDS)
def test_random_connections_use_every_feature_equally_often(sizes: tuple[int, int], seed: int) -> None:
    in_dim, out_dim = sizes
    a, b = dense_connections(in_dim, out_dim, "random", seeded(seed))
    assert a.shape == b.shape == (out_dim,)
    assert a.dtype == b.dtype == torch.int64
    uses = torch.bincount(torch.cat([a, b]), minlength=in_dim)
    assert len(uses) == in_dim
    assert uses.min() == 2 * out_dim // in_dim >= 1
    assert uses.max() == -(-2 * out_dim // in_dim)


@quick
@given(sizes=unique_sizes(), seed=SEEDS)
def test_unique_connections_repeat_no_pair_and_use_every_feature(sizes: tuple[int, int], seed: int) -> None:
    in_dim, out_dim = sizes
    a, b = dense_connections(in_dim, out_dim, "unique", seeded(seed))
    assert a.shape == b.shape == (out_dim,)
    assert a.dtype == b.dtype == torch.int64
    pairs = {frozenset(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)}
    assert len(pairs) == out_dim
    assert all(len(pair) == 2 for pair in pairs)
    assert set(a.tolist()) | set(b.tolist()) == set(range(in_dim))


def test_unique_connections_put_a_feature_on_either_side() -> None:
    a, b = dense_connections(200, 199, "unique", seeded(0))  # a chain: every feature but its two ends is read twice
    assert torch.bincount(torch.cat([a, b])).max() == 2
    assert set(torch.bincount(a, minlength=200).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["random", "unique"])
def test_dense_connections_follow_the_generator(kind: str) -> None:
    first, again, other = (torch.stack(dense_connections(40, 30, kind, seeded(seed))) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["random", "unique"])
def test_too_few_gates_for_the_inputs(kind: str) -> None:
    with pytest.raises(ValueError, match=r"out_dim=5 .* at most 10 of the 11 inputs.*out_dim >= 6"):
        dense_connections(11, 5, kind, None)


@pytest.mark.parametrize(("in_dim", "out_dim", "num_pairs"), [(1, 1, 0), (5, 11, 10)])
def test_too_few_pairs_for_the_gates(in_dim: int, out_dim: int, num_pairs: int) -> None:
    with pytest.raises(ValueError, match=rf"{num_pairs} distinct pairs, fewer than out_dim={out_dim}"):
        dense_connections(in_dim, out_dim, "unique", None)


def test_unknown_connections() -> None:
    with pytest.raises(ValueError, match="'permuted' is neither"):
        dense_connections(4, 4, "permuted", None)


def unpack(selection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(channel, row, column), (K, L) each."""
    return selection >> 16, (selection >> 8) & 0xFF, selection & 0xFF


@st.composite
def trees(draw: st.DrawFn) -> dict[str, int | tuple[int, int]]:
    groups = draw(st.integers(1, 4))
    return {
        "in_channels": draw(st.integers(groups, 3 * groups)),
        "out_channels": draw(st.integers(groups, 4 * groups)),
        "kernel": (draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        "groups": groups,
        "tree_depth": draw(st.integers(1, 4)),
    }


@quick
@given(tree=trees(), seed=SEEDS)
def test_leaves_lie_in_the_window_on_two_channels_and_differ_within_a_gate(tree: dict, seed: int) -> None:
    selection = tree_selection(**tree, generator=seeded(seed))
    assert selection.shape == (tree["out_channels"], 2 ** tree["tree_depth"])
    assert selection.dtype == torch.int32
    channel, row, column = unpack(selection)
    assert 0 <= channel.min() and channel.max() < tree["in_channels"]
    assert row.max() < tree["kernel"][0] and column.max() < tree["kernel"][1]
    assert all(len(set(channels)) <= 2 for channels in channel.tolist())
    smallest_group = tree["in_channels"] // tree["groups"]
    if tree["kernel"] != (1, 1) or smallest_group > 1:
        assert (selection[:, 0::2] != selection[:, 1::2]).all()


@quick
@given(
    channels_a_group=st.integers(1, 4),
    kernels_a_group=st.integers(1, 4),
    groups=st.integers(1, 4),
    kernel=st.sampled_from([(1, 1), (1, 2), (3, 3)]),
    seed=SEEDS,
)
def test_kernels_read_only_their_own_group(
    channels_a_group: int, kernels_a_group: int, groups: int, kernel: tuple[int, int], seed: int
) -> None:
    selection = tree_selection(
        channels_a_group * groups, kernels_a_group * groups, kernel, groups, tree_depth=3, generator=seeded(seed)
    )
    group_of_kernel = torch.arange(kernels_a_group * groups) // kernels_a_group
    assert torch.equal((selection >> 16) // channels_a_group, group_of_kernel[:, None].expand(-1, 8).to(torch.int32))


def test_every_channel_row_and_column_is_drawn() -> None:
    channel, row, column = unpack(tree_selection(5, 600, (3, 4), groups=1, tree_depth=3, generator=seeded(0)))
    for drawn, limit in ((channel, 5), (row, 3), (column, 4)):
        shares = torch.bincount(drawn.flatten(), minlength=limit) / drawn.numel()
        assert len(shares) == limit
        torch.testing.assert_close(shares, torch.full((limit,), 1 / limit), atol=0.03, rtol=0)


def test_a_kernel_draws_its_channels_with_replacement() -> None:
    channel, _, _ = unpack(tree_selection(2, 2000, (3, 3), groups=1, tree_depth=4, generator=seeded(0)))
    on_one_channel = (channel == channel[:, :1]).all(1).float().mean().item()
    assert on_one_channel == pytest.approx(0.5, abs=0.05)


def test_a_pixel_of_two_channels_gives_each_gate_both() -> None:
    channel, _, _ = unpack(tree_selection(2, 50, (1, 1), groups=1, tree_depth=2, generator=seeded(0)))
    assert (channel[:, 0::2] + channel[:, 1::2] == 1).all()


def test_a_pixel_of_one_channel_has_no_choice() -> None:
    assert not tree_selection(1, 3, (1, 1), groups=1, tree_depth=3, generator=seeded(0)).any()


def test_tree_selection_follows_the_generator() -> None:
    first, again, other = (tree_selection(3, 5, (5, 5), 1, 3, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
