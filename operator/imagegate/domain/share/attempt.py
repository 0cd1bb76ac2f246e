"""One puller pod that has not succeeded: it pulls, fails, takes too long, or was deleted."""

from __future__ import annotations

from imagegate.domain import failures, messages
from imagegate.domain.facts import Group, Pod
from imagegate.domain.failures import FailureClass
from imagegate.domain.messages import CREATE_ERRORS, PULL_ERRORS
from imagegate.domain.retry import Cause
from imagegate.domain.share.decision import ShareDecision

FRESH = 5.0
"""Seconds for which a failure that was just reported proves that no pull is in flight: the
kubelet's own back-off before its next try is 10 s or more."""


def vanished(decision: ShareDecision, group: Group) -> bool:
    """Whether the pod of this group disappeared before it finished, although the operator did not
    delete it. That is a failed attempt. A pod of an earlier boot that still exists does not count.
    """
    uid = decision.share.started.get(group.key)
    if uid is None or any(pod.uid == uid for pod in decision.share.pods):
        return False
    decision.postpone(group, decision.history(group).removed())
    return True


def check(decision: ShareDecision, group: Group, pod: Pod) -> None:
    if pod.deleting:
        # Another pod would only wait for this pod's pull. The slot is freed at the deadline.
        keep_slot(decision, decision.deadline(pod, pod.images))
    elif pod.phase == "Succeeded":
        text = "the API server dropped the image volumes of the puller pod"
        _give_up(decision, group, pod, _cause(pod, failures.IMAGE_VOLUMES_DROPPED, text))
    elif pod.phase == "Failed":
        text = f"{pod.reason}: {pod.message}"
        _give_up(decision, group, pod, _cause(pod, failures.ended(pod.reason), text))
    else:
        _watch(decision, group, pod)


def _watch(decision: ShareDecision, group: Group, pod: Pod) -> None:
    """A pod that is neither finished nor being deleted: pulling, failing, or out of time."""
    deadline = decision.deadline(pod, group.images)
    if pod.waiting in PULL_ERRORS | CREATE_ERRORS:
        failure = messages.classify(f"{pod.waiting}: {pod.waiting_message}")
        cause = _cause(pod, failure, pod.waiting_message)
        if just_failed(decision, pod):
            _give_up(decision, group, pod, cause)
            return
        # The pod was found failing, for instance after a restart. It is not deleted, because the
        # kubelet's next try may already run, and a new pod would only wait for that try
        # (kubernetes#113606). The kubelet's next report decides. The pod's own time is used,
        # because otherwise each decision would report a new failure.
        decision.blame(decision.history(group, at=pod.created_at).after(cause))
    elif decision.now >= deadline:
        timeout = decision.timeout(group.images)
        text = f"not pulled within {timeout:.0f} s (retry.timeoutSeconds, or by the images' size)"
        _give_up(decision, group, pod, _cause(pod, failures.PULL_TIMEOUT, text))
        return
    keep_slot(decision, deadline)


def keep_slot(decision: ShareDecision, deadline: float) -> None:
    """A pull keeps the node's slot until its deadline. A pull of another group may keep it
    longer.
    """
    decision.pulling = decision.pulling or decision.now < deadline
    decision.look_again(deadline)


def just_failed(decision: ShareDecision, pod: Pod) -> bool:
    """Whether the pod is failing and certainly has no pull in flight at this moment."""
    if pod.waiting in CREATE_ERRORS:
        return True
    seen = decision.share.failed_at.get(pod.uid)
    if pod.waiting not in PULL_ERRORS or seen is None:
        return False
    decision.lasting = False  # depends on the time, and no new decision is needed at that time
    return decision.now - seen <= FRESH


def _give_up(decision: ShareDecision, group: Group, pod: Pod, cause: Cause) -> None:
    """Delete the pod and remember the failure: a new pod resets the kubelet's back-off."""
    decision.pulling = True  # until the pod is really deleted, or its deadline is over
    decision.delete(pod, cause.failure.reason, decision.history(group).after(cause))


def _cause(pod: Pod, failure: FailureClass, message: str) -> Cause:
    return Cause(failure, message, pod.waiting_image or messages.blamed(pod, message))
