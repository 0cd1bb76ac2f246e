"""The decision about one node: in the order of its life, ending in at most one patch of it.

join and wait (`match.unsettled`), match, pull (`pulls.assess`), release (`gate.judge`), in
service and leave. Pure and total; deciding twice on the same facts gives the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imagegate.domain import disk, drift, gate, match, pulls, status
from imagegate.domain.actions import Action, DeletePod, NodePlan, PatchNode, ReleaseReason
from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    LABEL_PREFIX,
    TAINT_VALUE,
    Gate,
    GateMode,
    Listed,
    Node,
    OnReboot,
    Pod,
    Taint,
)
from imagegate.domain.gate import Problem
from imagegate.domain.share import Outcome, Share, Site

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True, slots=True)
class NodeView:
    """Everything that a decision about one node depends on."""

    node: Node
    taint_key: str
    """The gate's key; known even when the NodeGate is gone, or nobody could be released."""
    gate: Gate | None
    earlier_keys: frozenset[str] = frozenset()
    """Keys that the gate had before: a node that has a taint with one of them is released."""
    shares: tuple[Share, ...] = ()
    """One per live prefetch whose selector matches the node, in the order of their names."""
    orphans: tuple[Pod, ...] = ()
    """Puller pods on this node that no live, matching prefetch accounts for."""
    frozen: frozenset[str] = field(default_factory=frozenset)
    """Names of prefetches whose spec cannot be acted on: their labels and pods stay as they are."""
    problems: tuple[Problem, ...] = ()
    """Of the prefetches that ask for this node, those whose spec cannot be acted on."""
    first_ready: float = 0.0
    """When this process first saw the node Ready."""
    unready_since: float | None = None
    """Since when this process has seen the node not Ready; None: it is Ready."""
    labels_since: float | None = None
    """Since when the node's labels of ours have been as they are, as far as this process knows;
    None: nothing is concluded from it."""
    seen: Mapping[str, Listed] = field(default_factory=dict)
    """What the node has listed since its labels are as they are, by name."""
    usage: Usage | None = None
    """The node's image file system; None: not read lately."""
    taints_by_watch: bool = False
    """Whether the operator itself taints new nodes, for want of an admission policy."""
    control_planes: bool = False
    """Whether it taints those of the control plane as well."""


def decide(view: NodeView, now: float) -> NodePlan:
    """What to do about this node now, and when to look again if nothing happens before."""
    taints = view.node.taints_of((view.taint_key,))
    outcomes = _assess(view, now, gated=bool(taints))
    actions: list[Action] = [
        DeletePod(pod, "no ImagePrefetch asks for it") for pod in view.orphans if not pod.deleting
    ]
    requeue: list[float] = []
    for _, outcome in outcomes:
        actions.extend(outcome.actions)
        requeue.extend(outcome.requeue)
    verdict = _verdict(view, taints, outcomes, now)
    if verdict is not None and verdict.requeue_at is not None:
        requeue.append(verdict.requeue_at)
    patch = _patch(view, taints, outcomes, verdict, now)
    if not patch.empty:
        actions.append(patch)
    held = len(patch.remove) < len(taints) + len(_outdated(view))
    return NodePlan(
        actions=tuple(actions),
        # A moment that is over was dealt with by this very decision: without new facts there is
        # nothing to decide anew.
        requeue_at=min((at for at in requeue if at > now), default=None),
        standings={share.prefetch.name: outcome.standing for share, outcome in outcomes},
        held=held,
        holding=verdict.message if held and verdict is not None else "",
        wants_usage=any(outcome.wants_usage for _, outcome in outcomes),
        awaits=frozenset(ref for _, outcome in outcomes for ref in outcome.awaits),
    )


