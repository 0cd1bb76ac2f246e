"""The plan for one node: the conclusions of all steps, with at most one patch."""

from __future__ import annotations

from imagegate.domain.actions import Action, DeletePod
from imagegate.domain.node import patch, release, shares
from imagegate.domain.node.view import NodeDecision, NodePlan, NodeView


def decide(view: NodeView, now: float) -> NodePlan:
    """The actions for this node now, and when to decide again if nothing happens before."""
    outcomes, decided = shares.decide(view, now)
    decision = NodeDecision(view, now, outcomes, release.judge(view, outcomes, now))
    verdict = decision.verdict
    actions: list[Action] = [
        DeletePod(pod, "no ImagePrefetch matches it") for pod in view.orphans if not pod.deleting
    ]
    requeue = [outcome.requeue_at for outcome in outcomes]
    for outcome in outcomes:
        actions.extend(outcome.actions)
    if verdict is not None:
        requeue.append(verdict.requeue_at)
    change = patch.of_node(decision)
    if not change.empty:
        actions.append(change)
    held = len(change.remove) < len(view.taints) + len(view.outdated)
    return NodePlan(
        actions=tuple(actions),
        # A time in the past needs no new decision, because this decision has considered it.
        requeue_at=min((at for at in requeue if at is not None and at > now), default=None),
        standings={outcome.prefetch.name: outcome.standing for outcome in outcomes},
        held=held,
        holding=verdict.message if held and verdict is not None else "",
        released_by=verdict.latest if held and verdict is not None else None,
        wants_usage=any(outcome.standing.reads_disk for outcome in outcomes),
        awaits=frozenset(ref for outcome in outcomes for ref in outcome.awaits),
        decided=decided,
    )
