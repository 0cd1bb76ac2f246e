"""Under which names the operator is installed: what the chart tells each of its commands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Installation:
    namespace: str
    lease: str
    """Name of the election's Lease in the namespace."""
    taint_key: str
    """The chart's key of the gate taint. A NodeGate may have another one."""
