"""Circuits: a discretized network as a netlist that can be counted, simplified, run on packed bits, saved and exported.

`Circuit` is the netlist; one file an export format writes it.
"""

from .counts import CircuitCounts, LayerCounts
from .netlist import Circuit

__all__ = ["Circuit", "CircuitCounts", "LayerCounts"]
