"""The plan for one node: the conclusions of all steps, with at most one patch."""

from __future__ import annotations

from imagegate.domain.actions import Action, DeletePod, NodePlan
from imagegate.domain.node import patch, release, shares
from imagegate.domain.node.view import NodeDecision, NodeView


def decide(view: NodeView, now: float) -> NodePlan:
    """The actions for this node now, and when to decide again if nothing happens before."""
    decided = shares.decide(view, now)
    decision = NodeDecision(view, now, decided, release.judge(view, decided, now))
    verdict = decision.verdict
    actions: list[Action] = [
        DeletePod(pod, "no ImagePrefetch matches it") for pod in view.orphans if not pod.deleting
    ]
    requeue: list[float] = []
    for share in decided:
        actions.extend(share.actions)
        requeue.extend(share.requeue)
    if verdict is not None and verdict.requeue_at is not None:
        requeue.append(verdict.requeue_at)
    change = patch.of_node(decision)
    if not change.empty:
        actions.append(change)
    held = len(change.remove) < len(view.taints) + len(view.outdated)
    return NodePlan(
        actions=tuple(actions),
        # A time in the past needs no new decision, because this decision has considered it.
        requeue_at=min((at for at in requeue if at > now), default=None),
        standings={share.prefetch.name: share.standing for share in decided},
        held=held,
        holding=verdict.message if held and verdict is not None else "",
        wants_usage=any(share.wants_usage for share in decided),
        awaits=frozenset(ref for share in decided for ref in share.awaits),
    )
