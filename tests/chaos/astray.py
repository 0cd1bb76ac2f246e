"""Checks that the cluster has converged: one text for each difference from the expected state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from tests.chaos import history
from tests.chaos.history import Body
from tests.cluster.api import ApiError
from tests.cluster.errors import ClusterError
from tests.e2e.installation import GATE, NAMESPACE, PREFETCHES, PULLERS, SILENCE, Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


def look(
    cluster: LocalCluster,
    imagegate: Installation,
    expected: Mapping[str, Mapping[str, Any]],
    *,
    leases: AbstractSet[str],
    everything: bool = False,
) -> list[str]:
    """The differences; empty when the cluster has converged and no object of ours is left over.

    `everything`: also reports pods of deleted nodes, which Kubernetes itself garbage-collects.
    """
    try:
        nodes: list[Body] = cluster.api.get("/api/v1/nodes")["items"]
        pods: list[Body] = cluster.api.get(
            f"/api/v1/namespaces/{PULLERS}/pods?labelSelector=imagegate.dev%2Fprefetch"
        )["items"]
        prefetches: list[Body] = cluster.api.get(PREFETCHES)["items"]
        names = map(history.name, nodes)
        wrong = [
            *_operator(cluster, imagegate, leases),
            *_prefetches(prefetches, nodes, expected),
            *(f"{name} has not joined" for name in set(cluster.nodes) - set(names)),
            *(text for node in nodes for text in _node(node, prefetches)),
            *_pods(pods, nodes, prefetches, everything=everything),
        ]
        return wrong or _contents(cluster, nodes, prefetches)
    except (ApiError, ClusterError, OSError) as error:
        return [f"the API server does not answer: {error}"]


def _operator(
    cluster: LocalCluster, imagegate: Installation, leases: AbstractSet[str]
) -> list[str]:
    pods = {history.name(pod) for pod in imagegate.operator_pods() if _ready(pod)}
    wrong = [] if len(pods) == 2 else [f"{len(pods)} operator pods are Ready"]
    if imagegate.leader() not in pods:
        wrong.append(f"the Lease is held by {imagegate.leader() or 'nobody'}")
    if imagegate.heartbeat_age() > SILENCE / 3:
        wrong.append("no heartbeat")
    there = {history.name(lease) for lease in cluster.api.get(LEASES)["items"]}
    if there != leases:
        wrong.append(f"Leases {sorted(there)}")
    gate = cluster.api.get(GATE).get("status") or {}
    if not gate.get("armed") or gate.get("held"):
        wrong.append(f"the NodeGate says {gate}")
    return wrong


def _prefetches(
    prefetches: Sequence[Body], nodes: Sequence[Body], expected: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    wrong = []
    names = {history.name(body) for body in prefetches}
    if names != set(expected):
        wrong.append(f"ImagePrefetches {sorted(names)} instead of {sorted(expected)}")
    for body in prefetches:
        name, status = history.name(body), body.get("status") or {}
        if history.deleting(body):
            wrong.append(f"{name} is being deleted")
            continue
        if status.get("observedGeneration") != body["metadata"]["generation"]:
            wrong.append(f"{name}: generation not observed")
        counts = status.get("nodes") or {}
        matching = sum(history.ask(body).wants(node) for node in nodes)
        wanted = {"desired": matching, "cached": matching}
        if any(counts.get(key) != wanted.get(key, 0) for key in (*counts, *wanted)):
            wrong.append(f"{name}: {counts} of {matching} nodes")
        if status.get("failures"):
            wrong.append(f"{name}: failures {status['failures']}")
        ready = {c["type"]: c["status"] for c in status.get("conditions") or ()}
        if ready != {"Ready": "True", "Progressing": "False", "Degraded": "False"}:
            wrong.append(f"{name}: {ready}")
    return wrong


def _node(node: Body, prefetches: Sequence[Body]) -> list[str]:
    wrong, name = [], history.name(node)
    if history.held(node):
        wrong.append(f"{name} is held")
    asks = {history.name(body): history.ask(body) for body in prefetches}
    wanted = {each: ask.target for each, ask in asks.items() if ask.wants(node)}
    if history.ours(node) != wanted:
        wrong.append(f"{name} has the labels {history.ours(node)} instead of {wanted}")
    observed = history.notes(node).get(history.OBSERVED)
    if wanted and observed != history.identity(node):
        wrong.append(f"{name} is annotated {observed} instead of {history.identity(node)}")
    if history.ready_since(node) is None:
        wrong.append(f"{name} is not Ready")
    return wrong


def _pods(
    pods: Sequence[Body], nodes: Sequence[Body], prefetches: Sequence[Body], *, everything: bool
) -> list[str]:
    """Every node keeps one finished pod for each prefetch, because the few images are one group."""
    wrong = []
    uids = {history.uid(node): history.name(node) for node in nodes}
    wanted = Counter(
        (history.name(body), history.name(node))
        for body in prefetches
        for node in nodes
        if history.ask(body).wants(node)
    )
    found: Counter[tuple[str, str]] = Counter()
    for pod in pods:
        node = uids.get(history.machine(pod))
        if node is None and history.deleting(pod) and not everything:
            continue  # the pod garbage collector waits 40 s and runs every 20 s
        if node is None or history.deleting(pod) or not history.succeeded(pod):
            phase = (pod.get("status") or {}).get("phase")
            wrong.append(f"pod {history.name(pod)} on {pod['spec'].get('nodeName')}: {phase}")
        else:
            found[history.labels(pod)[history.PREFETCH], node] += 1
    if found != wanted:
        wrong.append(f"puller pods: missing {wanted - found}, too many {found - wanted}")
    return wrong


def _contents(
    cluster: LocalCluster, nodes: Sequence[Body], prefetches: Sequence[Body]
) -> list[str]:
    """The images that labels promise and containerd does not list."""
    wrong = []
    real = cluster.nodes
    for node in nodes:
        name = history.name(node)
        if name not in real or not history.ours(node):
            continue
        there = real[name].images()
        for body in prefetches:
            if history.name(body) in history.ours(node):
                missing = set(history.ask(body).images) - there
                wrong += [f"{name} does not have {image}" for image in sorted(missing)]
    return wrong


def _ready(pod: Body) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return not history.deleting(pod) and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )
