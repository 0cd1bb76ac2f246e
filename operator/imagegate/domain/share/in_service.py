"""The node holds the images: keep them pinned, or delete the puller pods, as retention says."""

from __future__ import annotations

from imagegate.domain import retry
from imagegate.domain.facts import Group, NodeState, Pod
from imagegate.domain.share import attempt, drift, start
from imagegate.domain.share.decision import ShareDecision

RELEASE_AFTER = 360.0
"""Seconds for which a finished pod stays under retention Release: by then the kubelet's image
garbage collection, which runs every 5 minutes, has seen the images in use (it removes images that
were never used first)."""


def decide(decision: ShareDecision) -> None:
    lost = drift.losses(decision)
    if lost and (settles_at := decision.passing.settles_at) is not None:
        if decision.now >= settles_at:
            drift.take_back(decision, lost)
            return
        decision.look_again(settles_at)
    decision.state, decision.cached = NodeState.CACHED, True
    decision.pulling = decision.pods.busy
    missing = _check(decision)
    _report_troubles(decision, missing)
    if decision.startable:
        start.create(decision, missing)


def _check(decision: ShareDecision) -> list[Group]:
    """The groups whose pod has to be created again. Under Keep every group keeps its finished pod,
    under Release none does.
    """
    prefetch = decision.prefetch
    missing: list[Group] = []
    # A pod in an earlier namespace pins only until its replacement has finished.
    pinned = {
        reference
        for pin in decision.pods.pins
        if pin.namespace == prefetch.namespace
        for reference in pin.images
    }
    for group in decision.groups:
        pod = decision.pods.current.get(group.key)
        if pod is None:
            if prefetch.keep and not pinned.issuperset(group.references):
                missing.append(group)
        elif pod.deleting:
            continue
        elif pod.phase != "Succeeded":
            attempt.check(decision, group, pod)
        elif not prefetch.keep:
            _release(decision, pod)
    return missing


def _release(decision: ShareDecision, pod: Pod) -> None:
    due = decision.ended(pod) + RELEASE_AFTER
    if decision.now >= due:
        decision.delete(pod, "retention Release")
    else:
        decision.look_again(due)


def _report_troubles(decision: ShareDecision, missing: list[Group]) -> None:
    """Report failures that a person should know about although the node is cached."""
    for group in decision.groups:
        earlier = decision.attempts(group)
        if retry.removed_again(earlier) and decision.now < earlier.at + drift.REMEMBERED:
            decision.blame(earlier)
            decision.look_again(earlier.at + drift.REMEMBERED)
        elif group in missing and earlier is not None and not retry.outlives_success(earlier):
            # The kubelet may remove the images until the pod that pins them is created again.
            decision.blame(earlier)
