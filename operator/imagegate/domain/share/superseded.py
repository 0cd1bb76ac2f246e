"""Deletes the puller pods of a share that are not needed any more."""

from __future__ import annotations

from imagegate.domain.facts import Pod
from imagegate.domain.share import attempt
from imagegate.domain.share.decision import ShareDecision
from imagegate.domain.share.pods import interrupted


def delete(decision: ShareDecision) -> None:
    for pod in decision.pods.departed:
        if not pod.deleting:
            decision.delete(pod, "its Node was deleted")
    for pod in decision.pods.superseded:
        if not pod.deleting and (why := _reason(decision, pod)):
            decision.delete(pod, why)


def _reason(decision: ShareDecision, pod: Pod) -> str:
    """Why a superseded pod is deleted; empty: it stays.

    A finished pod of an earlier target pins that target's images. It is deleted only when the node
    holds the new target, and never while it alone pins a wanted image. (A pod of an earlier boot
    proves nothing, so it is deleted at once.) A running pull is cancelled only when none of its
    images is wanted any more. A pull that has just failed has ended, and might fail for ever at an
    image that is not wanted any more.
    """
    prefetch = decision.prefetch
    if pod.finished:
        if decision.labelled:
            needed = pod in decision.pods.pins
        else:
            groups = {group.key for group in decision.groups}
            needed = pod.group not in groups or pod.namespace != prefetch.namespace
        return "" if needed else "superseded"
    if interrupted(pod, decision.node):
        return "a reboot has interrupted it"
    if prefetch.references.isdisjoint(pod.images):
        return "its images are not wanted any more"
    if attempt.just_failed(decision, pod):
        return "superseded, and its pull failed"
    return ""
