"""Packed evaluation on CUDA, emulated: against the reference on bits.

Shape letters: N images, F features, O gates, C channels, H W image, K kernels, S words of 64 images.
"""

import pytest
import torch

from convlogic_core.gates import GATE_TABLE
from convlogic_core.ops import cuda
from convlogic_core.ops.logic_dense import reference_logic_dense
from convlogic_core.ops.logic_tree import reference_logic_tree
from convlogic_core.ops.packed import reference_pack_bits

IMAGES = [1, 64, 130, 300]


def pack(bits):
    """(N, ...) of 0 and 1 -> words (..., S) int64: image n is bit n % 64 of word n // 64."""
    bits = bits.movedim(0, -1).long()
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 64)).unflatten(-1, (-1, 64))
    return (bits << torch.arange(64)).sum(-1)


def unpack(words, num_images):
    """(..., S) -> (N, ...)."""
    bits = words[..., None] >> torch.arange(64) & 1
    return bits.flatten(-2)[..., :num_images].movedim(-1, 0)


def random_bits(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_images", [0, *IMAGES])
@pytest.mark.parametrize("shape", [(1,), (37,), (3, 7, 20), (0,)])
def test_pack(emulated, num_images, shape):
    bits = random_bits(num_images, *shape).to(torch.uint8)
    for order in (0, 17):
        emulated(order)
        assert torch.equal(cuda.cuda_pack_bits(bits), reference_pack_bits(bits))
    apart = bits.movedim(0, -1).contiguous().movedim(-1, 0)
    assert torch.equal(cuda.cuda_pack_bits(apart), reference_pack_bits(bits))


def test_what_is_not_one_is_packed_as_zero(emulated):
    assert cuda.cuda_pack_bits(torch.tensor([[1], [2], [0], [255]], dtype=torch.uint8)).tolist() == [[1]]


@pytest.mark.parametrize("num_images", IMAGES)
def test_dense(emulated, num_images):
    generator = torch.Generator().manual_seed(0)
    bits, gates = random_bits(num_images, 20), torch.arange(48) % 16
    indices = torch.randint(0, 20, (2, 48), generator=generator).unbind(0)
    expected = reference_logic_dense(bits.float(), *indices, GATE_TABLE[gates])
    words = cuda.cuda_packed_dense(pack(bits), *indices, gates)
    assert torch.equal(unpack(words, num_images), expected.long())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "pool": 2},
        {"kernel": (3, 2), "stride": (2, 1), "padding": (2, 0), "pool": 1},
    ],
)
@pytest.mark.parametrize("num_images", IMAGES)
def test_tree(emulated, num_images, geometry, depth):
    generator = torch.Generator().manual_seed(0)
    bits = random_bits(num_images, 3, 7, 6)
    channel, row, column = (
        torch.randint(0, limit, (5, 2**depth), generator=generator, dtype=torch.int32)
        for limit in (3, *geometry["kernel"])
    )
    selection = channel << 16 | row << 8 | column
    gates = torch.randint(0, 16, (5, 2**depth - 1), generator=generator)
    expected = reference_logic_tree(bits.float(), selection, GATE_TABLE[gates], **geometry)
    words = cuda.cuda_packed_tree(pack(bits), selection, gates, **geometry)
    assert torch.equal(unpack(words, num_images), expected.long())


@pytest.mark.parametrize("num_images", [1, 65, 1100])
@pytest.mark.parametrize("features, num_classes", [(10, 10), (30, 3), (4200, 2)])
def test_class_sums(emulated, num_images, features, num_classes):
    bits = random_bits(num_images, features)
    bits[:, ::3] = 1
    expected = bits.unflatten(1, (num_classes, -1)).sum(2).int()
    for order in (0, 17):
        emulated(order)
        assert torch.equal(cuda.cuda_packed_class_sums(pack(bits), num_classes, num_images), expected)


def test_counts_beyond_one_round_of_bit_planes(emulated):
    words = torch.full((3000, 1), -1)
    assert cuda.cuda_packed_class_sums(words, 1, 64).tolist() == [[3000]] * 64


def test_classes_that_do_not_divide_are_refused(emulated):
    with pytest.raises(ValueError, match="divide the 10 features"):
        cuda.cuda_packed_class_sums(torch.zeros(10, 1, dtype=torch.int64), 3, 5)