def _assess(view: NodeView, now: float, *, gated: bool) -> list[tuple[Share, Outcome]]:
    """One after the other, because they share the node's disk and its kubelet's queue."""
    node = view.node
    since = view.labels_since
    queued = sum(
        size.compressed
        for share in view.shares
        for image in share.prefetch.images
        if (size := share.size(image.reference, node)) is not None
    )
    held = _held(view)
    reserved = {
        key: count
        for share in view.shares
        for pod in share.pods
        if not pod.finished and pod.machine == node.uid
        for key, count in share.parts(pod.images, node).items()
        if key not in held
    }
    outcomes: list[tuple[Share, Outcome]] = []
    for share in view.shares:
        site = Site(
            gated=gated,
            usage=view.usage,
            held=held,
            reserved=reserved,
            queued=queued,
            away_at=None if view.unready_since is None else view.unready_since + match.AWAY_AFTER,
            seen=view.seen,
            settles_at=None if since is None else since + drift.LISTED_AFTER,
        )
        outcome = pulls.assess(share, node, now, site)
        reserved = {**reserved, **outcome.starting}
        outcomes.append((share, outcome))
    return outcomes


def _held(view: NodeView) -> frozenset[disk.Key]:
    """The layers and images that the node holds: it lists them, or a pod that pulled them pins
    them and the kubelet has yet to list them.
    """
    node = view.node
    held: set[disk.Key] = set()
    for share in view.shares:
        listed = [i.reference for i in share.prefetch.images if i.listed_as in node.listed]
        pulled = [
            reference
            for pod in share.pods
            if pod.phase == "Succeeded" and pod.machine == node.uid
            for reference in pod.images
        ]
        held.update(share.parts((*listed, *pulled), node))
    return frozenset(held)


def _verdict(
    view: NodeView,
    taints: tuple[Taint, ...],
    outcomes: list[tuple[Share, Outcome]],
    now: float,
) -> gate.Verdict | None:
    """The gate's verdict, or None where there is no taint or the node is on its way out."""
    if not taints or view.node.deleting:
        return None
    impossible = match.skipped(view.node, gated=True) in match.NEVER
    claims = [
        gate.Claim(
            share.prefetch,
            cached=outcome.cached,
            failure=outcome.failure,
            impossible=outcome.skipped in match.NEVER,
            why=outcome.skipped,
            waits_for=outcome.waits_for or (share.slots if outcome.wants else ""),
        )
        for share, outcome in outcomes
    ] + [
        gate.Claim(
            problem.prefetch,
            cached=False,
            problem=problem,
            impossible=impossible or problem.prefetch.forbidden,
            why=problem.message if problem.prefetch.forbidden else "",
        )
        for problem in view.problems
    ]
    again = [claim for claim in claims if claim.holds_again]
    return gate.judge(
        gate=view.gate,
        unsettled=match.unsettled(view.node),
        # A node that was in service before is held for those alone that have it held again: the
        # rollouts of the others reach it in their turn.
        claims=again if view.node.observed and again else claims,
        since=gate.ready_since(view.node, view.first_ready, taints),
        now=now,
    )


def _outdated(view: NodeView) -> tuple[Taint, ...]:
    """The gate's taints with an earlier key. Nothing else would ever remove them."""
    return view.node.taints_of(view.earlier_keys - {view.taint_key})


def _patch(
    view: NodeView,
    taints: tuple[Taint, ...],
    outcomes: list[tuple[Share, Outcome]],
    verdict: gate.Verdict | None,
    now: float,
) -> PatchNode:
    node = view.node
    if node.deleting:
        return PatchNode(node)
    if node.observed and node.observed != node.identity:
        return _new_life(view, taints, now)
    drop = _orphan_labels(view) + tuple(
        share.prefetch.label
        for share, outcome in outcomes
        # A label that stands for no image would say that something is cached.
        if outcome.evicted
        or (
            not share.prefetch.images
            and not share.prefetch.searching
            and share.prefetch.label in node.labels
        )
    )
    outdated = _outdated(view)
    if taints and (verdict is None or verdict.release is None):
        # Labels of what is cached already wait for the release: one patch for all of it.
        return PatchNode(node, drop_labels=drop, remove=outdated)
    labels = {
        share.prefetch.label: share.prefetch.target
        for share, outcome in outcomes
        if outcome.cached and not outcome.labelled and share.prefetch.images
    }
    release: ReleaseReason | None = None
    message = ""
    if taints and verdict is not None:
        release, message = verdict.release, verdict.message
    elif outdated:
        release, message = ReleaseReason.DISABLED, "the key of the gate's taint was changed"
    record = (bool(labels) or release is not None) and node.observed != node.identity
    return PatchNode(
        node,
        set_labels=labels,
        drop_labels=drop,
        observed=node.identity if record else None,
        remove=(*taints, *outdated),
        add=None if taints or outdated else _taint(view, outcomes, now),
        release=release,
        message=message,
    )


