"""Where one node stands with one ImagePrefetch, and which puller pods that asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from imagegate.domain import disk, match, retry
from imagegate.domain.actions import Action, CreatePod, DeletePod, Postpone, Standing
from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    Attempts,
    DaemonSetRef,
    Group,
    ImageFacts,
    ImageSize,
    Node,
    NodeState,
    OnReboot,
    Pod,
    Prefetch,
)

RELEASE_AFTER = 360.0
"""Seconds a finished pod stays under retention Release: by then the kubelet's image collector,
which looks every 5 minutes, has seen the images in use (never-used images go first)."""

FRESH = 5.0
"""Seconds for which a failure that was just reported proves that no pull is in flight: the
kubelet's own back-off before its next try is 10 s or more."""

LISTED_AFTER = 180.0
"""Seconds after which an image that was pulled is surely in ``status.images``, if it is large
enough: the kubelet looks every 30 s and writes every 10 s; the rest is for a watch that broke."""

REMEMBERED = 3600.0
"""Seconds for which an image that was removed again and again is still reported."""

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


@dataclass(frozen=True, slots=True)
class Share:
    """What this node and one live, matching prefetch have to do with each other."""

    prefetch: Prefetch
    pods: tuple[Pod, ...] = ()
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    """Remembered failures by group key."""
    pulled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Per pod uid, the images that the kubelet has reported as pulled."""
    failed_at: Mapping[str, float] = field(default_factory=dict)
    """Per pod uid, when this process watched it fail; absent if it was found failing."""
    place: bool = False
    """Whether the node has a place in the rollout, that is, may start pulling now."""
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """What the registry says, by reference."""
    inspected: bool = True
    """Whether the registry has been asked: a pull waits for it, for a moment only."""
    unready: Mapping[DaemonSetRef, str] = field(default_factory=dict)
    """What of ``startAfter`` is not known to have been Ready on the node since its boot, and why
    not; the reason is empty until somebody has looked."""

    def size(self, reference: str, node: Node) -> ImageSize | None:
        known = self.images.get(reference)
        return known.sizes.get(node.platform) if known is not None else None


@dataclass(frozen=True, slots=True)
class Site:
    """What all shares of one node have in common."""

    gated: bool = False
    usage: Usage | None = None
    """None: not read lately."""
    reserved: int = 0
    """Bytes on disk that pulls in flight may still take."""
    queued: int = 0
    """Compressed bytes of everything that a serial kubelet may have to pull before the last."""
    settles_at: float | None = None
    """When our labels have been as they are for so long that images can be missed; None: never."""


@dataclass(slots=True)
class Outcome:
    """The result for one share; built up step by step, then read by the node's decision."""

    state: NodeState = NodeState.PENDING
    cached: bool = False
    labelled: bool = False
    pulling: bool = False
    wants: bool = False
    failure: Attempts | None = None
    skipped: str = ""
    evicted: bool = False
    """Whether the label is not true any more: an image is gone."""
    wants_usage: bool = False
    starting: int = 0
    """Bytes on disk that the pulls started now will take."""
    awaits: Mapping[DaemonSetRef, str] = field(default_factory=dict)
    """What keeps a pull that is due from starting: see `Share.unready`."""
    actions: list[Action] = field(default_factory=list)
    requeue: list[float] = field(default_factory=list)

    @property
    def standing(self) -> Standing:
        return Standing(
            self.state, self.pulling, self.wants, self.failure, self.skipped, self.waits_for
        )

    @property
    def waits_for(self) -> str:
        return ", ".join(
            f"DaemonSet {daemon_set} to be Ready on the node" + (f" ({why})" if why else "")
            for daemon_set, why in self.awaits.items()
        )


def same_life(identity: str, node: Node, prefetch: Prefetch) -> bool:
    """Whether something recorded under ``identity`` still holds for the node as it is now."""
    if identity == node.identity:
        return True
    uid = identity.partition("/")[0]
    return uid == node.uid and prefetch.gate.on_reboot is OnReboot.IGNORE


def labelled(node: Node, prefetch: Prefetch) -> bool:
    """Whether the node's label says, and is still to be believed, that it holds the target."""
    return node.labels.get(prefetch.label) == prefetch.target and same_life(
        node.observed, node, prefetch
    )


def assess(share: Share, node: Node, now: float, site: Site) -> Outcome:
    """Decide about one share. Total: every combination of facts has an answer."""
    outcome = Outcome(labelled=labelled(node, share.prefetch))
    why = match.skipped(node, gated=site.gated) or no_image(share, node)
    if node.deleting:
        outcome.state, outcome.skipped = NodeState.SKIPPED, why or ""
        return outcome
    if share.unready and not match.joining(node, gated=site.gated):
        share = replace(share, unready={})  # nodes in service wait for nothing
    pods = _Pods.sort(share, node)
    _tidy(pods, share, node, now, outcome)
    startable = why is None and match.unsettled(node) is None
    gone = _gone(share, node) if outcome.labelled and site.settles_at is not None else {}
    if gone and site.settles_at is not None and now < site.settles_at:
        outcome.requeue.append(site.settles_at)
        gone = {}
    if gone:
        _evicted(gone, pods, share, node, now, site, outcome)
    elif outcome.labelled:
        outcome.state, outcome.cached = NodeState.CACHED, True
        _in_service(pods, share, node, now, site, outcome, startable=startable)
    else:
        _towards_cached(pods, share, node, now, site, outcome, startable=startable)
    if why is not None and not outcome.cached:
        # What runs already is left to finish, and counts if it succeeds; nothing is started.
        outcome.state, outcome.skipped = NodeState.SKIPPED, why
    return outcome


