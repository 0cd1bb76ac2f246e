"""Each prefetch that matches the node: one decision after the other, because they share the node's
disk and its kubelet's queue.
"""

from __future__ import annotations

from imagegate.domain import disk, match
from imagegate.domain.node.view import NodeView
from imagegate.domain.share import drift
from imagegate.domain.share.assess import assess
from imagegate.domain.share.decision import ShareDecision
from imagegate.domain.share.known import Site


def decide(view: NodeView, now: float) -> tuple[ShareDecision, ...]:
    node = view.node
    gated = bool(view.taints)
    since = view.labels_since
    queued = sum(
        size.compressed
        for share in view.shares
        for image in share.prefetch.images
        if (size := share.size(image.reference, node)) is not None
    )
    held = _held(view)
    reserved = _reserved(view, held)
    decisions: list[ShareDecision] = []
    for share in view.shares:
        site = Site(
            gated=gated,
            usage=view.usage,
            held=held,
            reserved=reserved,
            queued=queued,
            away_at=None if view.unready_since is None else view.unready_since + match.AWAY_AFTER,
            seen=view.seen,
            settles_at=None if since is None else since + drift.LISTED_AFTER,
        )
        decision = assess(share, node, site, now)
        reserved = {**reserved, **decision.starting}
        decisions.append(decision)
    return tuple(decisions)


def _held(view: NodeView) -> frozenset[disk.Key]:
    """The layers and images that the node holds: the node lists them, or a finished pod pins them
    and the kubelet does not list them yet.
    """
    node = view.node
    held: set[disk.Key] = set()
    for share in view.shares:
        listed = [i.reference for i in share.prefetch.images if i.listed_as in node.listed]
        pulled = [
            reference
            for pod in share.pods
            if pod.phase == "Succeeded" and pod.machine == node.uid
            for reference in pod.images
        ]
        held.update(share.parts((*listed, *pulled), node))
    return frozenset(held)


def _reserved(view: NodeView, held: frozenset[disk.Key]) -> dict[disk.Key, int]:
    """The layers and images that pulls in flight bring to the node."""
    node = view.node
    return {
        key: count
        for share in view.shares
        for pod in share.pods
        if not pod.finished and pod.machine == node.uid
        for key, count in share.parts(pod.images, node).items()
        if key not in held
    }
