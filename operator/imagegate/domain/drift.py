"""Images that are removed from a node behind our back: how that is proved, and what follows.

A kubelet under pressure collects images, and a person may remove them. Pull, collect, pull is a
loop, so the next pull waits longer each time, and a person is told.
"""

from __future__ import annotations

from collections.abc import Mapping

from imagegate.domain import retry
from imagegate.domain.actions import DeletePod, Postpone
from imagegate.domain.facts import Group, Node, Pod
from imagegate.domain.share import Outcome, Share, Site

LISTED_AFTER = 180.0
"""Seconds after which an image that was pulled is surely in ``status.images``, if it is large
enough: the kubelet looks every 30 s and writes every 10 s; the rest is for a watch that broke."""

REMEMBERED = 3600.0
"""Seconds for which an image that was removed again and again is still reported."""


def gone(share: Share, node: Node) -> dict[str, str]:
    """The groups of which an image has been removed behind our back, each with that image.

    It is proved by a kubelet that does not list an image larger than one that it lists; absence
    alone proves nothing, as it lists 50. Nor does a pod that was put back and fails to pull: the
    kubelet may only want its credentials checked (``imagePullCredentialsVerificationPolicy``).
    """
    if node.smallest_listed is None:
        return {}
    names = {image.reference: image.listed_as for image in share.prefetch.images}
    return {
        group.key: reference
        for group in share.prefetch.groups
        for reference in group.images
        if (size := share.size(reference, node)) is not None
        and size.compressed > node.smallest_listed
        and names[reference] not in node.listed
    }


def evicted(
    lost: Mapping[str, str],
    current: Mapping[str, Pod],
    share: Share,
    node: Node,
    now: float,
    site: Site,
    outcome: Outcome,
) -> None:
    """Take back the label, and pull again: soon, but later and later if it goes on."""
    outcome.wants_usage = site.usage is None
    outcome.evicted = True
    figures = f": {site.usage}" if site.usage is not None else ""
    for group in share.prefetch.groups:
        if group.key not in lost:
            continue
        remember = retry.evicted(
            share.attempts.get(group.key),
            key=f"{node.name}/{group.key}",
            now=now,
            image=lost[group.key],
            message=f"{lost[group.key]} was removed from the node{figures}",
        )
        outcome.blame(remember)
        pod = current.get(group.key)
        if pod is not None and pod.finished and not pod.deleting:
            outcome.actions.append(DeletePod(pod, retry.EVICTED.reason, remember))
        else:
            outcome.actions.append(Postpone(share.prefetch, node, group, remember))


def disproved(pod: Pod, group: Group, share: Share) -> bool:
    """Whether what the pod has pulled was removed since."""
    ended = pod.finished_at or pod.created_at
    earlier = share.attempts.get(group.key)
    return pod.phase == "Succeeded" and retry.disproved(earlier, ended)