def _of_this_life(pod: Pod, node: Node, prefetch: Prefetch) -> bool:
    """Whether the pod says something about the node as it is now. What a reboot has interrupted
    does not, whatever ``onReboot`` is: with restartPolicy Never the kubelet may leave such a pod
    Pending for ever (kuberuntime_util.go, PodSandboxChanged).
    """
    if pod.finished:
        return same_life(pod.observed, node, prefetch)
    return pod.observed == node.identity


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
            elif pod.group in groups and _of_this_life(pod, node, share.prefetch):
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
    holds the new one (or belongs to an earlier boot, and then proves nothing). A running pull
    is cancelled only when not one of its images is wanted any more. One that has just failed
    pulls nothing, and may fail for ever at an image that is not wanted any more.
    """
    wanted = {image.reference for image in share.prefetch.images}
    groups = {group.key for group in share.prefetch.groups}
    outcome.actions.extend(
        DeletePod(pod, "its machine is gone") for pod in pods.departed if not pod.deleting
    )
    for pod in pods.superseded:
        if pod.deleting:
            continue
        if pod.finished:
            if outcome.labelled or pod.group in groups:
                outcome.actions.append(DeletePod(pod, "superseded"))
        elif pod.observed != node.identity:
            outcome.actions.append(DeletePod(pod, "a reboot has interrupted it"))
        elif wanted.isdisjoint(pod.images):
            outcome.actions.append(DeletePod(pod, "its images are not wanted any more"))
        elif _just_failed(pod, share, now):
            outcome.actions.append(DeletePod(pod, "superseded, and its pull failed"))


def no_image(share: Share, node: Node) -> str | None:
    """Whether no image at all is there for the node's platform."""
    known = [share.images.get(image.reference) for image in share.prefetch.images]
    if known and all(facts is not None and node.platform in facts.missing for facts in known):
        return match.NO_IMAGE
    return None


def _gone(share: Share, node: Node) -> dict[str, str]:
    """The groups of which an image has been removed behind our back, each with that image.

    It is proved by a kubelet that does not list an image larger than one that it lists; absence
    alone proves nothing, as it lists 50. Nor does a pod that was put back and fails to pull: the
    kubelet may only want its credentials checked (``imagePullCredentialsVerificationPolicy``).
    """
    if node.smallest_listed is None:
        return {}
    names = {image.reference: image.listed_as for image in share.prefetch.images}
    return {
        group.key: reference
        for group in share.prefetch.groups
        for reference in group.images
        if (size := share.size(reference, node)) is not None
        and size.compressed > node.smallest_listed
        and names[reference] not in node.listed
    }


def _evicted(
    gone: Mapping[str, str],
    pods: _Pods,
    share: Share,
    node: Node,
    now: float,
    site: Site,
    outcome: Outcome,
) -> None:
    """Take back the label, and pull again: soon, but later and later if it goes on."""
    outcome.wants_usage = site.usage is None
    outcome.evicted = True
    figures = f": {site.usage}" if site.usage is not None else ""
    for group in share.prefetch.groups:
        if group.key not in gone:
            continue
        remember = retry.evicted(
            share.attempts.get(group.key),
            key=f"{node.name}/{group.key}",
            now=now,
            image=gone[group.key],
            message=f"{gone[group.key]} was removed from the node{figures}",
        )
        _blame(outcome, remember)
        pod = pods.current.get(group.key)
        if pod is not None and pod.finished and not pod.deleting:
            outcome.actions.append(DeletePod(pod, retry.EVICTED.reason, remember))
        else:
            outcome.actions.append(Postpone(share.prefetch, node, group, remember))


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
    for group in share.prefetch.groups:
        pod = pods.current.get(group.key)
        if pod is None:
            if share.prefetch.keep:
                missing.append(group)
        elif pod.deleting:
            continue
        elif pod.phase == "Failed":
            _give_up(pod, group, retry.ended(pod.reason), _end(pod), share, now, outcome)
        elif pod.phase == "Succeeded" and not share.prefetch.keep:
            due = (pod.finished_at or pod.created_at) + RELEASE_AFTER
            if now >= due:
                outcome.actions.append(DeletePod(pod, "retention Release"))
            else:
                outcome.requeue.append(due)
        elif not pod.finished:
            _watch_pull(pod, group, share, node, now, site, outcome)
    if startable:
        _start(missing, share, node, now, site, outcome)
    for group in share.prefetch.groups:
        earlier = share.attempts.get(group.key)
        if retry.removed_again(earlier) and now < earlier.at + REMEMBERED:
            _blame(outcome, earlier)
            outcome.requeue.append(earlier.at + REMEMBERED)