def _new_life(view: NodeView, taints: tuple[Taint, ...], now: float) -> PatchNode:
    """The labels speak of an earlier boot, or of another machine of this name.

    One patch makes them true again before anything else is decided: labels that have to be
    verified go, the annotation says what the others are true for, and ``onReboot: Hold`` puts
    the taint back.
    """
    node = view.node
    same_machine = node.observed.partition("/")[0] == node.uid
    drop = set(_orphan_labels(view))
    hold = False
    for share in view.shares:
        prefetch = share.prefetch
        if same_machine and prefetch.gate.on_reboot is OnReboot.IGNORE:
            continue
        if prefetch.label in node.labels:
            drop.add(prefetch.label)
        hold = hold or (
            same_machine
            and prefetch.gate.on_reboot is OnReboot.HOLD
            and prefetch.gate.mode is GateMode.NEW_NODES
        )
    return PatchNode(
        node,
        drop_labels=tuple(sorted(drop)),
        observed=node.identity,
        add=_gate_taint(view, now) if hold and _active(view) and not taints else None,
    )


def _orphan_labels(view: NodeView) -> tuple[str, ...]:
    """Our labels of prefetches that are gone, going, or do not match this node any more."""
    live = {share.prefetch.label for share in view.shares}
    live.update(LABEL_PREFIX + name for name in view.frozen)
    return tuple(
        sorted(key for key in view.node.labels if key.startswith(LABEL_PREFIX) and key not in live)
    )


def _taint(view: NodeView, outcomes: list[tuple[Share, Outcome]], now: float) -> Taint | None:
    """The gate taint for a node that has none, where it has to have one."""
    wanted = _goes_away(view, outcomes) or _joins_untainted(view, outcomes, now)
    return _gate_taint(view, now) if wanted and _active(view) else None


def _goes_away(view: NodeView, outcomes: list[tuple[Share, Outcome]]) -> bool:
    """Whether a node in service is not Ready any more, and is held when it comes back: it may
    reboot, or be wiped, and reports that in the same moment in which it is Ready again. One that
    has done neither is released as soon as it is Ready.
    """
    node = view.node
    if node.ready or node.observed != node.identity or match.skipped(node, gated=False):
        return False
    return any(
        outcome.labelled
        and share.prefetch.gate.on_reboot is OnReboot.HOLD
        and share.prefetch.gate.mode is GateMode.NEW_NODES
        for share, outcome in outcomes
    )


def _joins_untainted(
    view: NodeView,
    outcomes: list[tuple[Share, Outcome]],
    now: float,
) -> bool:
    """Whether a node that ought to be held joined untainted: no admission policy is served.

    Best effort, as every taint that a controller adds (uswitch/nidhogg#11): pods may have landed
    before. Only for a node that was never recorded, is younger than a prefetch that gates it,
    and joined while an operator was there, as with the policy's own dead-man's switch.
    """
    node, gate_ = view.node, view.gate
    if not view.taints_by_watch or node.observed:
        return False
    if gate_ is None or now - node.created_at > gate_.silence:
        return False
    if not view.control_planes and _is_control_plane(node):
        return False
    return any(
        share.prefetch.gate.mode is GateMode.NEW_NODES
        and node.created_at > share.prefetch.created_at
        and not outcome.cached
        and not outcome.skipped
        for share, outcome in outcomes
    )


def _is_control_plane(node: Node) -> bool:
    """By its taint too: kubeadm adds the label after the registration, as in the policy."""
    return CONTROL_PLANE in node.labels or any(t.key == CONTROL_PLANE for t in node.taints)


def _active(view: NodeView) -> bool:
    """Whether nodes may be held. As in the admission policy, not before the first heartbeat:
    only then is it recorded that nodes may have a taint with this key (`runtime.taint_keys`).
    """
    gate_ = view.gate
    if gate_ is None or gate_.suspend or gate_.deleting:
        return False
    return "heartbeat" in gate_.status


def _gate_taint(view: NodeView, now: float) -> Taint:
    """With the time, from which the gate's timeout is counted for a node that is held again."""
    return Taint(view.taint_key, "NoSchedule", TAINT_VALUE, status.timestamp(now))
