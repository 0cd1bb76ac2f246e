"""What a node and one ImagePrefetch have to do with each other: what is known, what is decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from imagegate.domain import disk, match
from imagegate.domain.actions import Action, Standing
from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    Attempts,
    DaemonSetRef,
    ImageFacts,
    ImageSize,
    Listed,
    Node,
    NodeState,
    OnReboot,
    Pod,
    Prefetch,
)


@dataclass(frozen=True, slots=True)
class Share:
    """What this node and one live, matching prefetch have to do with each other."""

    prefetch: Prefetch
    pods: tuple[Pod, ...] = ()
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    """Remembered failures by group key."""
    pulled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Per pod uid, the images that the kubelet has reported as pulled."""
    failed_at: Mapping[str, float] = field(default_factory=dict)
    """Per pod uid, when this process watched it fail; absent if it was found failing."""
    finished_at: Mapping[str, float] = field(default_factory=dict)
    """Per pod uid, when this process first saw it finished, by its own clock."""
    started: Mapping[str, str] = field(default_factory=dict)
    """By group key, the uid of the puller pod that was last seen unfinished, and that the operator
    did not delete."""
    slots: str = ""
    """What the node waits for where it is a joining one and has no place, for people."""
    place: bool = False
    """Whether the node has a place in the rollout, that is, may start pulling now."""
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """What the registry says, by reference."""
    inspected: bool = True
    """Whether the registry has been asked: a pull waits for it, for a moment only."""
    unready: Mapping[DaemonSetRef, str] = field(default_factory=dict)
    """What of ``startAfter`` is not known to have been Ready on the node since its boot, and why
    not; the reason is empty until somebody has looked."""

    def size(self, reference: str, node: Node) -> ImageSize | None:
        known = self.images.get(reference)
        return known.sizes.get(node.platform) if known is not None else None

    def parts(self, references: Iterable[str], node: Node) -> dict[disk.Key, int]:
        """What these images consist of on the node, as far as that is known (`disk.parts`)."""
        names = {image.reference: image.listed_as for image in self.prefetch.images}
        return disk.parts((names.get(ref) or ref, self.size(ref, node)) for ref in references)


@dataclass(frozen=True, slots=True)
class Site:
    """What all shares of one node have in common."""

    gated: bool = False
    usage: Usage | None = None
    """None: not read lately."""
    held: frozenset[disk.Key] = frozenset()
    """The layers and images that are on the node: they need no more room."""
    reserved: Mapping[disk.Key, int] = field(default_factory=dict)
    """What pulls in flight bring to the node, see `disk.parts`."""
    queued: int = 0
    """Compressed bytes of everything that a serial kubelet may have to pull before the last."""
    away_at: float | None = None
    """When the node gives its slot back because it is not Ready; None: it is Ready."""
    seen: Mapping[str, Listed] = field(default_factory=dict)
    """What the node has listed since its labels are as they are, by name."""
    settles_at: float | None = None
    """When our labels have been as they are for so long that images can be missed; None: never."""


@dataclass(slots=True)
class Outcome:
    """The result for one share; built up step by step, then read by the node's decision."""

    state: NodeState = NodeState.PENDING
    cached: bool = False
    labelled: bool = False
    pulling: bool = False
    wants: bool = False
    failure: Attempts | None = None
    skipped: str = ""
    startable: bool = True
    evicted: bool = False
    """Whether the label is not true any more: an image is gone."""
    wants_usage: bool = False
    starting: Mapping[disk.Key, int] = field(default_factory=dict)
    """What the pulls that are started now bring to the node."""
    awaits: Mapping[DaemonSetRef, str] = field(default_factory=dict)
    """What keeps a pull that is due from starting: see `Share.unready`."""
    exposed: bool = False
    """Whether images that are pulled with secrets can be used there without (`credentials`)."""
    actions: list[Action] = field(default_factory=list)
    requeue: list[float] = field(default_factory=list)

    @property
    def standing(self) -> Standing:
        return Standing(
            self.state,
            self.pulling,
            self.wants,
            self.failure,
            self.skipped,
            self.waits_for,
            self.startable,
            self.wants_usage,
            self.exposed and self.state is not NodeState.SKIPPED,
        )

    @property
    def waits_for(self) -> str:
        return ", ".join(
            f"DaemonSet {daemon_set} to be Ready on the node" + (f" ({why})" if why else "")
            for daemon_set, why in self.awaits.items()
        )

    def blame(self, attempts: Attempts | None) -> None:
        """Keep the failure that says most about why the node is not cached: a permanent one, then
        the one tried most often.
        """
        worst = self.failure
        if attempts is not None and (
            worst is None or (attempts.permanent, attempts.count) > (worst.permanent, worst.count)
        ):
            self.failure = attempts


def ended(pod: Pod, share: Share, now: float) -> float:
    """When a pod was done: when this process saw it first. The time in its status is by the clock
    of the node, and counts only where nothing else is known, within what is possible.
    """
    claimed = pod.finished_at if pod.finished_at is not None else pod.created_at
    return share.finished_at.get(pod.uid, min(max(claimed, pod.created_at), now))


def same_life(identity: str, node: Node, prefetch: Prefetch) -> bool:
    """Whether something recorded under ``identity`` still holds for the node as it is now."""
    if identity == node.identity:
        return True
    uid = identity.partition("/")[0]
    return uid == node.uid and prefetch.gate.on_reboot is OnReboot.IGNORE


def labelled(node: Node, prefetch: Prefetch) -> bool:
    """Whether the node's label says, and is still to be believed, that it holds the target."""
    return node.labels.get(prefetch.label) == prefetch.target and same_life(
        node.observed, node, prefetch
    )


def no_image(share: Share, node: Node) -> str | None:
    """Whether no image at all is there for the node's platform."""
    known = [share.images.get(image.reference) for image in share.prefetch.images]
    if known and all(facts is not None and node.platform in facts.missing for facts in known):
        return match.NO_IMAGE
    return None
