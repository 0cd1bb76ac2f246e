"""The counts of one ImagePrefetch: its nodes by state."""

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
    """The nodes of one prefetch, counted by state."""

    counts: Mapping[NodeState, int]
    gated: int
    failures: tuple[Failure, ...] = ()
    """Newest first."""
    complete: bool = True
    """Whether the operator has decided about every node since the last change of the spec."""
    stopped: tuple[str, ...] = ()
    """Topology domains in which the rollout waits for seeds that failed."""
    skips: Mapping[str, int] = field(default_factory=dict)
    """The number of skipped nodes, by reason."""
    waiting: int = 0
    """Joining nodes whose pulls have to wait for a DaemonSet of ``startAfter``."""
    waits_for: tuple[str, str] = ("", "")
    """One of these nodes, and the DaemonSets that it waits for."""
    queued: int = 0
    """Joining nodes without a slot."""
    slots: str = ""
    """The slots that these nodes wait for, as text for people."""
    exposed: int = 0
    """Nodes on which pods without secrets can use images that are pulled with secrets."""

    @property
    def desired(self) -> int:
        return sum(n for state, n in self.counts.items() if state is not NodeState.SKIPPED)

    def of(self, state: NodeState) -> int:
        return self.counts.get(state, 0)
