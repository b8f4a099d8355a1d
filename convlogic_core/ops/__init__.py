"""One op a file: the plain-PyTorch reference, the registered custom op, its fake and its gradient.

`implementation` chooses: "python" is the reference itself; "cpu" is the native extension; "auto" takes the
native extension where the tensor lies on a CPU and the extension was built, the reference everywhere else.
"""

from .gate_coefficients import gate_coefficients
from .logic_dense import logic_dense
from .logic_forest import forest_wiring, logic_forest
from .logic_tree import logic_tree
from .packed import highest_class, pack_bits, packed_class_sums, packed_dense, packed_tree, unpack_bits

__all__ = [
    "forest_wiring",
    "gate_coefficients",
    "highest_class",
    "logic_dense",
    "logic_forest",
    "logic_tree",
    "pack_bits",
    "packed_class_sums",
    "packed_dense",
    "packed_tree",
    "unpack_bits",
]
