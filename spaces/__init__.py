"""What may be searched: one file a family, one `Space` a name.

A space turns sampled parameters into a `Candidate` (data, model and training, frozen, JSON) and knows its baseline.
"""

from .candidate import Candidate, DataSpec, TrainSpec
from .registry import SPACES
from .space import Budget, Known, Space

__all__ = ["SPACES", "Budget", "Candidate", "DataSpec", "Known", "Space", "TrainSpec"]
