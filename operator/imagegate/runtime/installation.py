"""The names under which the operator is installed. The chart passes them to each command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Installation:
    namespace: str
    lease: str
    """Name of the election's Lease in the namespace."""
    taint_key: str
    """The chart's key of the gate taint. A NodeGate may have another one."""
