"""The facts for the decision about one share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from imagegate.domain import disk, match
from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    Attempts,
    DaemonSetRef,
    ImageFacts,
    ImageSize,
    Listed,
    Node,
    OnReboot,
    Pod,
    Prefetch,
)


@dataclass(frozen=True, slots=True)
class Share:
    """One node's share of one live, matching prefetch. It has no facts about other shares, because
    a decision is reused while its share is equal (`outcome`).
    """

    prefetch: Prefetch
    pods: tuple[Pod, ...] = ()
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    """Remembered failures by group key."""
    pulled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Per pod uid, the images that the kubelet has reported as pulled."""
    failed_at: Mapping[str, float] = field(default_factory=dict)
    """Per pod uid, when this process saw the pod fail; absent if the pod was already failing when
    this process first saw it."""
    finished_at: Mapping[str, float] = field(default_factory=dict)
    """Per pod uid, when this process first saw the pod finished, by its own clock. It may have
    other pods, because the time of a pod never changes, so nothing has to be compared."""
    started: Mapping[str, str] = field(default_factory=dict)
    """By group key, the uid of the puller pod that was last seen unfinished, and that the operator
    did not delete."""
    slots: str = ""
    """What a joining node without a slot waits for, for messages."""
    has_slot: bool = False
    """Whether the node has a slot of the rollout, that is, may start pulling now."""
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """The registry's facts, by image reference."""
    inspected: bool = True
    """Whether the registry was asked. A pull waits for its answer, but only for a short time."""
    unready: Mapping[DaemonSetRef, str] = field(default_factory=dict)
    """The DaemonSets of ``startAfter`` that are not known to have been Ready on the node since its
    boot, each with the reason; the reason is empty until the DaemonSet was read."""

    def size(self, reference: str, node: Node) -> ImageSize | None:
        known = self.images.get(reference)
        return known.sizes.get(node.platform) if known is not None else None

    def parts(self, references: Iterable[str], node: Node) -> dict[disk.Key, int]:
        """The layers and images of these references on the node, as far as known (`disk.parts`)."""
        names = {image.reference: image.listed_as for image in self.prefetch.images}
        return disk.parts((names.get(ref) or ref, self.size(ref, node)) for ref in references)


@dataclass(frozen=True)
class Contents:
    """The layers and images on a node's disk. They are collected when a decision asks for them,
    because most decisions do not.
    """

    node: Node
    shares: tuple[Share, ...]

    @cached_property
    def held(self) -> frozenset[disk.Key]:
        """Those that need no more room: the node lists them, or a finished pod pins them and the
        kubelet does not list them yet.
        """
        held: set[disk.Key] = set()
        for share in self.shares:
            images = share.prefetch.images
            listed = [i.reference for i in images if i.listed_as in self.node.listed]
            pulled = [
                reference
                for pod in share.pods
                if pod.phase == "Succeeded" and pod.machine == self.node.uid
                for reference in pod.images
            ]
            held.update(share.parts((*listed, *pulled), self.node))
        return frozenset(held)

    @cached_property
    def in_flight(self) -> Mapping[disk.Key, int]:
        """Those that unfinished puller pods bring to the node, see `disk.parts`."""
        return {
            key: count
            for share in self.shares
            for pod in share.pods
            if not pod.finished and pod.machine == self.node.uid
            for key, count in share.parts(pod.images, self.node).items()
            if key not in self.held
        }


@dataclass(frozen=True, slots=True)
class Passing:
    """Facts about the node that change often, and that few decisions read."""

    contents: Contents
    starting: Mapping[disk.Key, int] = field(default_factory=dict)
    """The layers and images of the pulls that earlier shares start in this decision."""
    usage: Usage | None = None
    """The node's disk usage; None: it was not read recently."""
    settles_at: float | None = None
    """When an image that the node does not list counts as missing, because the node's labels have
    not changed for long enough; None: never."""

    @property
    def held(self) -> frozenset[disk.Key]:
        return self.contents.held

    @property
    def reserved(self) -> Mapping[disk.Key, int]:
        """The layers and images that pulls in flight bring to the node."""
        return {**self.contents.in_flight, **self.starting}


@dataclass(frozen=True, slots=True)
class Site:
    """The facts that all shares of one node have in common."""

    passing: Passing
    """Read by `decision.ShareDecision.passing`, because a decision from these facts is not reused.
    """
    gated: bool = False
    queued: int = 0
    """Compressed bytes of all images that a kubelet with serial pulls may have to pull."""
    away_at: float | None = None
    """When the node's slot is freed because the node is not Ready; None: it is Ready."""
    seen: Mapping[str, Listed] = field(default_factory=dict)
    """The images that the node has listed since its labels last changed, by name."""

    @property
    def compared(self) -> tuple[object, ...]:
        """The facts on which a decision that is reused may depend. ``queued`` is not one of them,
        because the few decisions that read it note its value.
        """
        return self.gated, self.away_at, self.seen


def ended(pod: Pod, share: Share, now: float) -> float:
    """When a pod finished: when this process first saw it finished. If that is not known, the time
    in its status within possible bounds, because that time is by the clock of the node.
    """
    claimed = pod.finished_at if pod.finished_at is not None else pod.created_at
    return share.finished_at.get(pod.uid, min(max(claimed, pod.created_at), now))


def same_life(identity: str, node: Node, prefetch: Prefetch) -> bool:
    """Whether a record that was made under ``identity`` is still valid for the node."""
    if identity == node.identity:
        return True
    uid = identity.partition("/")[0]
    return uid == node.uid and prefetch.gate.on_reboot is OnReboot.IGNORE


def labelled(node: Node, prefetch: Prefetch) -> bool:
    """Whether the node has a valid label for the target."""
    return node.labels.get(prefetch.label) == prefetch.target and same_life(
        node.observed, node, prefetch
    )


def no_image(share: Share, node: Node) -> str | None:
    """The reason for skipping the node, if none of the images exists for its platform."""
    known = [share.images.get(image.reference) for image in share.prefetch.images]
    if known and all(facts is not None and node.platform in facts.missing for facts in known):
        return match.NO_IMAGE
    return None
