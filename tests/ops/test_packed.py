"""Packed ops: the native kernels against the references, and those against the layers' ops on the unpacked bits.

Shape letters: N images, F features, C channels, H X image, K kernels, L leaves, G gates, W words.
"""

import pytest
import torch

from convlogic_core.gates import GATE_TABLE
from convlogic_core.ops import (
    logic_dense,
    logic_tree,
    pack_bits,
    packed_class_sums,
    packed_dense,
    packed_tree,
    unpack_bits,
)

NUM_IMAGES = [1, 63, 64, 65, 130, 1000]


def bits(*shape, seed=0):
    """Random bits, uint8."""
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def numbers(limit, *shape, dtype=torch.int64, seed=1):
    return torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tree_example(num_images=130, channels=3, image=(7, 8), num_kernels=6, depth=3, kernel=(3, 3), **geometry):
    """Bits (N, C, H, X), selection, gates, and the geometry of a call."""
    channel, row, column = (
        numbers(limit, num_kernels, 2**depth, dtype=torch.int32, seed=seed)
        for seed, limit in enumerate((channels, *kernel))
    )
    gates = numbers(16, num_kernels, 2**depth - 1)
    return bits(num_images, channels, *image), channel << 16 | row << 8 | column, gates, {"kernel": kernel, **geometry}


def assert_tree(x, selection, gates, geometry):
    """Native and reference against the soft op, which on bits and discrete gates is exact."""
    expected = logic_tree(x.double(), selection, GATE_TABLE.double()[gates], **geometry, implementation="python")
    for implementation in ("cpu", "python"):
        words = packed_tree(pack_bits(x), selection, gates, **geometry, implementation=implementation)
        assert words.dtype == torch.int64
        assert torch.equal(unpack_bits(words, len(x)), expected.to(torch.uint8))


# Packing


def test_image_n_is_bit_n_mod_64_of_word_n_div_64():
    x = torch.zeros(130, 3, dtype=torch.uint8)
    x[0, 0] = x[63, 1] = x[65, 2] = x[129, 2] = 1
    assert pack_bits(x).tolist() == [[1, 0, 0], [-(2**63), 0, 0], [0, 2, 2]]


@pytest.mark.parametrize("features", [1, 15, 16, 33, 900])
@pytest.mark.parametrize("num_images", [0, *NUM_IMAGES])
def test_packing(isa, num_images, features):
    x = bits(num_images, features)
    words = pack_bits(x, "cpu")
    assert torch.equal(words, pack_bits(x, "python"))
    assert words.shape == (features, (num_images + 63) // 64)
    assert torch.equal(unpack_bits(words, num_images), x)


@pytest.mark.parametrize("implementation", ["cpu", "python"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.bfloat16])
def test_packing_takes_bits_of_any_dtype_and_strides(dtype, implementation):
    x = bits(70, 2, 5, 3).permute(0, 2, 3, 1)
    words = pack_bits(x.to(dtype), implementation)
    assert words.shape == (5, 3, 2, 2)
    assert torch.equal(words, pack_bits(x.contiguous()))


@pytest.mark.parametrize("implementation", ["cpu", "python"])
@pytest.mark.parametrize("value", [2, 255, 0.5, -1.0, float("nan")])
def test_only_zeros_and_ones_are_packed(value, implementation):
    x = bits(70, 40).to(torch.uint8 if isinstance(value, int) else torch.float32)
    for position in ((69, 39), (3, 0)):
        wrong = x.clone()
        wrong[position] = value
        with pytest.raises(ValueError, match=r"^pack_bits takes zeros and ones only, [^\n]+$"):
            pack_bits(wrong, implementation)


# Dense


@pytest.mark.parametrize("implementation", ["cpu", "python"])
def test_the_sixteen_gates(isa, implementation):
    """Images 0 to 3 are (a, b) = 00, 01, 10, 11: the gate's number, read as a binary word."""
    words = pack_bits(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.uint8))
    index = torch.zeros(16, dtype=torch.int64)
    y = unpack_bits(packed_dense(words, index, index + 1, torch.arange(16), implementation), 4)
    assert [int("".join(map(str, column)), 2) for column in y.T.tolist()] == list(range(16))


@pytest.mark.parametrize("num_images", NUM_IMAGES)
def test_dense(isa, num_images):
    x, a, b, gates = bits(num_images, 23), numbers(23, 90), numbers(23, 90, seed=2), numbers(16, 90, seed=3)
    expected = logic_dense(x.float(), a, b, GATE_TABLE[gates], "python")
    for implementation in ("cpu", "python"):
        y = packed_dense(pack_bits(x), a, b, gates, implementation)
        assert torch.equal(unpack_bits(y, num_images), expected.to(torch.uint8))


# Trees


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_tree(isa, depth, pool):
    assert_tree(*tree_example(depth=depth, num_kernels=40, pool=pool))


@pytest.mark.parametrize("num_images", NUM_IMAGES)
def test_tree_over_numbers_of_images(isa, num_images):
    assert_tree(*tree_example(num_images, image=(5, 4), depth=2))


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel": (1, 1)},
        {"kernel": (5, 2), "padding": (0, 2)},
        {"kernel": (2, 3), "stride": (2, 1), "padding": (3, 0)},
        {"stride": (2, 3), "padding": (2, 2)},
        {"kernel": (6, 7), "image": (7, 8)},
        {"image": (9, 11), "padding": (1, 1)},
        {"channels": 40, "num_kernels": 70, "image": (3, 3), "padding": (1, 1)},
        {"channels": 1, "num_kernels": 1},
    ],
)
def test_tree_over_geometry(isa, sizes, pool):
    assert_tree(*tree_example(**sizes, pool=pool))


