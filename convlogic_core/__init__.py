"""Convolutional differentiable logic gate networks: layers, model specs, native kernels.

`ConvLogicLayer`, `LogicLayer` and `GroupSum` are drop-in for the field's code, `LogicNetwork` is a faster nn.Sequential
of them; `build_model` builds one from a `ModelSpec`.
"""

from .layers import ConvLogicLayer, GroupSum, LogicLayer, set_estimator, soft_evaluation
from .model import PRESETS, ConvSpec, DenseSpec, ModelSpec, build_model, num_parameters, raw_gates
from .network import LogicNetwork

__all__ = [
    "PRESETS",
    "ConvLogicLayer",
    "ConvSpec",
    "DenseSpec",
    "GroupSum",
    "LogicLayer",
    "LogicNetwork",
    "ModelSpec",
    "build_model",
    "num_parameters",
    "raw_gates",
    "set_estimator",
    "soft_evaluation",
]
