"""Whether a node without the gate taint gets it."""

from __future__ import annotations

from imagegate.api import fields
from imagegate.domain import match
from imagegate.domain.facts import TAINT_VALUE, GateMode, Node, OnReboot, Taint
from imagegate.domain.node.view import NodeDecision, NodeView

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


def taint(decision: NodeDecision) -> Taint | None:
    """The gate taint for a node that has none and has to be held."""
    if _goes_away(decision) or _joins_untainted(decision):
        return gate_taint(decision.view, decision.now)
    return None


def gate_taint(view: NodeView, now: float) -> Taint | None:
    """The gate taint; None while no node may be held. It has a time, because for a node that is
    held again the gate's timeout begins at that time.
    """
    if not _active(view):
        return None
    return Taint(view.taint_key, "NoSchedule", TAINT_VALUE, fields.timestamp(now))


def _active(view: NodeView) -> bool:
    """Whether nodes may be held. As in the admission policy, not before the first heartbeat,
    because the key of the taint is recorded before it (`runtime.taint_keys`).
    """
    gate = view.gate
    if gate is None or gate.suspend or gate.deleting:
        return False
    return "heartbeat" in gate.status


def _goes_away(decision: NodeDecision) -> bool:
    """Whether a node in service is not Ready any more and has to be held when it comes back. The
    taint is added this early, because a node that reboots or is wiped reports that only in the
    moment in which it is Ready again. A node that did neither is released as soon as it is Ready.
    """
    node = decision.node
    if node.ready or node.observed != node.identity or match.skipped(node, gated=False):
        return False
    return any(
        share.labelled
        and share.prefetch.gate.on_reboot is OnReboot.HOLD
        and share.prefetch.gate.mode is GateMode.NEW_NODES
        for share in decision.shares
    )


def _joins_untainted(decision: NodeDecision) -> bool:
    """Whether a new node that should be held has no taint, because no admission policy is served.

    Best effort, like every taint that a controller adds (uswitch/nidhogg#11): pods may have been
    bound to the node before. Only for a node that was never recorded, is younger than a prefetch
    that gates it, and joined while an operator was running. The policy's dead-man's switch has the
    same limit.
    """
    view, node = decision.view, decision.node
    if not view.taints_by_watch or node.observed:
        return False
    if view.gate is None or decision.now - node.created_at > view.gate.silence:
        return False
    if not view.control_planes and _is_control_plane(node):
        return False
    return any(
        share.prefetch.gate.mode is GateMode.NEW_NODES
        and node.created_at > share.prefetch.created_at
        and not share.cached
        and not share.standing.skipped
        for share in decision.shares
    )


def _is_control_plane(node: Node) -> bool:
    """By the label or the taint, as in the policy, because kubeadm adds the label only after the
    registration.
    """
    return CONTROL_PLANE in node.labels or any(t.key == CONTROL_PLANE for t in node.taints)
