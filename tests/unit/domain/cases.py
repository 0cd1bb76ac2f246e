"""Facts for tests of decisions: small defaults, which keywords change."""

from __future__ import annotations

import dataclasses
from typing import Any

from imagegate.domain import node as node_decision
from imagegate.domain.actions import CreatePod, DeletePod, PatchNode
from imagegate.domain.facts import (
    Gate,
    GateSpec,
    Image,
    Node,
    Pod,
    Prefetch,
    RetrySpec,
    RolloutSpec,
    Taint,
)
from imagegate.domain.node import NodePlan, NodeView
from imagegate.domain.share import Share

KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
GATE_TAINT = Taint(KEY, "NoSchedule", "pending")
NOT_READY = Taint("node.kubernetes.io/not-ready", "NoSchedule")
START = 1_000_000.0
"""When nodes are created; they become Ready 10 seconds later."""
NOW = START + 60.0


def node(**changes: Any) -> Node:
    facts = Node(
        name="n1",
        uid="node-uid",
        version=7,
        labels={"kubernetes.io/hostname": "n1"},
        annotated=True,
        boot_id="boot-1",
        kubelet=(1, 36),
        runtime=("containerd", 2, 4),
        created_at=START,
        ready=True,
        ready_since=START + 10,
    )
    return dataclasses.replace(facts, **changes)


def gated(**changes: Any) -> Node:
    return node(taints=(GATE_TAINT,), **changes)


def prefetch(name: str = "llm", *images: str, **changes: Any) -> Prefetch:
    facts = Prefetch(
        name=name,
        uid=f"{name}-uid",
        version=3,
        created_at=START - 1000,
        images=tuple(Image(image) for image in images or ("reg.test/llm:1",)),
        namespace="imagegate-system",
        gate=GateSpec(),
        rollout=RolloutSpec(),
        retry=RetrySpec(),
    )
    return dataclasses.replace(facts, **changes)


def pod(of: Prefetch, on: Node, **changes: Any) -> Pod:
    group = of.groups[0]
    facts = Pod(
        name=f"ipf-{of.name}",
        namespace=of.namespace,
        uid=f"{of.name}-pod-uid",
        version=9,
        node=on.name,
        prefetch=of.name,
        group=group.key,
        images=group.images,
        observed=on.identity,
        created_at=START + 20,
    )
    return dataclasses.replace(facts, **changes)


def gate(**changes: Any) -> Gate:
    return dataclasses.replace(Gate("gate-uid", 1, KEY, status={"heartbeat": "x"}), **changes)


def view(on: Node, *shares: Share, **changes: Any) -> NodeView:
    facts = NodeView(node=on, taint_key=KEY, gate=gate(), shares=shares, first_ready=START + 10)
    return dataclasses.replace(facts, **changes)


def decide(seen: NodeView, now: float = NOW) -> NodePlan:
    """Decide, and check the rules that hold for every decision."""
    plan = node_decision.decide(seen, now)
    afresh = node_decision.decide(dataclasses.replace(seen, before=None), now)
    assert afresh == plan, "a reused outcome gave another plan"
    seconds = dataclasses.replace(seen, before=plan.decided)
    assert node_decision.decide(seconds, now) == plan, "the same facts gave two plans"
    for patch in patches(plan):
        touched = {t.key for t in (*patch.remove, patch.add) if t is not None}
        assert touched <= {KEY, *seen.earlier_keys}, "a foreign taint was touched"
    assert len(patches(plan)) <= 1, "more than one patch of one node"
    return plan


def patches(plan: NodePlan) -> list[PatchNode]:
    return [action for action in plan.actions if isinstance(action, PatchNode)]


def creates(plan: NodePlan) -> list[CreatePod]:
    return [action for action in plan.actions if isinstance(action, CreatePod)]


def deletes(plan: NodePlan) -> list[DeletePod]:
    return [action for action in plan.actions if isinstance(action, DeletePod)]
