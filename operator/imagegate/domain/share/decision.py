"""The decision about one share while it is made: the facts, and the conclusions so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from imagegate.domain import disk, match, retry
from imagegate.domain.actions import Action, DeletePod, Postpone, Standing
from imagegate.domain.facts import (
    Attempts,
    DaemonSetRef,
    Group,
    ImageSize,
    Node,
    NodeState,
    Pod,
    Prefetch,
)
from imagegate.domain.retry import History
from imagegate.domain.share.known import Passing, Share, Site, ended, same_life
from imagegate.domain.share.pods import Pods


@dataclass(slots=True)
class ShareDecision:
    """Every step of this package reads the facts and adds its conclusions."""

    share: Share
    node: Node
    site: Site
    now: float
    pods: Pods

    state: NodeState = NodeState.PENDING
    cached: bool = False
    labelled: bool = False
    pulling: bool = False
    """Whether a pull is or may be in flight: the node keeps its slot."""
    wants: bool = False
    """Whether a pull would start now if the node had a slot."""
    failure: Attempts | None = None
    """See `blame`."""
    skipped: str = ""
    startable: bool = True
    """Whether the node could begin a pull: it is settled and not skipped."""
    evicted: bool = False
    """Whether the label is not valid any more, because an image is missing or stale."""
    wants_usage: bool = False
    """Whether more could be decided if the node's disk usage were known."""
    starting: Mapping[disk.Key, int] = field(default_factory=dict)
    """The layers and images that the pulls which start now bring to the node."""
    awaits: Mapping[DaemonSetRef, str] = field(default_factory=dict)
    """The DaemonSets that keep a due pull from starting: see `Share.unready`."""
    exposed: bool = False
    """Whether pods without secrets can use images that are pulled with secrets (`credentials`)."""
    actions: list[Action] = field(default_factory=list)
    requeue: list[float] = field(default_factory=list)
    """The times at which to decide again, if no event causes a decision before."""
    lasting: bool = True
    """Whether the decision stays the same until a fact that `outcome.Outcome.holds` compares
    changes, or a time in ``requeue`` comes."""
    queued: int | None = None
    """The value of `Site.queued`, if the decision depends on it."""

    # The facts.

    @property
    def prefetch(self) -> Prefetch:
        return self.share.prefetch

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.share.prefetch.groups

    @property
    def unready(self) -> Mapping[DaemonSetRef, str]:
        """The DaemonSets that pulls wait for. Nodes in service wait for none."""
        joining = match.joining(self.node, gated=self.site.gated)
        return self.share.unready if joining else {}

    @property
    def passing(self) -> Passing:
        self.lasting = False
        return self.site.passing

    def same_life(self, identity: str) -> bool:
        """Whether a record that was made under ``identity`` is still valid for the node."""
        return same_life(identity, self.node, self.prefetch)

    def ended(self, pod: Pod) -> float:
        """When a finished pod ended, see `known.ended`."""
        if pod.uid not in self.share.finished_at:
            self.lasting = False  # the time may be the present time
        return ended(pod, self.share, self.now)

    def attempts(self, group: Group) -> Attempts | None:
        """The remembered attempts of a group."""
        return self.share.attempts.get(group.key)

    def history(self, group: Group, at: float | None = None) -> History:
        """The attempts of a group, for one more attempt that ended at ``at``; None: now."""
        return History(
            self.attempts(group),
            spec=self.prefetch.retry,
            key=f"{self.node.name}/{group.key}",
            now=self.now if at is None else at,
        )

    def size(self, reference: str) -> ImageSize | None:
        """The size of an image on this node's platform; None: not known."""
        return self.share.size(reference, self.node)

    def parts(self, references: Iterable[str]) -> dict[disk.Key, int]:
        """The layers and images of these references on this node's platform (`disk.parts`)."""
        return self.share.parts(references, self.node)

    def deadline(self, pod: Pod, images: Iterable[str]) -> float:
        """The time at which the pull of these images by this pod has taken too long."""
        return pod.created_at + self.timeout(images)

    def timeout(self, images: Iterable[str]) -> float:
        """Seconds after which a pull of these images has taken too long."""
        # A followed tag is pulled by its digest as well. Sizes are known by the tag.
        tags = [reference for reference in images if "@" not in reference] or images
        known = all(self.size(reference) is not None for reference in tags)
        if known:
            self.queued = self.site.queued
        return retry.deadline(self.prefetch.retry, self.site.queued if known else None)

    # The conclusions.

    def look_again(self, at: float) -> None:
        self.requeue.append(at)

    def delete(self, pod: Pod, why: str, remember: Attempts | None = None) -> None:
        self.blame(remember)
        self.actions.append(DeletePod(pod, why, remember))

    def postpone(self, group: Group, remember: Attempts) -> None:
        """Start nothing for this group before its back-off is over."""
        self.blame(remember)
        self.actions.append(Postpone(self.prefetch, self.node, group, remember))

    def blame(self, attempts: Attempts | None) -> None:
        """Keep the failure that best explains why the node is not cached: a permanent failure
        first, then the failure with the most attempts.
        """
        worst = self.failure
        if attempts is not None and (
            worst is None or (attempts.permanent, attempts.count) > (worst.permanent, worst.count)
        ):
            self.failure = attempts

    # The result.

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
