"""The first step for a share: whether the node takes part, and whether it holds the images."""

from __future__ import annotations

from imagegate.domain import credentials, match
from imagegate.domain.facts import Node, NodeState
from imagegate.domain.share import caching, in_service, superseded
from imagegate.domain.share.decision import ShareDecision
from imagegate.domain.share.known import Share, Site, labelled, no_image
from imagegate.domain.share.pods import Pods


def assess(share: Share, node: Node, site: Site, now: float) -> ShareDecision:
    """Decide about one share. Total: every combination of facts has an answer."""
    decision = ShareDecision(share, node, site, now, Pods.sort(share, node))
    if share.prefetch.searching:
        _wait_for_images(decision)
        return decision
    decision.labelled = labelled(node, share.prefetch)
    decision.exposed = credentials.exposed(share.prefetch, node)
    away = site.away_at is not None and now >= site.away_at
    why = match.skipped(node, gated=site.gated) or no_image(share, node)
    if why is None and away:
        why = match.AWAY
    decision.startable = why is None and match.unsettled(node) is None
    if node.deleting:
        decision.state, decision.skipped = NodeState.SKIPPED, why or ""
        return decision
    superseded.delete(decision)
    if decision.labelled:
        in_service.decide(decision)
    else:
        caching.decide(decision)
    if why is not None and not decision.cached:
        # A running pull may finish, and counts if it succeeds. No pull is started.
        decision.state, decision.skipped = NodeState.SKIPPED, why
    if away:
        decision.pulling = decision.wants = False
    elif site.away_at is not None:
        decision.look_again(site.away_at)
    return decision


def _wait_for_images(decision: ShareDecision) -> None:
    """The images of workloads are not known yet: no pull starts and no pod is deleted, a held node
    stays held, and the label counts as valid, whichever target it names.
    """
    node, prefetch = decision.node, decision.prefetch
    decision.pulling = decision.pods.busy
    why = match.skipped(node, gated=decision.site.gated)
    if prefetch.label in node.labels and decision.same_life(node.observed):
        decision.state = NodeState.CACHED
    elif why is not None:
        decision.state, decision.skipped = NodeState.SKIPPED, why
    elif decision.pulling:
        decision.state = NodeState.PULLING
