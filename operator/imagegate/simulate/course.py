"""The result of a simulated rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Course:
    strategy: str
    nodes: int
    cached_at: tuple[float, ...]
    """Seconds until each node held the image, in the order in which they did."""
    cached: tuple[str, ...]
    """The nodes in the same order."""
    started: tuple[tuple[float, str], ...]
    """When each pull began, and on which node."""
    failed: int
    """Attempts that failed."""
    refused: int
    """Those that the registry refused."""
    most_pulls: int
    """The largest number of pulls at a time."""
    registry_bytes: float
    registry_rates: tuple[tuple[float, float], ...]
    """(time, bytes a second): what the registry sends from that time on."""
    ended_at: float
    """When the simulation ended: all nodes are cached, or it was given up."""

    def seconds_to(self, percent: float) -> float | None:
        """Seconds until this share of the nodes is cached; None: it never was."""
        count = max(1, math.ceil(self.nodes * percent / 100))
        return self.cached_at[count - 1] if len(self.cached_at) >= count else None

    @property
    def complete(self) -> bool:
        return len(self.cached_at) == self.nodes

    @property
    def registry_peak(self) -> float:
        """Bytes a second."""
        return max(rate for _, rate in self.registry_rates)

    @property
    def exposed(self) -> int:
        """Nodes whose pull had begun before the first node held the image. If the image is broken,
        it fails on as many nodes before that is known.
        """
        first = self.cached_at[0] if self.cached_at else self.ended_at
        return len({node for at, node in self.started if at < first})
