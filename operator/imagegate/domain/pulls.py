"""Where one node stands with one ImagePrefetch, and which puller pods that asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from imagegate.domain import credentials, disk, drift, match, retry
from imagegate.domain.actions import CreatePod, DeletePod, Postpone
from imagegate.domain.facts import Attempts, Group, Node, NodeState, Pod
from imagegate.domain.share import Outcome, Share, Site, ended, labelled, no_image, same_life

RELEASE_AFTER = 360.0
"""Seconds a finished pod stays under retention Release: by then the kubelet's image collector,
which looks every 5 minutes, has seen the images in use (never-used images go first)."""

FRESH = 5.0
"""Seconds for which a failure that was just reported proves that no pull is in flight: the
kubelet's own back-off before its next try is 10 s or more."""

PULL_ERRORS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "ImageInspectError",
        "InvalidImageName",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)

CREATE_ERRORS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
"""The kubelet believes that the image is there, and no container can be made of it: nothing is
being pulled, and the next attempt of this pod ends in the same way."""


def assess(share: Share, node: Node, now: float, site: Site) -> Outcome:
    """Decide about one share. Total: every combination of facts has an answer."""
    if share.prefetch.searching:
        return _undecided(share, node, site)
    outcome = Outcome(
        labelled=labelled(node, share.prefetch), exposed=credentials.exposed(share.prefetch, node)
    )
    why = match.skipped(node, gated=site.gated) or no_image(share, node) or _away(now, site)
    if node.deleting:
        outcome.state, outcome.skipped, outcome.startable = NodeState.SKIPPED, why or "", False
        return outcome
    if share.unready and not match.joining(node, gated=site.gated):
        share = replace(share, unready={})  # nodes in service wait for nothing
    pods = _Pods.sort(share, node)
    _tidy(pods, share, node, now, outcome)
    startable = outcome.startable = why is None and match.unsettled(node) is None
    lost = (
        drift.losses(share, node, site.seen)
        if outcome.labelled and site.settles_at is not None
        else {}
    )
    if lost and site.settles_at is not None and now < site.settles_at:
        outcome.requeue.append(site.settles_at)
        lost = {}
    if lost:
        drift.take_back(lost, pods.current, share, node, now, site, outcome)
    elif outcome.labelled:
        outcome.state, outcome.cached = NodeState.CACHED, True
        _in_service(pods, share, node, now, site, outcome, startable=startable)
    else:
        _towards_cached(pods, share, node, now, site, outcome, startable=startable)
    if why is not None and not outcome.cached:
        # What runs already is left to finish, and counts if it succeeds; nothing is started.
        outcome.state, outcome.skipped = NodeState.SKIPPED, why
    if _away(now, site):
        outcome.pulling = outcome.wants = False
    elif site.away_at is not None:
        outcome.requeue.append(site.away_at)
    return outcome


def _away(now: float, site: Site) -> str | None:
    """Whether the node has not been Ready for so long that nobody waits for it."""
    return match.AWAY if site.away_at is not None and now >= site.away_at else None


def _undecided(share: Share, node: Node, site: Site) -> Outcome:
    """It is not known yet which images are asked for: nothing is begun or taken away, no held node
    is let go, and the label is believed, whichever target it is of.
    """
    outcome = Outcome()
    outcome.pulling = any(not pod.finished and pod.machine == node.uid for pod in share.pods)
    why = match.skipped(node, gated=site.gated)
    if share.prefetch.label in node.labels and same_life(node.observed, node, share.prefetch):
        outcome.state = NodeState.CACHED
    elif why is not None:
        outcome.state, outcome.skipped = NodeState.SKIPPED, why
    elif outcome.pulling:
        outcome.state = NodeState.PULLING
    return outcome


def _stuck(pod: Pod, node: Node) -> bool:
    """Whether a reboot came between the pod's container and its end. With restartPolicy Never the
    kubelet leaves such a pod Pending for ever (kuberuntime_util.go, PodSandboxChanged); one that
    had no container yet it begins anew, and so its pull.
    """
    return pod.began and not pod.finished and pod.observed != node.identity


