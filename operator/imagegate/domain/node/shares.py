"""Each prefetch that matches the node: one decision after the other, because they share the node's
disk and its kubelet's queue.

A decision is a pure function of its share, the node, the site and the time. So the outcome of the
last decision is reused while these are the same, and an event costs what it concerns. That matters
for nodes that hundreds of prefetches match.
"""

from __future__ import annotations

from dataclasses import replace

from imagegate.domain import match
from imagegate.domain.facts import LABEL_PREFIX, Node
from imagegate.domain.node.view import Decided, NodeView
from imagegate.domain.share import drift
from imagegate.domain.share.assess import assess
from imagegate.domain.share.known import Contents, Passing, Share, Site
from imagegate.domain.share.outcome import Outcome


def decide(view: NodeView, now: float) -> tuple[tuple[Outcome, ...], Decided]:
    """The outcome of each share, and what the next decision may reuse."""
    site = _site(view)
    before = _comparable(view, site)
    outcomes: list[Outcome] = []
    for share in view.shares:
        outcome = _earlier(share, view.node, before)
        if outcome is None or not outcome.holds(share, site.queued, now):
            outcome = Outcome.of(assess(share, view.node, site, now))
        if outcome.starting:
            starting = {**site.passing.starting, **outcome.starting}
            site = replace(site, passing=replace(site.passing, starting=starting))
        outcomes.append(outcome)
    lasting = {outcome.prefetch.name: outcome for outcome in outcomes if outcome.lasting}
    return tuple(outcomes), Decided(view.node, site.compared, lasting)


def _site(view: NodeView) -> Site:
    node, since = view.node, view.labels_since
    return Site(
        Passing(
            Contents(node, view.shares),
            usage=view.usage,
            settles_at=None if since is None else since + drift.LISTED_AFTER,
        ),
        gated=bool(view.taints),
        queued=sum(
            size.compressed
            for share in view.shares
            for image in share.prefetch.images
            if (size := share.size(image.reference, node)) is not None
        ),
        away_at=None if view.unready_since is None else view.unready_since + match.AWAY_AFTER,
        seen=view.seen,
    )


def _comparable(view: NodeView, site: Site) -> Decided | None:
    """The last decision, if it was made from the same facts about the node. The labels of single
    prefetches are compared in `_earlier`.
    """
    before = view.before
    if before is None or before.site != site.compared:
        return None
    if before.node is view.node or _without_ours(before.node) == _without_ours(view.node):
        return before
    return None


def _without_ours(node: Node) -> Node:
    others = {key: text for key, text in node.labels.items() if not key.startswith(LABEL_PREFIX)}
    return replace(node, labels=others)


def _earlier(share: Share, node: Node, before: Decided | None) -> Outcome | None:
    """The last outcome for this prefetch, unless the prefetch's label on the node has changed."""
    if before is None:
        return None
    label = share.prefetch.label
    if before.node is not node and before.node.labels.get(label) != node.labels.get(label):
        return None
    return before.outcomes.get(share.prefetch.name)
