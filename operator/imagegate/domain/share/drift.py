"""Images that a node does not hold although its label or its puller pod says that it does.

A kubelet under disk pressure removes images, a user may remove them, and a mirror may have served
an earlier image for a tag. Pulling and removing can be a loop, so the next pull waits longer each
time, and the loop is reported.
"""

from __future__ import annotations

from collections.abc import Mapping

from imagegate.domain import failures, retry
from imagegate.domain.facts import Group, NodeState, Pod
from imagegate.domain.retry import Cause
from imagegate.domain.share.decision import ShareDecision

LISTED_AFTER = 180.0
"""Seconds after which an image that was pulled is certainly in ``status.images``, if it is large
enough: the kubelet lists its images every 30 s and writes every 10 s; the rest is for a broken
watch."""

REMEMBERED = 3600.0
"""Seconds for which an image that was removed again and again is still reported."""


def losses(decision: ShareDecision) -> dict[str, Cause]:
    """By group key, the groups with an image that is missing or stale."""
    return {**_stale(decision), **_missing(decision)}


def _missing(decision: ShareDecision) -> dict[str, Cause]:
    """The groups with an image that was removed from the node.

    An image was removed if the kubelet listed it under this name and does not list it any more,
    although it is larger than another listed image. Absence alone proves nothing: the kubelet lists
    50 images with five names each, a webhook may have rewritten the name, and the runtime may spell
    it in another way. A pod that was created again and fails to pull proves nothing either, because
    the kubelet may only verify its credentials (``imagePullCredentialsVerificationPolicy``).
    """
    node = decision.node
    if node.smallest_listed is None:
        return {}
    names = {image.reference: image.listed_as for image in decision.prefetch.images}
    return {
        group.key: Cause(
            failures.EVICTED_BY_KUBELET, f"{reference} was removed from the node", reference
        )
        for group in decision.groups
        for reference in group.images
        if (image := decision.site.seen.get(names[reference])) is not None
        and image.size > node.smallest_listed
        # Otherwise the node may hold the image, and this name may be its sixth.
        and not any(image.may_be(other) for other in node.cut_off)
        and names[reference] in node.wanted
        and names[reference] not in node.listed
    }


def _stale(decision: ShareDecision) -> dict[str, Cause]:
    """The groups with a tag that is another image on the node than at the registry.

    The cause is a mirror that serves an earlier image for the tag (Spegel,
    ``updating-latest-tag.md``), because a pull by digest does not move the tag.
    """
    node = decision.node
    images = {image.reference: image for image in decision.prefetch.images}
    found: dict[str, Cause] = {}
    for group in decision.groups:
        for image in (images[reference] for reference in group.pins):
            there = node.tags.get(image.tagged_as, frozenset())
            if there and image.digest not in there:
                text = (
                    f"{image.reference} is {', '.join(sorted(there))} on the node,"
                    f" and {image.digest} at the registry"
                )
                found[group.key] = Cause(failures.STALE_MIRROR, text, image.reference)
    return found


def doubted_until(decision: ShareDecision, group: Group, pod: Pod) -> float | None:
    """Until when a successful pull proves nothing; None: it proves that the node holds the images.

    There are two cases. The tag was stale before, and the same mirror may have served it again; or
    an image was pulled and removed while the pod pulled the others. The node may list the images
    until this time; after it, `losses` decides.
    """
    if group.key not in _missing(decision):
        if not retry.stale(decision.attempts(group)):
            return None
        tags = decision.node.tags
        followed = (image for image in decision.prefetch.images if image.reference in group.pins)
        if all(image.digest in tags.get(image.tagged_as, frozenset()) for image in followed):
            return None
    return decision.ended(pod) + LISTED_AFTER


def disproved(decision: ShareDecision, group: Group, pod: Pod) -> bool:
    """Whether the images of a pod that succeeded were found missing or stale after its end."""
    earlier = decision.attempts(group)
    return pod.phase == "Succeeded" and retry.disproved(earlier, decision.ended(pod))


def take_back(decision: ShareDecision, lost: Mapping[str, Cause]) -> None:
    """Remove the label and pull again, with a longer wait each time that it happens."""
    usage = decision.passing.usage
    if usage is None and any(loss.failure is failures.EVICTED_BY_KUBELET for loss in lost.values()):
        # The usage explains the loss, and the Node that is read with it confirms or refutes it.
        decision.wants_usage = True
        if decision.labelled:
            decision.state, decision.cached = NodeState.CACHED, True
        return
    decision.evicted = decision.labelled
    for group in decision.groups:
        loss = lost.get(group.key)
        if loss is None:
            continue
        if loss.failure is failures.EVICTED_BY_KUBELET:
            loss = Cause(loss.failure, f"{loss.message}: {usage}", loss.image)
        remember = decision.history(group).lost(loss)
        pod = decision.pods.current.get(group.key)
        if pod is not None and pod.finished and not pod.deleting:
            decision.delete(pod, loss.failure.reason, remember)
        else:
            decision.postpone(group, remember)