@dataclass(slots=True)
class _Pods:
    """The pods of a share by what they are to the present target and the present boot."""

    current: dict[str, Pod] = field(default_factory=dict)
    superseded: list[Pod] = field(default_factory=list)
    departed: list[Pod] = field(default_factory=list)
    """Made for another machine that had this name. The garbage collector takes them with its
    Node; until then they count for nothing, or the new machine would inherit a place."""

    @property
    def busy(self) -> bool:
        """Whether any of them pulls, or may."""
        return any(not pod.finished for pod in (*self.current.values(), *self.superseded))

    @classmethod
    def sort(cls, share: Share, node: Node) -> _Pods:
        groups = {group.key for group in share.prefetch.groups}
        sorted_pods = cls()
        for pod in sorted(share.pods, key=lambda p: (p.created_at, p.name)):
            if pod.machine != node.uid:
                sorted_pods.departed.append(pod)
            elif pod.namespace != share.prefetch.namespace:
                sorted_pods.superseded.append(pod)
            elif pod.group in groups and (
                same_life(pod.observed, node, share.prefetch) and not _stuck(pod, node)
            ):
                earlier = sorted_pods.current.get(pod.group)
                if earlier is not None:
                    sorted_pods.superseded.append(earlier)
                sorted_pods.current[pod.group] = pod
            else:
                sorted_pods.superseded.append(pod)
        return sorted_pods


def _tidy(pods: _Pods, share: Share, node: Node, now: float, outcome: Outcome) -> None:
    """Remove pods that serve no purpose any more.

    A finished pod of an earlier target pins that target's images: it goes only once the node
    holds the new one (or belongs to an earlier boot, and then proves nothing), and no image that is
    wanted loses its only pin. A running pull is cancelled only when not one of its images is wanted
    any more. A pull that has just failed is over, and may fail for ever at an image that is not
    wanted any more.
    """
    wanted = {each for group in share.prefetch.groups for each in group.references}
    groups = {group.key for group in share.prefetch.groups}
    pins = _pins(pods, share, node)
    outcome.actions.extend(
        DeletePod(pod, "its machine is gone") for pod in pods.departed if not pod.deleting
    )
    for pod in pods.superseded:
        if pod.deleting:
            continue
        if pod.finished:
            current = pod.group in groups and pod.namespace == share.prefetch.namespace
            serves = pod in pins if outcome.labelled else not current
            if not serves:
                outcome.actions.append(DeletePod(pod, "superseded"))
        elif _stuck(pod, node):
            outcome.actions.append(DeletePod(pod, "a reboot has interrupted it"))
        elif wanted.isdisjoint(pod.images):
            outcome.actions.append(DeletePod(pod, "its images are not wanted any more"))
        elif _just_failed(pod, share, now):
            outcome.actions.append(DeletePod(pod, "superseded, and its pull failed"))


def _pins(pods: _Pods, share: Share, node: Node) -> list[Pod]:
    """The finished pods of other groups that alone pin an image that is wanted.

    Groups change while the target stays (a secret was renamed, or an earlier version of the
    operator spread the images in another way): the pods that are there pin the images as well, and
    one of them goes only when another finished pod has taken over all of its images.
    """
    if not share.prefetch.keep or not pods.superseded:
        return []
    wanted = {each for group in share.prefetch.groups for each in group.references}
    pinned = {
        each
        for pod in pods.current.values()
        if pod.phase == "Succeeded" and not pod.deleting
        for each in pod.images
    }
    pins: list[Pod] = []
    for pod in reversed(pods.superseded):
        if pod.phase != "Succeeded" or pod.deleting:
            continue
        if not same_life(pod.observed, node, share.prefetch) or wanted.isdisjoint(pod.images):
            continue
        if not pinned.issuperset(wanted.intersection(pod.images)):
            pins.append(pod)
            pinned.update(pod.images)
    return pins


