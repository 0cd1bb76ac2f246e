"""Where no admission policy is served: the operator taints a joining node when it sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster import NodeOptions
from tests.e2e.installation import Installation, exists
from tests.e2e.test_gate import held, rejoin, released
from tests.e2e.watching import NodeWatch

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

POLICIES = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"


def test_a_joining_node_is_tainted_when_it_is_seen(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    late = "open.registry.test/watch/late:1"
    pool = {"matchLabels": {"pool": "watch"}}
    node = cluster.add_node("node-watch", NodeOptions(labels={"pool": "watch"}))
    imagegate.upgrade(**{"gate.source": "watch"})
    try:
        assert not exists(cluster, f"{POLICIES}/imagegate-node-gate")
        assert not imagegate.held(node.name), "a node in service is not tainted"
        with (
            imagegate.prefetching(
                "watch",
                late,
                nodeSelector=pool,
                gate={"policy": "FailClosed"},
                retry={"minSeconds": 1, "maxSeconds": 3},
            ),
            NodeWatch(cluster) as watch,
        ):
            cluster.wait(lambda: imagegate.counts("watch").get("failed") == 1, "failed", 60)
            assert not imagegate.held(node.name), "nor because of a new prefetch"
            began = rejoin(cluster, node)
            first = watch.first(node.name, lambda seen: True, since=began)
            assert not held(first)
            tainted = watch.first(node.name, held, since=began)
            print(f"\nseen to tainted, without a policy: {(tainted.at - first.at) * 1000:.0f} ms")
            cluster.push("tiny", "watch/late:1", seed=61)
            watch.first(node.name, released, since=tainted.at)
            assert node.has_image(late)
    finally:
        imagegate.upgrade()
        cluster.remove_node(node.name)
    assert exists(cluster, f"{POLICIES}/imagegate-node-gate")
