"""The one patch of the node: its labels, its annotation and its taints."""

from __future__ import annotations

from collections.abc import Iterator

from imagegate.domain.actions import PatchNode, ReleaseReason
from imagegate.domain.facts import LABEL_PREFIX, GateMode, OnReboot
from imagegate.domain.node import hold
from imagegate.domain.node.view import NodeDecision, NodeView


def of_node(decision: NodeDecision) -> PatchNode:
    """The patch of the node; it may be empty."""
    view, node, verdict = decision.view, decision.node, decision.verdict
    if node.deleting:
        return PatchNode(node)
    if node.observed and node.observed != node.identity:
        return _new_life(view, decision.now)
    drop = (*_orphan_labels(view), *_untrue_labels(decision))
    taints, outdated = view.taints, view.outdated
    if taints and (verdict is None or verdict.release is None):
        # The labels of cached images are set later, in one patch with the release.
        return PatchNode(node, drop_labels=drop, remove=outdated)
    labels = {
        share.prefetch.label: share.prefetch.target
        for share in decision.shares
        if share.cached and not share.labelled and share.prefetch.images
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
        add=None if taints or outdated else hold.taint(decision),
        release=release,
        message=message,
    )


def _new_life(view: NodeView, now: float) -> PatchNode:
    """The patch of a node whose labels are from an earlier boot, or from another machine with the
    same name.

    It corrects the labels before anything else is decided: it removes the labels that have to be
    verified, and sets the annotation to the machine and boot for which the other labels are valid.
    Under ``onReboot: Hold`` it adds the taint again.
    """
    node = view.node
    same_machine = node.observed.partition("/")[0] == node.uid
    drop = set(_orphan_labels(view))
    held = False
    for share in view.shares:
        prefetch = share.prefetch
        if same_machine and prefetch.gate.on_reboot is OnReboot.IGNORE:
            continue
        if prefetch.label in node.labels:
            drop.add(prefetch.label)
        held = held or (
            same_machine
            and prefetch.gate.on_reboot is OnReboot.HOLD
            and prefetch.gate.mode is GateMode.NEW_NODES
        )
    return PatchNode(
        node,
        drop_labels=tuple(sorted(drop)),
        observed=node.identity,
        add=hold.gate_taint(view, now) if held and not view.taints else None,
    )


def _orphan_labels(view: NodeView) -> tuple[str, ...]:
    """Our labels of prefetches that are deleted or do not match this node any more."""
    live = {share.prefetch.label for share in view.shares}
    live.update(LABEL_PREFIX + name for name in view.frozen)
    return tuple(
        sorted(key for key in view.node.labels if key.startswith(LABEL_PREFIX) and key not in live)
    )


def _untrue_labels(decision: NodeDecision) -> Iterator[str]:
    """The labels of prefetches whose images the node does not hold. A prefetch without images gets
    no label either, because a label says that images are cached.
    """
    for share in decision.shares:
        prefetch = share.prefetch
        if share.evicted or (
            not prefetch.images
            and not prefetch.searching
            and prefetch.label in decision.node.labels
        ):
            yield prefetch.label
