"""Images that a node does not hold as its label says: how that is proved, and what follows.

A kubelet under pressure collects images, a person may remove them, and a mirror may have answered
for a tag with what it was before. Pull, collect, pull is a loop, so the next pull waits longer each
time, and a person is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imagegate.domain import retry
from imagegate.domain.actions import DeletePod, Postpone
from imagegate.domain.facts import Group, Listed, Node, NodeState, Pod
from imagegate.domain.share import Outcome, Share, Site, ended

LISTED_AFTER = 180.0
"""Seconds after which an image that was pulled is surely in ``status.images``, if it is large
enough: the kubelet looks every 30 s and writes every 10 s; the rest is for a watch that broke."""

REMEMBERED = 3600.0
"""Seconds for which an image that was removed again and again is still reported."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a node does not hold what its label says."""

    image: str
    failure: retry.FailureClass
    message: str


def losses(share: Share, node: Node, seen: Mapping[str, Listed]) -> dict[str, Loss]:
    """The groups of which an image is not what it should be, each with that image.

    ``seen``: what the node has listed since its labels are as they are, by name.
    """
    return {**stale(share, node), **_gone(share, node, seen)}


def _gone(share: Share, node: Node, seen: Mapping[str, Listed]) -> dict[str, Loss]:
    """The groups of which an image has been removed behind our back.

    It is proved by a kubelet that listed the image under this name, and does not list it any more
    although it is larger than an image that it lists. Absence alone proves nothing: the kubelet
    lists 50 images with five names each, a webhook may have rewritten the name, and the runtime may
    spell it in another way. Nor does a pod that was put back and fails to pull: the kubelet may
    only want its credentials checked (``imagePullCredentialsVerificationPolicy``).
    """
    if node.smallest_listed is None:
        return {}
    names = {image.reference: image.listed_as for image in share.prefetch.images}
    return {
        group.key: Loss(reference, retry.EVICTED, f"{reference} was removed from the node")
        for group in share.prefetch.groups
        for reference in group.images
        if (image := seen.get(names[reference])) is not None
        and image.size > node.smallest_listed
        # Else it may be there, and this name be its sixth.
        and not any(image.may_be(other) for other in node.cut_off)
        and names[reference] in node.wanted
        and names[reference] not in node.listed
    }


def stale(share: Share, node: Node) -> dict[str, Loss]:
    """The groups of which a tag means another image on the node than at the registry.

    A pull by digest does not move the tag, so that is what a mirror leaves behind that answers for
    a tag with what it was before (Spegel, ``updating-latest-tag.md``).
    """
    images = {image.reference: image for image in share.prefetch.images}
    found: dict[str, Loss] = {}
    for group in share.prefetch.groups:
        for image in (images[reference] for reference in group.pins):
            there = node.tags.get(image.tagged_as, frozenset())
            if there and image.digest not in there:
                text = (
                    f"{image.reference} is {', '.join(sorted(there))} on the node,"
                    f" and {image.digest} at the registry"
                )
                found[group.key] = Loss(image.reference, retry.STALE, text)
    return found


def doubted(
    pod: Pod, group: Group, share: Share, node: Node, now: float, seen: Mapping[str, Listed]
) -> tuple[float | None, Loss | None]:
    """Whether a pull that succeeded proves nothing. The tag was wrong before, and the same mirror
    may have answered again; or an image has come and gone, while the pod was busy with the others.
    Then the node's own word is waited for, until the time given; that it is wrong still is the
    loss.
    """
    gone = _gone(share, node, seen).get(group.key)
    if gone is not None:
        due = ended(pod, share, now) + LISTED_AFTER
        return (due, None) if now < due else (None, gone)
    if not retry.stale(share.attempts.get(group.key)):
        return None, None
    images = (image for image in share.prefetch.images if image.reference in group.pins)
    if all(image.digest in node.tags.get(image.tagged_as, frozenset()) for image in images):
        return None, None
    due = ended(pod, share, now) + LISTED_AFTER
    return (due, None) if now < due else (None, stale(share, node).get(group.key))


def take_back(
    lost: Mapping[str, Loss],
    current: Mapping[str, Pod],
    share: Share,
    node: Node,
    now: float,
    site: Site,
    outcome: Outcome,
) -> None:
    """Take back the label, and pull again: soon, but later and later if it goes on."""
    removed = any(loss.failure is retry.EVICTED for loss in lost.values())
    if removed and site.usage is None:
        # The figures say why, and the Node that is read with them whether it is true.
        outcome.wants_usage = True
        if outcome.labelled:
            outcome.state, outcome.cached = NodeState.CACHED, True
        return
    outcome.evicted = outcome.labelled
    for group in share.prefetch.groups:
        loss = lost.get(group.key)
        if loss is None:
            continue
        figures = ""
        if loss.failure is retry.EVICTED and site.usage is not None:
            figures = f": {site.usage}"
        remember = retry.lost(
            share.attempts.get(group.key),
            loss.failure,
            key=f"{node.name}/{group.key}",
            now=now,
            image=loss.image,
            message=f"{loss.message}{figures}",
        )
        outcome.blame(remember)
        pod = current.get(group.key)
        if pod is not None and pod.finished and not pod.deleting:
            outcome.actions.append(DeletePod(pod, loss.failure.reason, remember))
        else:
            outcome.actions.append(Postpone(share.prefetch, node, group, remember))


def disproved(pod: Pod, group: Group, share: Share, now: float) -> bool:
    """Whether what the pod has pulled was since found not to be there."""
    earlier = share.attempts.get(group.key)
    return pod.phase == "Succeeded" and retry.disproved(earlier, ended(pod, share, now))
