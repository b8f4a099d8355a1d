"""torchlogix (https://pypi.org/project/torchlogix/, 0.1.1): the same networks in the peer's layers."""

import importlib
from typing import Any

from torch import nn

from convlogic_core import ModelSpec


def torchlogix_model(spec: ModelSpec) -> nn.Module:
    """The peer's network of the same sizes.

    Raises:
        ImportError: torchlogix, or what it needs, is not installed.
    """
    peer: Any = importlib.import_module("torchlogix.layers")
    channels, side, _ = spec.input_shape
    modules: list[nn.Module] = []
    for block in spec.conv:
        modules.append(
            peer.LogicConv2d(
                in_dim=side,
                channels=channels,
                num_kernels=block.out_channels,
                tree_depth=block.tree_depth,
                receptive_field_size=block.kernel,
                stride=block.stride,
                padding=block.padding,
                parametrization="raw",
            )
        )
        modules.append(peer.OrPooling2d(kernel_size=block.pool, stride=block.pool, padding=0))
        channels = block.out_channels
        side = ((side + 2 * block.padding - block.kernel) // block.stride + 1) // block.pool
    modules.append(nn.Flatten())
    features = spec.flat_features
    for layer in spec.dense:
        modules.append(peer.LogicDense(features, layer.out_dim, parametrization="raw"))
        features = layer.out_dim
    modules.append(peer.GroupSum(k=spec.num_classes, tau=spec.tau))
    return nn.Sequential(*modules)
