"""The gate without an admission policy: the operator taints a joining node when the watch reports
it, or the node registers with the taint. An API server without MutatingAdmissionPolicies supports
only these two ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.cluster import NodeOptions
from tests.e2e.installation import GATE, KEY, NAMESPACE, RELEASE, Installation, exists
from tests.e2e.test_gate import rejoin
from tests.e2e.watching import NodeWatch, held, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

pytestmark = pytest.mark.older

QUICK = {"minSeconds": 1, "maxSeconds": 3}


def has_policy(cluster: LocalCluster, imagegate: Installation) -> bool:
    path = imagegate.policies
    return path is not None and exists(cluster, f"{path}/imagegate-node-gate")


@pytest.fixture(scope="module", autouse=True)
def as_before(cluster: LocalCluster, imagegate: Installation) -> Iterator[None]:
    yield
    imagegate.upgrade()
    assert has_policy(cluster, imagegate) is (imagegate.policies is not None)


def test_auto_uses_the_policy_if_it_is_served_and_otherwise_the_watch(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    served = imagegate.policies is not None
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
    arguments = cluster.api.get(path)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--gate-source={'policy' if served else 'watch'}" in arguments
    (armed,) = cluster.api.get(GATE)["status"]["conditions"]
    assert armed["reason"] == ("Armed" if served else "BestEffort")
    assert has_policy(cluster, imagegate) is served


def test_operator_taints_a_joining_node_that_the_watch_reports(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    late = "open.registry.test/watch/late:1"
    pool = {"matchLabels": {"pool": "watch"}}
    node = cluster.add_node("node-watch", NodeOptions(labels={"pool": "watch"}))
    imagegate.upgrade(**{"gate.source": "watch"})
    try:
        assert not has_policy(cluster, imagegate)
        assert not imagegate.held(node.name), "a node in service is not tainted"
        closed = {"policy": "FailClosed"}
        with (
            imagegate.prefetching("watch", late, nodeSelector=pool, gate=closed, retry=QUICK),
            NodeWatch(cluster) as watch,
        ):
            cluster.wait(lambda: imagegate.counts("watch").get("failed") == 1, "failed", 60)
            assert not imagegate.held(node.name), "a new prefetch taints no node in service"
            began = rejoin(cluster, node)
            first = watch.first(node.name, lambda seen: True, since=began)
            assert not held(first)
            tainted = watch.first(node.name, held, since=began)
            print(f"\nseen to tainted, without a policy: {(tainted.at - first.at) * 1000:.0f} ms")
            cluster.push("tiny", "watch/late:1", seed=61)
            watch.first(node.name, released, since=tainted.at)
            assert node.has_image(late)
    finally:
        cluster.remove_node(node.name)


def test_node_that_registers_with_the_taint_is_held_and_released(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    late = "open.registry.test/register/late:1"
    pool = {"matchLabels": {"pool": "register"}}
    options = NodeOptions(
        labels={"pool": "register"}, register_with_taints=(f"{KEY}=pending:NoSchedule",)
    )
    imagegate.upgrade(**{"gate.source": "none"})
    assert not has_policy(cluster, imagegate)
    closed = {"policy": "FailClosed"}
    with (
        imagegate.prefetching("register", late, nodeSelector=pool, gate=closed, retry=QUICK),
        NodeWatch(cluster) as watch,
    ):
        node = cluster.add_node("node-register", options, wait=False)
        try:
            assert held(watch.first(node.name, lambda seen: True))
            cluster.wait(lambda: imagegate.counts("register").get("gated") == 1, "gated", 60)
            cluster.wait(lambda: imagegate.counts("register").get("failed") == 1, "failed", 60)
            assert imagegate.held(node.name)
            cluster.push("tiny", "register/late:1", seed=62)
            free = watch.first(node.name, released)
            assert "cached.imagegate.dev/register" in free.body["metadata"]["labels"]
            assert node.has_image(late)
        finally:
            cluster.remove_node(node.name)