def _in_service(
    pods: _Pods,
    share: Share,
    node: Node,
    now: float,
    site: Site,
    outcome: Outcome,
    *,
    startable: bool,
) -> None:
    """The node holds the target. Keep: every group keeps its finished pod. Release: none does."""
    outcome.pulling = pods.busy
    missing: list[Group] = []
    # A pod in a namespace that is not wanted any more pins until its replacement has finished.
    pinned = {
        each
        for pin in _pins(pods, share, node)
        if pin.namespace == share.prefetch.namespace
        for each in pin.images
    }
    for group in share.prefetch.groups:
        pod = pods.current.get(group.key)
        if pod is None:
            if share.prefetch.keep and not pinned.issuperset(group.references):
                missing.append(group)
        elif pod.deleting:
            continue
        elif pod.phase == "Failed":
            _give_up(pod, group, retry.ended(pod.reason), _end(pod), share, now, outcome)
        elif pod.phase == "Succeeded" and not share.prefetch.keep:
            due = ended(pod, share, now) + RELEASE_AFTER
            if now >= due:
                outcome.actions.append(DeletePod(pod, "retention Release"))
            else:
                outcome.requeue.append(due)
        elif not pod.finished:
            _watch_pull(pod, group, share, node, now, site, outcome)
    if startable:
        _start(missing, share, node, now, site, outcome)
    _troubles(missing, share, now, outcome)


def _troubles(missing: list[Group], share: Share, now: float, outcome: Outcome) -> None:
    """What a person should know of although the node is cached."""
    for group in share.prefetch.groups:
        earlier = share.attempts.get(group.key)
        if retry.removed_again(earlier) and now < earlier.at + drift.REMEMBERED:
            outcome.blame(earlier)
            outcome.requeue.append(earlier.at + drift.REMEMBERED)
        elif group in missing and earlier is not None and not retry.outlives_success(earlier):
            # The kubelet may collect the images until the pod that pins them is put back.
            outcome.blame(earlier)


def _towards_cached(
    pods: _Pods,
    share: Share,
    node: Node,
    now: float,
    site: Site,
    outcome: Outcome,
    *,
    startable: bool,
) -> None:
    """The node does not hold the target yet."""
    done = 0
    missing: list[Group] = []
    stale: dict[str, drift.Loss] = {}
    for group in share.prefetch.groups:
        pod = pods.current.get(group.key)
        if pod is None:
            missing += [] if _removed(group, share, node, now, outcome) else [group]
        elif drift.disproved(pod, group, share, now):
            # It is on its way out: the API server shows it once more, with the time of its end.
            outcome.actions += [] if pod.deleting else [DeletePod(pod, "disproved")]
        elif _pulled(pod, group, share):
            due, loss = drift.doubted(pod, group, share, node, now, site.seen)
            stale |= {group.key: loss} if loss is not None else {}
            outcome.requeue += [due] if due is not None else []
            done += due is None and loss is None
        else:
            _towards_pulled(pod, group, share, node, now, site, outcome)
    if done == len(share.prefetch.groups):
        outcome.state, outcome.cached = NodeState.CACHED, True
        return
    if stale:
        drift.take_back(stale, pods.current, share, node, now, site, outcome)
    unfinished = [pod for pod in pods.superseded if not pod.finished]
    busy = bool(unfinished)
    outcome.pulling = outcome.pulling or any(
        not _overdue(pod, share, node, now, site) for pod in unfinished
    )
    # While an earlier pod still pulls something that is wanted, a second one would only wait.
    if startable and not busy:
        _start(missing, share, node, now, site, outcome)
    for group in share.prefetch.groups:
        outcome.blame(share.attempts.get(group.key))
    if retry.exhausted(outcome.failure, share.prefetch.retry):
        outcome.state = NodeState.FAILED
    elif outcome.pulling or pods.busy:
        # Also a pull that hangs, and whose slot was given to another node.
        outcome.state = NodeState.PULLING


def _pulled(pod: Pod, group: Group, share: Share) -> bool:
    # By their number: a webhook may have rewritten the names.
    if len(pod.images) < len(group.references):
        return False  # the API server has dropped volumes: what succeeded is another pod
    reported = share.pulled.get(pod.uid, frozenset())
    return pod.phase == "Succeeded" or reported.issuperset(group.references)


def _overdue(pod: Pod, share: Share, node: Node, now: float, site: Site) -> bool:
    """Whether a pull has lasted for so long that its slot is given to another node."""
    return now >= pod.created_at + _deadline(pod.images, share, node, site)


def _removed(group: Group, share: Share, node: Node, now: float, outcome: Outcome) -> bool:
    """Whether the pod of this group has vanished before it was done, and the operator did not
    delete it: that is a failed attempt. A pod of an earlier boot that still exists has not.
    """
    uid = share.started.get(group.key)
    if uid is None or any(pod.uid == uid for pod in share.pods):
        return False
    remember = retry.removed(
        share.attempts.get(group.key),
        spec=share.prefetch.retry,
        key=f"{node.name}/{group.key}",
        now=now,
    )
    outcome.blame(remember)
    outcome.actions.append(Postpone(share.prefetch, node, group, remember))
    return True


