"""One op a file: the plain-PyTorch reference, the registered op (see `op`), its fake and its gradient.

`implementation` chooses: "python" is the reference itself, "cpu" and "cuda" are the native extensions, whose device the
tensors must lie on; "auto" takes the one of the tensors' device where it was built and runs, the reference elsewhere.
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
