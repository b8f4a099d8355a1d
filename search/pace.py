"""When a worker is stuck: it takes many times longer for an epoch than any epoch took before, gate for gate."""

from typing import Final

from convlogic_core import raw_gates

from .jobs import Job

LEAST_S: Final = 600.0
FACTOR: Final = 20.0
FIRST_EPOCH_S: Final = 3600.0  # while nothing is known to compare with


class Pace:
    """The slowest epoch so far, in seconds a gate: candidates of one space differ in size a hundredfold."""

    def __init__(self) -> None:
        self._slowest_s_per_gate: float | None = None

    def epoch_took(self, job: Job, duration_s: float) -> None:
        """A job finished an epoch."""
        self._slowest_s_per_gate = max(self._slowest_s_per_gate or 0.0, duration_s / raw_gates(job.candidate.model))

    def limit_s(self, job: Job) -> float:
        """How long an epoch of the job may take before its worker counts as stuck.

        The larger of ten minutes and 20 times what the slowest epoch so far would take with as many gates; an hour
        while no epoch was seen.
        """
        if self._slowest_s_per_gate is None:
            return FIRST_EPOCH_S
        return max(LEAST_S, FACTOR * self._slowest_s_per_gate * raw_gates(job.candidate.model))
