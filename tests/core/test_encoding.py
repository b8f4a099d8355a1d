import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from convlogic_core.encoding import thermometer_encode, thermometer_thresholds

KINDS = ["uniform", "quantile"]

images_of_bytes = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5),
    elements=st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 128, 255])),
).map(torch.from_numpy)


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("num", "expected"), [(1, [128]), (3, [64, 128, 192]), (255, list(range(1, 256)))])
def test_uniform_thresholds(num: int, expected: list[int]) -> None:
    assert thermometer_thresholds(random_images(2, 2, 3, 3), num, "uniform").tolist() == [expected, expected]


def test_one_uniform_threshold_is_the_top_bit() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    bits = thermometer_encode(every_byte, thermometer_thresholds(every_byte, 1, "uniform"))
    assert torch.equal(bits, every_byte >> 7)


def test_quantiles_leave_the_background_out_and_each_channel_has_its_own() -> None:
    images = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    images[0, 0, 0, :4] = torch.tensor([40, 10, 30, 20], dtype=torch.uint8)
    images[0, 1, 0, :4] = 200
    # The third channel is empty: nothing to take quantiles of.
    assert thermometer_thresholds(images, 3, "quantile").tolist() == [[10, 20, 30], [200, 200, 200], [64, 128, 192]]


@given(images=images_of_bytes, num=st.integers(1, 9))
def test_quantile_is_the_smallest_byte_with_that_share_below_or_at_it(images: Tensor, num: int) -> None:
    for channel, row in enumerate(thermometer_thresholds(images, num, "quantile").tolist()):
        ink = sorted(pixel for pixel in images[:, channel].flatten().tolist() if pixel > 0)
        if ink:
            assert row == [ink[-(-i * len(ink) // (num + 1)) - 1] for i in range(1, num + 1)]


@given(images=images_of_bytes, num=st.integers(1, 255), kind=st.sampled_from(KINDS))
def test_thresholds_are_bytes_of_at_least_one_and_never_decrease(images: Tensor, num: int, kind: str) -> None:
    thresholds = thermometer_thresholds(images, num, kind)
    assert thresholds.shape == (images.shape[1], num)
    assert thresholds.dtype == torch.uint8
    assert thresholds.min() >= 1
    assert (thresholds.int().diff(dim=1) >= 0).all()


@given(images=images_of_bytes, data=st.data())
def test_encode_equals_a_loop_over_pixels(images: Tensor, data: st.DataObject) -> None:
    num_images, num_channels, height, width = images.shape
    num = data.draw(st.integers(1, 4))
    thresholds = torch.from_numpy(data.draw(hnp.arrays(np.uint8, (num_channels, num))))
    bits = thermometer_encode(images, thresholds)
    assert bits.dtype == torch.uint8
    assert bits.is_contiguous()
    assert bits.shape == (num_images, num_channels * num, height, width)
    for n, c, h, w in np.ndindex(*images.shape):
        for t in range(num):
            assert bits[n, c * num + t, h, w].item() == int(images[n, c, h, w].item() >= thresholds[c, t].item())


@given(images=images_of_bytes, num=st.integers(2, 5), kind=st.sampled_from(KINDS))
def test_a_thermometer_fills_from_below(images: Tensor, num: int, kind: str) -> None:
    bits = thermometer_encode(images, thermometer_thresholds(images, num, kind))
    levels = bits.unflatten(1, (images.shape[1], num)).int()
    assert (levels.diff(dim=2) <= 0).all()


def test_encode_takes_strided_images_and_an_empty_batch() -> None:
    images = random_images(4, 6, 6, 3).permute(0, 3, 1, 2)[::2, :, 1:]
    thresholds = thermometer_thresholds(images, 3, "quantile")
    bits = thermometer_encode(images, thresholds)
    assert bits.is_contiguous()
    assert torch.equal(bits, thermometer_encode(images.contiguous(), thresholds))
    assert thermometer_encode(images[:0], thresholds).shape == (0, 9, 5, 6)


@pytest.mark.parametrize(
    ("images", "num", "kind", "message"),
    [
        (torch.zeros(2, 1, 3, 3), 1, "uniform", r"\(2, 1, 3, 3\) float32: .*\(N, C, H, W\) uint8"),
        (random_images(2, 3, 3), 1, "uniform", r"\(2, 3, 3\) uint8: .*\(N, C, H, W\)"),
        (random_images(2, 1, 3, 3), 0, "uniform", "0 thresholds.*1 to 255"),
        (random_images(2, 1, 3, 3), 256, "quantile", "256 thresholds.*1 to 255"),
        (random_images(2, 1, 3, 3), 2, "gaussian", "'gaussian'.*uniform, quantile"),
    ],
)
def test_bad_arguments_of_thresholds(images: Tensor, num: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thermometer_thresholds(images, num, kind)


@pytest.mark.parametrize(
    ("images", "thresholds", "message"),
    [
        (torch.zeros(2, 1, 3, 3), random_images(1, 1), r"float32: .*uint8"),
        (random_images(2, 3, 3, 3), random_images(2, 1), r"\(2, 1\) uint8: images of 3 channels need \(3, T\)"),
        (random_images(2, 3, 3, 3), torch.full((3, 1), 256), r"\(3, 1\) int64.*uint8"),
        (random_images(2, 3, 3, 3), random_images(3), r"\(3,\) uint8.*\(3, T\)"),
    ],
)
def test_bad_arguments_of_encode(images: Tensor, thresholds: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thermometer_encode(images, thresholds)