def test_every_gate_at_every_node_of_a_tree(isa):
    """A kernel a gate and node; the other nodes are random. Complements are moved from gate to gate by the kernel."""
    x, selection, gates, geometry = tree_example(300, num_kernels=16 * 7)
    for kernel in range(16 * 7):
        gates[kernel, kernel // 16] = kernel % 16
    assert_tree(x, selection, gates, geometry)


# Class sums


@pytest.mark.parametrize("group", [1, 2, 7, 8, 9, 255, 256, 300])
def test_class_sums(isa, group):
    for num_images in (0, 1, 64, 130):
        x = bits(num_images, 3 * group)
        x[:, :group] = 1  # the largest sum there can be
        words = pack_bits(x)
        words[..., -1:] |= -(2 ** (num_images % 64)) if num_images % 64 else 0  # unused bits are not counted
        expected = x.view(num_images, 3, group).sum(2, dtype=torch.int32)
        for implementation in ("cpu", "python"):
            assert torch.equal(packed_class_sums(words, 3, num_images, implementation), expected)


# What no kernel is given


@pytest.mark.parametrize("implementation", ["cpu", "python"])
def test_wiring_and_gates_out_of_range(implementation):
    x, selection, gates, geometry = tree_example(depth=2)
    words = pack_bits(x)
    for leaf in (3 << 16, 3 << 8, 3, -1):
        wrong = selection.clone()
        wrong[2, 3] = leaf
        with pytest.raises(ValueError, match=r"packed_tree: selection\[2, 3\] names .*, outside 0\.\.2$"):
            packed_tree(words, wrong, gates, **geometry, implementation=implementation)
    for gate in (-1, 16):
        wrong = gates.clone()
        wrong[2, 1] = gate
        with pytest.raises(ValueError, match=rf"packed_tree: gates\[2, 1\] = {gate} is outside the 16 gates"):
            packed_tree(words, selection, wrong, **geometry, implementation=implementation)
    index = numbers(3, 5)
    for feature in (-1, 3):
        wrong = index.clone()
        wrong[4] = feature
        with pytest.raises(ValueError, match=rf"packed_dense: indices_1\[4\] = {feature} is outside the 3 features"):
            packed_dense(words[:, 0, 0], index, wrong, numbers(16, 5), implementation)
    with pytest.raises(ValueError, match=r"packed_dense: gates\[0\] = \d+ is outside the 16 gates"):
        packed_dense(words[:, 0, 0], index, index, numbers(16, 5) + 16, implementation)


WORDS = torch.zeros(4, 2, dtype=torch.int64)
FIVE = torch.zeros(5, dtype=torch.int64)
ERRORS = [
    (lambda: pack_bits(torch.zeros(3, 2, dtype=torch.int16)), "uint8, bool or floating-point, got torch.int16"),
    (lambda: pack_bits(torch.tensor(1.0)), r"needs \(N, ...\)"),
    (lambda: packed_dense(WORDS.int(), FIVE, FIVE, FIVE), "int64 words of 2 dimensions, got torch.int32"),
    (lambda: packed_dense(WORDS, FIVE[:4], FIVE, FIVE), r"indices_0 of shape \(5,\)"),
    (lambda: packed_dense(WORDS, FIVE, FIVE.int(), FIVE), r"indices_1 .* got \(5,\), torch.int32"),
    (lambda: packed_class_sums(WORDS, 3, 100), "4 outputs among 3 classes"),
    (lambda: packed_class_sums(WORDS, 0, 100), "4 outputs among 0 classes"),
    (lambda: packed_class_sums(WORDS, 2, 64), "64 images do not fill 2 words"),
    (lambda: packed_class_sums(WORDS, 2, 129), "129 images do not fill 2 words"),
    (lambda: packed_class_sums(WORDS, 2, 100, "gpu"), "'gpu' is not one of"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_are_told(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": (9, 3)}, "an image of 7x8 with padding .* is too small for kernel"),
        ({"kernel": (7, 8), "stride": (5, 5)}, "too small .* pool 2"),
        ({"kernel": (0, 3)}, "needs kernel 1..256"),
        ({"stride": (0, 1)}, "stride >= 1"),
        ({"padding": (-1, 0)}, "padding >= 0"),
        ({"pool": 3}, "pool 1 or 2"),
    ],
)
def test_geometry_that_cannot_be(change, message):
    x, selection, gates, geometry = tree_example()
    with pytest.raises(ValueError, match=message):
        packed_tree(pack_bits(x), selection, gates, **{**geometry, **change})


def test_gates_and_selection_must_fit():
    x, selection, gates, geometry = tree_example()
    with pytest.raises(ValueError, match="trees of depth 1 to 4; got"):
        packed_tree(pack_bits(x), selection, gates[:, :5], **geometry)
    with pytest.raises(ValueError, match=r"selection of shape \(6, 8\), torch.int32"):
        packed_tree(pack_bits(x), selection.long(), gates, **geometry)
