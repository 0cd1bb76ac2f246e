"""Creates the puller pods that are missing."""

from __future__ import annotations

from dataclasses import replace

from imagegate.domain import failures
from imagegate.domain.actions import CreatePod
from imagegate.domain.facts import Group
from imagegate.domain.share import room
from imagegate.domain.share.decision import ShareDecision


def create(decision: ShareDecision, missing: list[Group]) -> None:
    """Create the pods of these groups once their back-off is over, the node has a slot, and its
    disk has room.

    A joining node first waits for the DaemonSets of ``startAfter``. It needs no slot meanwhile, so
    this decision frees a slot that it has.
    """
    share = decision.share
    due = [group for group in missing if _due(decision, group)]
    if not due or not (share.inspected or decision.labelled):
        return
    if decision.unready:
        decision.awaits = decision.unready
        return
    if not (share.has_slot or decision.pulling):
        decision.wants = True
        return
    if not decision.labelled and not room.fits(decision, due):
        return
    decision.pulling = True
    for group in sorted(
        (_small_to_large(decision, group) for group in due),
        key=lambda group: _bytes(decision, group),
    ):
        decision.actions.append(_creation(decision, group))


def _due(decision: ShareDecision, group: Group) -> bool:
    """Whether the back-off of this group is over, or its reason is over."""
    attempts = decision.attempts(group)
    if (
        attempts is None
        or attempts.next_at <= decision.now
        or room.refusal_is_over(decision, group, attempts)
    ):
        return True
    decision.look_again(attempts.next_at)
    return False


def _creation(decision: ShareDecision, group: Group) -> CreatePod:
    attempts = decision.attempts(group)
    return CreatePod(
        decision.prefetch,
        decision.node,
        group,
        attempts.number if attempts is not None else 1,
        decision.history(group).put_back() if decision.labelled else None,
        afresh=attempts is not None and attempts.reason in failures.NOT_THERE,
    )


def _bytes(decision: ShareDecision, group: Group) -> int:
    sizes = (decision.size(reference) for reference in group.images)
    return sum(size.compressed for size in sizes if size is not None)


def _small_to_large(decision: ShareDecision, group: Group) -> Group:
    """The group with its images in the order of their sizes, because the kubelet pulls in the order
    of the pod, and by default one image at a time: a small image need not wait for a large image.
    Images of unknown size come last.
    """

    def weight(reference: str) -> float:
        size = decision.size(reference)
        return float("inf") if size is None else size.compressed

    return replace(group, images=tuple(sorted(group.images, key=weight)))
