"""What a decision asks for: the union of things that are done to the cluster."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from imagegate.domain.facts import (
    Attempts,
    DaemonSetRef,
    Group,
    Node,
    NodeState,
    Pod,
    Prefetch,
    Taint,
)


class ReleaseReason(StrEnum):
    """Why a node was released; label of ``imagegate_gate_releases_total``."""

    CACHED = "cached"
    TIMEOUT = "timeout"
    FAILED = "failed"
    UNMATCHED = "unmatched"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class CreatePod:
    prefetch: Prefetch
    node: Node
    group: Group
    attempt: int
    remember: Attempts | None = None
    """What to remember once it is created: a pod that is put back again and again waits longer."""
    afresh: bool = False
    """The registry is to be asked for what the node says it has: that has proved wrong."""


@dataclass(frozen=True, slots=True)
class DeletePod:
    pod: Pod
    why: str
    remember: Attempts | None = None
    """What the failure of this pod is remembered as, once the deletion was accepted."""

    @property
    def request(self) -> Hashable:
        """The same for every decision that asks the API server for the same."""
        return self.pod.uid


@dataclass(frozen=True, slots=True)
class Postpone:
    """Start nothing for this group before the time that is remembered: nothing is written."""

    prefetch: Prefetch
    node: Node
    group: Group
    remember: Attempts


@dataclass(frozen=True, slots=True)
class PatchNode:
    """One atomic change of one Node: labels, annotation and taint together."""

    node: Node
    set_labels: Mapping[str, str] = field(default_factory=dict)
    drop_labels: tuple[str, ...] = ()
    observed: str | None = None
    forget: bool = False
    """Remove the annotation: nothing of ours shall be left (uninstall)."""
    remove: tuple[Taint, ...] = ()
    """The gate's taints on the node, of the present key and of earlier keys."""
    add: Taint | None = None
    release: ReleaseReason | None = None
    message: str = ""

    @property
    def empty(self) -> bool:
        return not (
            self.set_labels
            or self.drop_labels
            or self.observed
            or self.forget
            or self.remove
            or self.add
        )

    @property
    def request(self) -> Hashable:
        """The same for every decision that asks the API server for the same."""
        return (
            self.node.uid,
            tuple(sorted(self.set_labels.items())),
            self.drop_labels,
            self.observed,
            self.forget,
            self.remove,
            # Without its time, which is another in each decision.
            self.add is not None and (self.add.key, self.add.effect),
        )


Action = CreatePod | DeletePod | Postpone | PatchNode


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the node stands with one prefetch after this decision."""

    state: NodeState
    pulling: bool = False
    """Whether a pull is or may be in flight: the node keeps its slot."""
    wants: bool = False
    """Whether a pull would start now if the node had a slot."""
    failure: Attempts | None = None
    skipped: str = ""
    waits_for: str = ""
    """What of ``startAfter`` keeps its pulls from starting, for people."""
    startable: bool = True
    """Whether the node could begin a pull at all: it is settled, and not left alone."""
    reads_disk: bool = False
    """Whether its disk usage has to be read before it can go on. It keeps its slot meanwhile."""
    exposed: bool = False
    """Whether images that are pulled with secrets can be used there without (`credentials`)."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    actions: tuple[Action, ...] = ()
    requeue_at: float | None = None
    standings: Mapping[str, Standing] = field(default_factory=dict)
    held: bool = False
    """Whether the gate taint is on the node and stays."""
    holding: str = ""
    """Why it stays, for people."""
    wants_usage: bool = False
    """Whether more could be decided if the node's disk usage were known."""
    awaits: frozenset[DaemonSetRef] = frozenset()
    """What has to be Ready on the node before a pull that is due may start."""
