"""A thousand simulated nodes next to the real nodes, and the operator's requests to the API server.

`make scale` does the same with 5,000 nodes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

NODES = int(os.environ.get("IMAGEGATE_SCALE_NODES", "1000"))
CACHED_WITHIN = 120 + NODES / 5
"""Seconds on a slow machine. The clean-up may take as long, because it writes as often."""
BUDGET = 3
"""Writes per node and rollout (pod create, node patch, pod delete)."""


def requests(cluster: LocalCluster, user: str, since: float) -> Counter[tuple[str, str]]:
    """A user's requests to the API server, by verb and resource, from its audit log."""
    counted: Counter[tuple[str, str]] = Counter()
    for event in cluster.audit():
        if event["user"]["username"] != user or _seconds(event) < since:
            continue
        reference = event.get("objectRef") or {}
        resource = str(reference.get("resource") or event.get("requestURI"))
        if sub := reference.get("subresource"):
            resource += f"/{sub}"
        counted[event["verb"], resource] += 1
    return counted


def _seconds(event: dict[str, str]) -> float:
    return datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()


def test_a_thousand_nodes_stay_within_the_write_budget_and_then_cause_no_writes(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    cluster.kwok(NODES, labels={"pool": "kwok"}, pull_seconds=2.0)
    image = cluster.push("tiny", "scale/a:1", seed=51)
    pool = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["kwok"]}]}
    user = imagegate.service_account()
    try:
        began = time.time()
        # Keep does not delete the pod. With Release every node costs all three writes.
        imagegate.prefetch("thousand", image, nodeSelector=pool, retention={"mode": "Keep"})
        cluster.wait(
            lambda: imagegate.counts("thousand").get("cached") == NODES,
            f"{NODES} nodes cached",
            CACHED_WITHIN,
        )
        took = time.time() - began
        imagegate.wait_ready("thousand", 30)
        body = imagegate.get("thousand")
        assert body["status"]["nodes"]["desired"] == NODES
        size = len(json.dumps(body["status"]))
        assert size < 16 * 1024
        asked = requests(cluster, user, began)
        writes = sum(n for (verb, res), n in asked.items() if _is_work(verb, res))
        metrics = imagegate.metrics()
        print(f"\n{NODES} nodes cached in {took:.1f} s, {writes / NODES:.2f} writes per node")
        print(f"status {size} bytes, {json.dumps(body['status']['nodes'])}")
        print(f"resident memory {metrics['process_resident_memory_bytes'] / 2**20:.0f} MiB")
        print(f"peak memory {peak(imagegate, cluster) / 2**20:.0f} MiB")
        print(f"requests: {dict(asked)}")
        assert writes / NODES <= BUDGET
        # Only the resync lists Nodes, every 5 minutes, with 500 Nodes a page.
        # A process that starts lists them three times. On a starved machine a leader may lose its
        # lease, and both processes start again.
        resyncs = 1 + int(took / 270) + 3 * asked["get", "/api"]
        assert asked["list", "nodes"] <= resyncs * (NODES // 500 + 1)
        time.sleep(5)
        quiet = time.time()
        time.sleep(60)
        idle = {k: n for k, n in requests(cluster, user, quiet).items() if _is_work(*k)}
        print(f"work in a minute of quiet: {idle}")
        assert idle == {}
    finally:
        imagegate.delete("thousand", CACHED_WITHIN)
        cluster.kwok_delete(
            [
                node["metadata"]["name"]
                for node in cluster.api.get("/api/v1/nodes?labelSelector=pool%3Dkwok")["items"]
            ]
        )
        cluster.kwok_stop()


def _is_work(verb: str, resource: str) -> bool:
    """Whether a request is a write, except renewals of the Lease and heartbeats."""
    return verb in ("create", "update", "patch", "delete") and resource not in (
        "leases",
        "nodegates/status",
    )


def peak(imagegate: Installation, cluster: LocalCluster) -> float:
    """The operator's peak resident memory in bytes, as the kernel reports it (VmHWM)."""
    text = cluster.kubectl(
        "-n",
        "imagegate-system",
        "exec",
        imagegate.leader(),
        "--",
        "python3",
        "-c",
        "print(open('/proc/1/status').read())",
    )
    line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) * 1024
