"""Whether the images that are to be pulled fit on the node's disk (``disk.maxUsagePercent``)."""

from __future__ import annotations

from collections.abc import Iterable

from imagegate.domain import disk, failures
from imagegate.domain.facts import Attempts, Group
from imagegate.domain.retry import Cause
from imagegate.domain.share.decision import ShareDecision


def refusal_is_over(decision: ShareDecision, group: Group, attempts: Attempts) -> bool:
    """Whether the disk guard refused a group that needs no room any more, because the node holds
    its images by now or pulls them for another ImagePrefetch. If the runtime reported the full
    disk, the failure is not over.
    """
    refused = attempts.reason == failures.DISK_FULL.reason and not attempts.image
    return refused and not any(_new(decision, [group]))


def fits(decision: ShareDecision, due: list[Group]) -> bool:
    """Whether the disk has room for these groups.

    No group is refused before the Node was read for its images, because the Node may list them.

    If they do not fit by themselves, that is a permanent failure with the longest back-off, because
    a person must free the disk. If they do not fit beside the pulls in flight, they wait for the
    end of those pulls, because until then the bytes of those pulls are counted in full although
    the disk usage already has a part of them.
    """
    limit = decision.prefetch.max_usage
    if limit >= 100:
        return True
    usage = decision.passing.usage
    if usage is None:
        decision.wants_usage = True
        return False
    new, unknown = _new(decision, due)
    if not new and not unknown:
        return True
    together = disk.on_disk(sum({**decision.passing.reserved, **new}.values()))
    if disk.refusal(usage, decision.node, together, limit) is None:
        decision.starting = new
        return True
    if not _looked_for(decision, due):
        decision.wants_usage = True  # the read of the usage reads the Node, too
        return False
    message = disk.refusal(usage, decision.node, disk.on_disk(sum(new.values())), limit)
    if message is None:
        # The end of a pull is an event of this node. The time is for a pull that never ends.
        decision.look_again(decision.now + decision.prefetch.retry.maximum)
        return False
    for group in due:
        decision.postpone(group, decision.history(group).after(Cause(failures.DISK_FULL, message)))
    return False


def _looked_for(decision: ShareDecision, due: Iterable[Group]) -> bool:
    """Whether the node's list was searched for the images of these groups. The Node may have been
    read before a prefetch named them.
    """
    names = {image.reference: image.listed_as for image in decision.prefetch.images}
    references = (reference for group in due for reference in group.images)
    return all(name in decision.node.wanted for ref in references if (name := names.get(ref, "")))


def _new(decision: ShareDecision, due: Iterable[Group]) -> tuple[dict[disk.Key, int], bool]:
    """The layers and images that these groups add to what the node holds and to the pulls in
    flight; and whether the size of an image that the node may lack is not known.
    """
    held, reserved = decision.passing.held, decision.passing.reserved
    references = [reference for group in due for reference in group.images]
    listed = {
        image.reference
        for image in decision.prefetch.images
        if image.listed_as in decision.node.listed
    }
    unknown = any(decision.size(ref) is None for ref in references if ref not in listed)
    parts = decision.parts(references).items()
    return {key: count for key, count in parts if key not in held and key not in reserved}, unknown