def _disproved(pod: Pod, group: Group, share: Share) -> bool:
    """Whether what the pod has pulled was removed since."""
    ended = pod.finished_at or pod.created_at
    earlier = share.attempts.get(group.key)
    return pod.phase == "Succeeded" and retry.disproved(earlier, ended)


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
    for group in share.prefetch.groups:
        pod = pods.current.get(group.key)
        if pod is None:
            missing.append(group)
        elif _disproved(pod, group, share):
            # It is on its way out: the API server shows it once more, with the time of its end.
            outcome.actions += [] if pod.deleting else [DeletePod(pod, retry.EVICTED.reason)]
        elif pod.phase == "Succeeded" or share.pulled.get(pod.uid, frozenset()).issuperset(
            group.images
        ):
            done += 1
        elif pod.deleting:
            outcome.pulling = True
        elif pod.phase == "Failed":
            _give_up(pod, group, retry.ended(pod.reason), _end(pod), share, now, outcome)
        else:
            outcome.pulling = True
            _watch_pull(pod, group, share, node, now, site, outcome)
    if done == len(share.prefetch.groups):
        outcome.state, outcome.cached = NodeState.CACHED, True
        return
    busy = any(not pod.finished for pod in pods.superseded)
    outcome.pulling = outcome.pulling or busy
    # While an earlier pod still pulls something that is wanted, a second one would only wait.
    if startable and not busy:
        _start(missing, share, node, now, site, outcome)
    for group in share.prefetch.groups:
        _blame(outcome, share.attempts.get(group.key))
    if retry.exhausted(outcome.failure, share.prefetch.retry):
        outcome.state = NodeState.FAILED
    elif outcome.pulling:
        outcome.state = NodeState.PULLING


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
        if attempts is not None and attempts.next_at > now:
            outcome.requeue.append(attempts.next_at)
        else:
            due.append(group)
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
        outcome.actions.append(CreatePod(share.prefetch, node, group, count + 1, again))


def _fits(
    due: list[Group], share: Share, node: Node, now: float, site: Site, outcome: Outcome
) -> bool:
    """Whether these groups may be pulled as far as the disk is concerned.

    Where they may not, that is a failed attempt: there is something to be mended, and the next
    look is as far away as the slow end of the back-off.
    """
    limit = share.prefetch.max_usage
    if limit >= 100:
        return True
    if site.usage is None:
        outcome.wants_usage = True
        return False
    names = {image.reference: image.listed_as for image in share.prefetch.images}
    absent = [ref for group in due for ref in group.images if names[ref] not in node.listed]
    needed = disk.need(share.size(reference, node) for reference in absent)
    message = disk.refusal(site.usage, node, needed + site.reserved, limit)
    if message is None:
        outcome.starting = needed
        return True
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
        _blame(outcome, remember)
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


def _deadline(group: Group, share: Share, node: Node, site: Site) -> float | None:
    """Seconds after which a pull of this group is given up; None: never."""
    known = all(share.size(reference, node) is not None for reference in group.images)
    return retry.deadline(share.prefetch.retry, site.queued if known else None)


def _watch_pull(
    pod: Pod, group: Group, share: Share, node: Node, now: float, site: Site, outcome: Outcome
) -> None:
    """A pod that is neither finished nor going: pulling, failing, or out of time."""
    timeout = _deadline(group, share, node, site)
    if pod.waiting in PULL_ERRORS:
        failure = retry.classify(f"{pod.waiting}: {pod.waiting_message}")
        if _just_failed(pod, share, now):
            _give_up(pod, group, failure, pod.waiting_message, share, now, outcome)
            return
        # Found failing, for instance after a restart: its next try may already run, and to
        # delete the pod would cancel it. The kubelet goes on; its next verdict is acted on.
        _blame(outcome, _remember(pod, group, failure, pod.waiting_message, share, now))
    elif timeout is not None and now >= pod.created_at + timeout:
        text = f"not pulled within {timeout:.0f} s (retry.timeoutSeconds, or by the images' size)"
        _give_up(pod, group, retry.TIMED_OUT, text, share, now, outcome)
        return
    if timeout is not None:
        outcome.requeue.append(pod.created_at + timeout)


def _end(pod: Pod) -> str:
    return f"{pod.reason}: {pod.message}"


def _just_failed(pod: Pod, share: Share, now: float) -> bool:
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
    _blame(outcome, remember)
    outcome.pulling = True  # until the pod is really gone
    outcome.actions.append(DeletePod(pod, failure.reason, remember))


def _blame(outcome: Outcome, attempts: Attempts | None) -> None:
    """Keep the failure that says most about why the node is not cached: a permanent one, then
    the one tried most often.
    """
    worst = outcome.failure
    if attempts is not None and (
        worst is None or (attempts.permanent, attempts.count) > (worst.permanent, worst.count)
    ):
        outcome.failure = attempts


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
