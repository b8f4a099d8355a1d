"""Thermometer encoding: how bytes become the bits a logic network reads.

Shapes: N images, C channels, H height, W width, T thresholds a channel.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

ThresholdKind = Literal["uniform", "quantile"]
MAX_NUM_THRESHOLDS = 255


def thermometer_thresholds(images: Tensor, num: int, kind: ThresholdKind) -> Tensor:
    """Byte thresholds for each channel, to be taken from training images only.

    "uniform" divides 0..256 into `num` + 1 equal steps: 128 for one threshold, so that the bit is the byte's top bit,
    and 64, 128, 192 for three. "quantile" takes, for i = 1..num, the smallest byte v such that at least i / (num + 1)
    of the channel's non-zero pixels are <= v. Zeros are left out because they are the background of handwriting-like
    data: counted in, they would pull most thresholds down to nothing. A channel that is zero throughout has no
    quantiles and gets the uniform thresholds.

    Args:
        images: (N, C, H, W) uint8.
        num: T, 1 to 255.
        kind: "uniform" or "quantile".

    Returns:
        (C, T) uint8 on the images' device, each row non-decreasing and at least 1. Quantiles of few distinct values
        repeat.

    Raises:
        ValueError: `images`, `num` or `kind` is not as above.
    """
    _check_images(images)
    if not 1 <= num <= MAX_NUM_THRESHOLDS:
        raise ValueError(
            f"{num} thresholds a channel: a byte has room for 1 to {MAX_NUM_THRESHOLDS}; choose within that"
        )
    if kind not in get_args(ThresholdKind):
        raise ValueError(f"thresholds of kind {kind!r}: choose one of {', '.join(get_args(ThresholdKind))}")

    steps = torch.arange(1, num + 1, device=images.device)
    uniform = 256 * steps // (num + 1)
    rows = [uniform] * images.shape[1]
    if kind == "quantile":
        for channel in range(images.shape[1]):
            counts = torch.bincount(images[:, channel].flatten(), minlength=256)
            counts[0] = 0
            num_up_to = counts.cumsum(0)
            num_pixels = num_up_to[-1]
            if num_pixels > 0:
                # Integers on both sides: a float quantile would miss the ties.
                rows[channel] = torch.searchsorted(num_up_to * (num + 1), steps * num_pixels)
    return torch.stack(rows).to(torch.uint8)


def thermometer_encode(images: Tensor, thresholds: Tensor) -> Tensor:
    """One bit plane for each channel and threshold: bit = pixel >= threshold.

    Args:
        images: (N, C, H, W) uint8.
        thresholds: (C, T) uint8.

    Returns:
        (N, C * T, H, W) uint8 of zeros and ones on the images' device; plane c * T + t is channel c against its
        threshold t.

    Raises:
        ValueError: the images are not (N, C, H, W) uint8, or the thresholds not (C, T) uint8 for the same C.
    """
    _check_images(images)
    num_channels = images.shape[1]
    if thresholds.dtype != torch.uint8 or thresholds.ndim != 2 or thresholds.shape[0] != num_channels:
        raise ValueError(
            f"thresholds are {_describe(thresholds)}: images of {num_channels} channels need ({num_channels}, T) "
            "uint8, as thermometer_thresholds gives for images of that many channels"
        )
    bits = images.unsqueeze(2) >= thresholds.to(images.device)[:, :, None, None]  # (N, C, T, H, W)
    return bits.flatten(1, 2).view(torch.uint8)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] == 0:
        raise ValueError(f"images are {_describe(images)}: pass bytes as (N, C, H, W) uint8 with C >= 1")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
