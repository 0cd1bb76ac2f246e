"""The counts of one ImagePrefetch: how its nodes stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imagegate.domain.facts import Attempts, NodeState


@dataclass(frozen=True, slots=True)
class Failure:
    node: str
    attempts: Attempts


@dataclass(frozen=True, slots=True)
class Tally:
    """How the nodes stand with one prefetch."""

    counts: Mapping[NodeState, int]
    gated: int
    failures: tuple[Failure, ...] = ()
    """Newest first."""
    complete: bool = True
    """Whether every node has been decided about since the last change of the spec."""
    stopped: tuple[str, ...] = ()
    """Topology domains in which the rollout waits for seeds that failed."""
    skips: Mapping[str, int] = field(default_factory=dict)
    """Nodes that are left alone, by reason."""
    waiting: int = 0
    """Joining nodes whose pulls have to wait for a DaemonSet of ``startAfter``."""
    waits_for: tuple[str, str] = ("", "")
    """One of them, and what it waits for."""
    queued: int = 0
    """Joining nodes without a slot."""
    slots: str = ""
    """What these wait for."""
    exposed: int = 0
    """Nodes on which images that are pulled with secrets can be used without."""

    @property
    def desired(self) -> int:
        return sum(n for state, n in self.counts.items() if state is not NodeState.SKIPPED)

    def of(self, state: NodeState) -> int:
        return self.counts.get(state, 0)
