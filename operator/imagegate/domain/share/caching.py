"""The node does not hold the images yet: pull them, and find out when all of them are there."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagegate.domain import retry
from imagegate.domain.facts import Group, NodeState, Pod
from imagegate.domain.retry import Cause
from imagegate.domain.share import attempt, drift, room, start
from imagegate.domain.share.decision import ShareDecision


def decide(decision: ShareDecision) -> None:
    groups = _check(decision)
    if groups.cached == len(decision.groups):
        decision.state, decision.cached = NodeState.CACHED, True
        return
    if groups.lost:
        drift.take_back(decision, groups.lost)
    unfinished = [pod for pod in decision.pods.superseded if not pod.finished]
    for pod in unfinished:
        attempt.keep_slot(decision, decision.deadline(pod, pod.images))
    # While an earlier pod still pulls something that is wanted, a second pod would only wait.
    if decision.startable and not unfinished:
        start.create(decision, groups.missing)
    for group in decision.groups:
        attempts = decision.attempts(group)
        # A refusal that is over is not a failure, even while the node still waits for a slot.
        if attempts is not None and not room.refusal_is_over(decision, group, attempts):
            decision.blame(attempts)
    if retry.exhausted(decision.failure, decision.prefetch.retry):
        decision.state = NodeState.FAILED
    elif decision.pulling or decision.pods.busy:
        # This is also the state of a pull that hangs and has lost its slot to another node.
        decision.state = NodeState.PULLING


@dataclass(slots=True)
class _Groups:
    """The groups of the share, by the state of their puller pods."""

    cached: int = 0
    missing: list[Group] = field(default_factory=list)
    """The groups that need a new pod."""
    lost: dict[str, Cause] = field(default_factory=dict)
    """By group key, why images are missing or stale although their pod has succeeded."""


def _check(decision: ShareDecision) -> _Groups:
    groups = _Groups()
    for group in decision.groups:
        pod = decision.pods.current.get(group.key)
        if pod is None:
            if not attempt.vanished(decision, group):
                groups.missing.append(group)
        elif drift.disproved(decision, group, pod):
            # The API server may show a deleted pod once more, with the time of its end.
            if not pod.deleting:
                decision.delete(pod, "disproved")
        elif not _pulled(decision, group, pod):
            attempt.check(decision, group, pod)
        elif (doubted_until := drift.doubted_until(decision, group, pod)) is None:
            groups.cached += 1
        elif decision.now < doubted_until:
            decision.look_again(doubted_until)
        elif (loss := drift.losses(decision).get(group.key)) is not None:
            groups.lost[group.key] = loss
        else:
            groups.cached += 1
    return groups


def _pulled(decision: ShareDecision, group: Group, pod: Pod) -> bool:
    # The number of images is compared, because a webhook may have rewritten their names.
    if len(pod.images) < len(group.references):
        return False  # the API server dropped image volumes: the pod did not pull every image
    reported = decision.share.pulled.get(pod.uid, frozenset())
    return pod.phase == "Succeeded" or reported.issuperset(group.references)
