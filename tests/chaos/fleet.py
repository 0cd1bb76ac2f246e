"""Many simulated nodes join and leave at the same time. The gate treats them as real nodes."""

from __future__ import annotations

import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.chaos import history
from tests.chaos.recorder import insist
from tests.chaos.workload import QUICK
from tests.cluster.api import ApiError

if TYPE_CHECKING:
    from tests.chaos.world import World

NODES = 50


def joins_and_leaves(world: World, rng: random.Random) -> None:
    """50 nodes join together; a third leaves while still held; the others leave at the end."""
    world.cluster.kwok(0, pull_seconds=2.0)
    world.kwok_runs += 1
    names = [f"fleet-{world.kwok_runs}-{number:02}" for number in range(NODES)]
    world.workload.apply(
        "fleet",
        world.workload.image("tiny"),
        nodeSelector={"matchLabels": {"pool": "fleet"}},
        gate={"policy": "FailClosed"},
        rollout={"maxParallel": 20},
        retry=QUICK,
    )
    try:
        world.cluster.wait(lambda: _gates(world), "the API server to have loaded the policy", 45)
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(lambda name: _join(world, name), names))
        time.sleep(rng.uniform(0.5, 2))
        early = rng.sample(names, NODES // 3)
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(lambda name: _leave(world, name), early))
        staying = set(names) - set(early)

        def free() -> bool:
            nodes = world.cluster.api.get("/api/v1/nodes?labelSelector=pool%3Dfleet")["items"]
            return {history.name(node) for node in nodes if _served(node)} == staying

        world.cluster.wait(free, f"{len(staying)} nodes cached and released", 120)
    finally:
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(lambda name: _leave(world, name), names))
        world.workload.delete("fleet")


def _served(node: dict[str, Any]) -> bool:
    return not history.held(node) and "fleet" in history.ours(node)


def _gates(world: World) -> bool:
    """Whether the admission policy is in effect, by a dry run, which is admitted and not stored. A
    new API server may apply no policy for 30 s: if it looks up the kind of the policy's parameter
    before it serves CRDs, it caches for 30 s that the kind does not exist (docs/gate.md).
    """
    answer = insist(
        lambda: world.cluster.api.post("/api/v1/nodes?dryRun=All", _node("fleet-dry-run")),
        "dry run of a node that joins",
    )
    return history.held(answer)


def _join(world: World, name: str) -> None:
    body = _node(name)

    def create() -> None:
        try:
            created = world.cluster.api.post("/api/v1/nodes", body)
        except ApiError as error:
            if error.status != 409:
                raise
        else:
            assert history.held(created), f"{name} joined without the taint"

    insist(create, f"create {name}")


def _leave(world: World, name: str) -> None:
    def delete() -> None:
        try:
            world.cluster.api.delete(f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    insist(delete, f"delete {name}")


def _node(name: str) -> dict[str, Any]:
    """A Node as a kubelet registers it. It needs a Ready condition with a time, because the policy
    does not taint a node without this condition."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    amounts = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "500Gi"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                history.SIMULATED: "true",
                "pool": "fleet",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "spec": {
            "taints": [{"key": "chaos.example.com/keep", "value": "x", "effect": "NoSchedule"}]
        },
        "status": {
            "allocatable": amounts,
            "capacity": amounts,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "KubeletNotReady",
                    "message": "registering",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
            "nodeInfo": {
                "architecture": "amd64",
                "operatingSystem": "linux",
                "bootID": str(uuid.uuid4()),
                "machineID": uuid.uuid4().hex,
                "systemUUID": str(uuid.uuid4()),
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "containerd://2.4.2",
                "kernelVersion": "6.18.0",
                "osImage": "kwok",
            },
        },
    }