def _towards_pulled(
    pod: Pod, group: Group, share: Share, node: Node, now: float, site: Site, outcome: Outcome
) -> None:
    """A pod of the target that has not succeeded."""
    if pod.deleting:
        # Another pod would only wait for its pull; but the slot comes back in time.
        outcome.pulling = outcome.pulling or not _overdue(pod, share, node, now, site)
        outcome.requeue.append(pod.created_at + _deadline(pod.images, share, node, site))
    elif pod.phase == "Succeeded":
        _give_up(
            pod,
            group,
            retry.DROPPED,
            "the API server took the images away from the puller pod",
            share,
            now,
            outcome,
        )
    elif pod.phase == "Failed":
        _give_up(pod, group, retry.ended(pod.reason), _end(pod), share, now, outcome)
    else:
        _watch_pull(pod, group, share, node, now, site, outcome)


def _start(
    missing: list[Group], share: Share, node: Node, now: float, site: Site, outcome: Outcome
) -> None:
    """Create the pods that are missing, once their back-off is over, there is a place, and there
    is room on the disk.

    A joining node first waits for what ``startAfter`` names, and takes no place meanwhile: a place
    that it had, it has lost with this decision.
    """
    due: list[Group] = []
    for group in missing:
        attempts = share.attempts.get(group.key)
        if (
            attempts is None
            or attempts.next_at <= now
            or _needs_no_room(attempts, group, share, node, site)
        ):
            due.append(group)
        else:
            outcome.requeue.append(attempts.next_at)
    if not due or not (share.inspected or outcome.labelled):
        return
    if share.unready:
        outcome.awaits = share.unready
        return
    if not (share.place or outcome.pulling):
        outcome.wants = True
        return
    if not outcome.labelled and not _fits(due, share, node, now, site, outcome):
        return
    outcome.pulling = True
    for group in sorted(
        (_small_to_large(group, share, node) for group in due),
        key=lambda group: _bytes(group, share, node),
    ):
        attempts = share.attempts.get(group.key)
        count = attempts.count if attempts is not None else 0
        again = None
        if outcome.labelled:
            again = retry.put_back(attempts, key=f"{node.name}/{group.key}", now=now)
        afresh = attempts is not None and attempts.reason in retry.NOT_THERE
        outcome.actions.append(
            CreatePod(share.prefetch, node, group, count + 1, again, afresh=afresh)
        )


def _needs_no_room(attempts: Attempts, group: Group, share: Share, node: Node, site: Site) -> bool:
    """Whether we refused a group that needs no room any more: its images are there by now, or are
    being pulled for another ImagePrefetch. Not where the runtime itself found the disk full.
    """
    refused = attempts.reason == retry.DISK_FULL.reason and not attempts.image
    return refused and not any(_new([group], share, node, site))


def _new(
    due: Iterable[Group], share: Share, node: Node, site: Site
) -> tuple[dict[disk.Key, int], bool]:
    """What these groups bring to the node beside what it holds and what pulls already; and whether
    the size of something that it may lack is not known.
    """
    references = [reference for group in due for reference in group.images]
    listed = {i.reference for i in share.prefetch.images if i.listed_as in node.listed}
    unknown = any(share.size(ref, node) is None for ref in references if ref not in listed)
    parts = share.parts(references, node).items()
    return {
        key: count for key, count in parts if key not in site.held and key not in site.reserved
    }, unknown


def _fits(
    due: list[Group], share: Share, node: Node, now: float, site: Site, outcome: Outcome
) -> bool:
    """Whether these groups may be pulled as far as the disk is concerned.

    Where they do not fit by themselves, that is a failed attempt: somebody must free the disk, and
    the next look is as far away as the slow end of the back-off. Where they fit but for the pulls
    in flight, the end of those pulls decides: while they run, their bytes are counted in full
    beside what the disk already shows of them.
    """
    limit = share.prefetch.max_usage
    if limit >= 100:
        return True
    if site.usage is None:
        outcome.wants_usage = True
        return False
    new, unknown = _new(due, share, node, site)
    if not new and not unknown:
        return True
    together = disk.on_disk(sum({**site.reserved, **new}.values()))
    if disk.refusal(site.usage, node, together, limit) is None:
        outcome.starting = new
        return True
    message = disk.refusal(site.usage, node, disk.on_disk(sum(new.values())), limit)
    if message is None:
        # The end of a pull is an event of this node; the time is for a pull that never ends.
        outcome.requeue.append(now + share.prefetch.retry.maximum)
        return False
    for group in due:
        remember = retry.after(
            share.attempts.get(group.key),
            retry.DISK_FULL,
            spec=share.prefetch.retry,
            key=f"{node.name}/{group.key}",
            now=now,
            image="",
            message=message,
        )
        outcome.blame(remember)
        outcome.actions.append(Postpone(share.prefetch, node, group, remember))
    return False


def _bytes(group: Group, share: Share, node: Node) -> int:
    sizes = (share.size(reference, node) for reference in group.images)
    return sum(size.compressed for size in sizes if size is not None)


def _small_to_large(group: Group, share: Share, node: Node) -> Group:
    """The kubelet pulls in the order of the pod, and by default one image at a time: what is small
    need not wait for what is large. Those of unknown size come last.
    """

    def weight(reference: str) -> float:
        size = share.size(reference, node)
        return float("inf") if size is None else size.compressed

    return replace(group, images=tuple(sorted(group.images, key=weight)))


def _deadline(images: Iterable[str], share: Share, node: Node, site: Site) -> float:
    """Seconds after which a pull of these images is given up."""
    # Of a tag that is followed the digest is pulled as well: the tag's size says it all.
    tags = [reference for reference in images if "@" not in reference] or images
    known = all(share.size(reference, node) is not None for reference in tags)
    return retry.deadline(share.prefetch.retry, site.queued if known else None)


def _watch_pull(
    pod: Pod, group: Group, share: Share, node: Node, now: float, site: Site, outcome: Outcome
) -> None:
    """A pod that is neither finished nor going: pulling, failing, or out of time."""
    timeout = _deadline(group.images, share, node, site)
    if pod.waiting in PULL_ERRORS | CREATE_ERRORS:
        failure = retry.classify(f"{pod.waiting}: {pod.waiting_message}")
        if _just_failed(pod, share, now):
            _give_up(pod, group, failure, pod.waiting_message, share, now, outcome)
            return
        # Found failing, for instance after a restart: its next try may already run, which a deleted
        # pod would only wait for (kubernetes#113606). The kubelet goes on; its next verdict counts.
        # By the pod's own time, or each look would be another failure.
        found = _remember(pod, group, failure, pod.waiting_message, share, pod.created_at)
        outcome.blame(found)
    elif now >= pod.created_at + timeout:
        text = f"not pulled within {timeout:.0f} s (retry.timeoutSeconds, or by the images' size)"
        _give_up(pod, group, retry.TIMED_OUT, text, share, now, outcome)
        return
    # Another group's pull keeps the slot, whatever becomes of this one.
    outcome.pulling = outcome.pulling or now < pod.created_at + timeout
    outcome.requeue.append(pod.created_at + timeout)


def _end(pod: Pod) -> str:
    return f"{pod.reason}: {pod.message}"


def _just_failed(pod: Pod, share: Share, now: float) -> bool:
    if pod.waiting in CREATE_ERRORS:
        return True
    seen = share.failed_at.get(pod.uid)
    return pod.waiting in PULL_ERRORS and seen is not None and now - seen <= FRESH


def _give_up(
    pod: Pod,
    group: Group,
    failure: retry.FailureClass,
    message: str,
    share: Share,
    now: float,
    outcome: Outcome,
) -> None:
    """Delete the pod and remember the failure: a fresh pod resets the kubelet's back-off."""
    remember = _remember(pod, group, failure, message, share, now)
    outcome.blame(remember)
    outcome.pulling = True  # until the pod is really gone, or its time is over
    outcome.actions.append(DeletePod(pod, failure.reason, remember))


def _remember(
    pod: Pod,
    group: Group,
    failure: retry.FailureClass,
    message: str,
    share: Share,
    now: float,
) -> Attempts:
    return retry.after(
        share.attempts.get(group.key),
        failure,
        spec=share.prefetch.retry,
        key=f"{pod.node}/{group.key}",
        now=now,
        image=pod.waiting_image or retry.blamed(pod, message),
        message=message,
    )
