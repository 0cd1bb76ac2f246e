"""Which nodes an ImagePrefetch selects, and which nodes are skipped for now.

Functions return evidence rather than booleans: the text names the taint or condition, so that a
status message can show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imagegate.domain.facts import Node, Operator, Prefetch, Requirement

UNSETTLED_TAINTS = (
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
)
"""While the node has one of these taints, its labels are incomplete (and Karpenter would add a
startup taint again that was removed too early: kubernetes-sigs/karpenter#1772)."""

LEAVING_TAINTS = (
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.kubernetes.io/out-of-service",
)

AWAY_AFTER = 180.0
"""Seconds for which a node that is not Ready keeps its slot. A kubelet that restarts is Ready again
before that; a machine that lost its power does not come back by itself. The pull may continue
unseen, so more than maxParallel nodes may pull for a while."""
AWAY = "NodeNotReady"
VIRTUAL = "no kubelet of its own"
WINDOWS = "Windows"
NO_IMAGE = "no image for its platform"
NEVER = frozenset({VIRTUAL, WINDOWS, NO_IMAGE})
"""The reasons for skipping a node that never pass, so that the gate does not wait for the node."""

VIRTUAL_LABELS = (
    ("eks.amazonaws.com/compute-type", "fargate"),
    ("type", "virtual-kubelet"),
    ("liqo.io/type", "virtual-node"),
    ("type", "kwok"),
)
VIRTUAL_TAINT = "virtual-kubelet.io/provider"
"""The key of the taint that Virtual Kubelet, and projects built on it, give their nodes."""


def matches(prefetch: Prefetch, node: Node) -> bool:
    """Whether the prefetch selects this node (section 2, ``nodeSelector``)."""
    return selects(prefetch.selector, node.labels)


def selects(selector: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector selects an object with these labels; an empty one selects all."""
    return all(_satisfied(requirement, labels) for requirement in selector)


def _satisfied(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case Operator.IN:
            return value in requirement.values
        case Operator.NOT_IN:
            # As in Kubernetes: an object without the label satisfies NotIn.
            return value not in requirement.values
        case Operator.EXISTS:
            return value is not None
        case Operator.DOES_NOT_EXIST:
            return value is None


def unsettled(node: Node) -> str | None:
    """Why no pull can start on this node yet, or None when it is ready for pulls."""
    for taint in node.taints:
        if taint.key in UNSETTLED_TAINTS:
            return f"taint {taint.key}"
    return None if node.ready else "not Ready"


def joining(node: Node, *, gated: bool) -> bool:
    """Whether the node is held, or was not recorded since its last boot."""
    return gated or node.observed != node.identity


def skipped(node: Node, *, gated: bool) -> str | None:
    """Why this node is skipped, or None. A cordoned node is not skipped while it is gated, because
    cluster tooling often uncordons a node only once it has no startup taints left.
    """
    if node.deleting:
        return "the Node is being deleted"
    for taint in node.taints:
        if taint.key in LEAVING_TAINTS:
            return f"taint {taint.key}"
    if _virtual(node):
        return VIRTUAL
    if node.labels.get("kubernetes.io/os") == "windows":
        # For Windows the pod's security context is refused, and neither a pause image's -v nor a
        # Linux busybox runs there.
        return WINDOWS
    if node.disk_pressure:
        return "DiskPressure"
    if node.unschedulable and not gated:
        return "cordoned"
    return None


def _virtual(node: Node) -> bool:
    labelled = any(node.labels.get(key) == value for key, value in VIRTUAL_LABELS)
    return labelled or any(taint.key == VIRTUAL_TAINT for taint in node.taints)
