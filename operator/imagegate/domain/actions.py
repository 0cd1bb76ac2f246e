"""The actions that a decision returns: the changes to the cluster."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from imagegate.domain.facts import (
    Attempts,
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
    """The attempts to remember once the pod is created, because a pod that is created again and
    again waits longer each time."""
    afresh: bool = False
    """Whether the kubelet must ask the registry although the node lists the image, because the
    node's copy proved incomplete."""


@dataclass(frozen=True, slots=True)
class DeletePod:
    pod: Pod
    why: str
    remember: Attempts | None = None
    """The attempts to remember once the deletion was accepted, with the failure of this pod."""

    @property
    def request(self) -> Hashable:
        """Equal for all decisions that send the same request to the API server."""
        return self.pod.uid


@dataclass(frozen=True, slots=True)
class Postpone:
    """Start no pull of this group before the remembered time. Nothing is written."""

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
    """Remove the annotation, because an uninstall leaves nothing behind."""
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
        """Equal for all decisions that send the same request to the API server."""
        return (
            self.node.uid,
            tuple(sorted(self.set_labels.items())),
            self.drop_labels,
            self.observed,
            self.forget,
            self.remove,
            # Without the taint's time, because it differs in each decision.
            self.add is not None and (self.add.key, self.add.effect),
        )


Action = CreatePod | DeletePod | Postpone | PatchNode


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of the node for one prefetch after this decision."""

    state: NodeState
    pulling: bool = False
    """Whether a pull is or may be in flight: the node keeps its slot."""
    wants: bool = False
    """Whether a pull would start now if the node had a slot."""
    failure: Attempts | None = None
    skipped: str = ""
    waits_for: str = ""
    """The DaemonSets of ``startAfter`` that keep its pulls from starting, as text for people."""
    startable: bool = True
    """Whether the node could begin a pull: it is settled and not skipped."""
    reads_disk: bool = False
    """Whether its disk usage must be read first. The node keeps its slot meanwhile."""
    exposed: bool = False
    """Whether pods without secrets can use images that are pulled with secrets (`credentials`)."""
