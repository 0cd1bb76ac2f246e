"""A joining node is tainted from its first version on, and released when its images are cached."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import NodeOptions
from tests.cluster.errors import ClusterError
from tests.e2e.installation import KEY, SILENCE, Installation
from tests.e2e.watching import NodeWatch, held, is_ready, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

POOL = {"matchLabels": {"pool": "join"}}
FOREIGN = "example.com/somebody-else"


def rejoin(cluster: LocalCluster, node: Node) -> float:
    """Delete the Node and let it join again as a new Node. Returns the time before the kubelet's
    restart."""
    cluster.kubectl("delete", "node", node.name)
    began = time.time()
    node.restart("kubelet")
    return began


@pytest.fixture(scope="module")
def joined(cluster: LocalCluster, imagegate: Installation) -> Iterator[Node]:
    """A third node, with a foreign taint, that tests let join again and again."""
    yield cluster.add_node(
        "node-join",
        NodeOptions(labels={"pool": "join"}, register_with_taints=(f"{FOREIGN}=x:NoSchedule",)),
    )
    cluster.remove_node("node-join")


@pytest.fixture(scope="module", autouse=True)
def policies(imagegate: Installation) -> None:
    imagegate.require_policies()


def waiting_pod(image: str) -> dict[str, object]:
    """A pod that runs only on a node with the image, because its pull policy is Never."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "waiting", "namespace": "default"},
        "spec": {
            "nodeSelector": {"pool": "first"},
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": image, "imagePullPolicy": "Never"}],
        },
    }


def test_pod_lands_on_a_joining_node_only_after_its_images_are_cached(
    cluster: LocalCluster, imagegate: Installation, tmp_path: Path
) -> None:
    big = cluster.push("big", "gate/big:1", seed=2)
    data = cluster.push("data", "gate/data:1", seed=2)
    selector = {"matchLabels": {"pool": "first"}}
    with (
        imagegate.prefetching("join", data, big, nodeSelector=selector),
        NodeWatch(cluster) as watch,
    ):
        cluster.apply(waiting_pod(big))
        node = cluster.add_node("node-first", NodeOptions(labels={"pool": "first"}), wait=False)
        try:
            with node.image_events(tmp_path / "events") as events:
                first = watch.first(node.name, lambda seen: True)
                assert held(first), "the first visible version of the node was not tainted"
                pod = cluster.api.get("/api/v1/namespaces/default/pods/waiting")
                assert pod["status"]["phase"] == "Pending"
                complete = max(events.wait_for(image, 120) for image in (big, data))
                free = watch.first(node.name, released, timeout=30)
            assert all(held(seen) for seen in watch.of(node.name) if seen.at < free.at)
            delay = free.at - complete
            print(f"\nlast image complete in containerd to taint gone: {delay * 1000:.0f} ms")
            assert delay > 0, "released before the last image was complete"
            assert delay < 2
            cluster.wait(
                lambda: (
                    cluster.api.get("/api/v1/namespaces/default/pods/waiting")["status"]["phase"]
                    == "Running"
                ),
                "the pod that never pulls to run",
                60,
            )
            reasons = [event["reason"] for event in imagegate.events("Node", node.name)]
            assert "ImagesCached" in reasons
        finally:
            cluster.kubectl(
                "delete", "pod", "waiting", "--ignore-not-found", "--grace-period=0", "--force"
            )
            cluster.remove_node(node.name)


def test_nodes_that_join_together_do_not_wait_for_each_other(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """One image of 300 MiB; each node has its own link."""
    image = cluster.push("big", "gate/together:1", seed=23)
    selector = {"matchLabels": {"pool": "together"}}
    with imagegate.prefetching("together", image, nodeSelector=selector):
        (alone,) = join_together(cluster, ["alone"])
        times = join_together(cluster, [f"together-{number}" for number in range(4)])
    print(f"\nReady to released: alone {alone:.1f} s, four together", end=" ")
    print(", ".join(f"{each:.1f}" for each in times), "s")
    assert max(times) < 1.25 * alone + 1


def join_together(cluster: LocalCluster, names: list[str]) -> list[float]:
    """Seconds from Ready to the removal of the taint, for nodes that join at the same moment."""
    try:
        with NodeWatch(cluster) as watch:
            for name in names:
                node = cluster.add_node(name, NodeOptions(labels={"pool": "together"}), wait=False)
                node.limit_bandwidth("200mbit")
            began = [watch.first(name, is_ready).at for name in names]
            ended = [watch.first(name, released, timeout=120).at for name in names]
        return [end - begin for begin, end in zip(began, ended, strict=True)]
    finally:
        for name in names:
            cluster.remove_node(name)


def test_node_is_released_after_all_gating_prefetches_and_keeps_foreign_taints(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    there = cluster.push("tiny", "gate/and-a:1", seed=21)
    late = "open.registry.test/gate/and-b:1"
    closed = {"policy": "FailClosed"}
    quick = {"minSeconds": 1, "maxSeconds": 3}
    with (
        imagegate.prefetching("and-a", there, nodeSelector=POOL),
        imagegate.prefetching("and-b", late, nodeSelector=POOL, gate=closed, retry=quick),
        NodeWatch(cluster) as watch,
    ):
        began = rejoin(cluster, joined)
        assert held(watch.first(joined.name, lambda seen: True, since=began))
        cluster.wait(lambda: imagegate.counts("and-a").get("cached") == 1, "and-a cached", 60)
        cluster.wait(lambda: imagegate.counts("and-b").get("failed") == 1, "and-b failed", 60)
        condition = imagegate.condition("and-b", "Degraded")
        assert condition["reason"] == "ImageNotFound"
        time.sleep(3)
        assert imagegate.held(joined.name), "FailClosed holds until the image is there"
        assert imagegate.counts("and-b")["gated"] == 1
        cluster.push("tiny", "gate/and-b:1", seed=22)
        free = watch.first(joined.name, released, since=began, timeout=60)
        labels = free.body["metadata"]["labels"]
        assert {"cached.imagegate.dev/and-a", "cached.imagegate.dev/and-b"} <= set(labels)
        assert FOREIGN in free.taints()
        assert joined.has_image(there)
        assert joined.has_image(late)
    assert FOREIGN in imagegate.taints(joined.name)


def test_node_without_a_matching_prefetch_is_released_immediately(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    with NodeWatch(cluster) as watch:
        began = rejoin(cluster, joined)
        assert held(watch.first(joined.name, lambda seen: True, since=began))
        ready = watch.first(joined.name, is_ready, since=began)
        free = watch.first(joined.name, released, since=began)
        print(f"\nReady to released, no prefetch: {(free.at - ready.at) * 1000:.0f} ms")
        assert free.at - ready.at < 2


def test_fail_open_releases_immediately_and_reports_a_missing_image(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    metric = 'imagegate_gate_releases_total{reason="failed"}'
    before = imagegate.metrics()[metric]
    missing = "open.registry.test/gate/missing:1"
    with (
        imagegate.prefetching("missing", missing, nodeSelector=POOL),
        NodeWatch(cluster) as watch,
    ):
        began = rejoin(cluster, joined)
        ready = watch.first(joined.name, is_ready, since=began)
        free = watch.first(joined.name, released, since=began)
        assert free.at - ready.at < 20, "far less than the timeout of 600 s"
        cluster.wait(lambda: imagegate.is_true("missing", "Degraded"), "Degraded", 20)
        condition = imagegate.condition("missing", "Degraded")
        assert condition["reason"] == "ImageNotFound"
        assert missing in condition["message"]
        assert "push the image" in condition["message"]
        texts = [event["message"] for event in imagegate.events("Node", joined.name)]
        assert any("ImageNotFound" in text for text in texts)
        assert imagegate.metrics()[metric] == before + 1
        failures = imagegate.metrics()
        name = 'imagegate_pull_failures_total{prefetch="missing",reason="ImageNotFound"}'
        assert failures[name] >= 1


def test_stopped_registry_is_retried_and_node_is_released_at_the_timeout(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    image = cluster.push("tiny", "gate/down:1", registry="secure", seed=23)
    registry = cluster.registries["secure"]
    registry.stop()
    try:
        with (
            imagegate.prefetching(
                "down",
                image,
                nodeSelector=POOL,
                gate={"timeoutSeconds": 15},
                retry={"minSeconds": 1, "maxSeconds": 3, "limit": 50},
            ),
            NodeWatch(cluster) as watch,
        ):
            began = rejoin(cluster, joined)
            ready = watch.first(joined.name, is_ready, since=began)
            free = watch.first(joined.name, released, since=began, timeout=60)
            assert 13 < free.at - ready.at < 20
            name = 'imagegate_pull_failures_total{prefetch="down",reason="RegistryUnreachable"}'
            assert imagegate.metrics()[name] >= 2
            texts = [event["message"] for event in imagegate.events("Node", joined.name)]
            assert any("not cached within 15 s" in text for text in texts)
    finally:
        registry.start()


def test_a_rebooted_node_is_verified(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    image = cluster.push("tiny", "gate/reboot:1", seed=24)
    with imagegate.prefetching("reboot", image, nodeSelector=POOL):
        imagegate.wait_ready("reboot")
        before = {pod["metadata"]["uid"] for pod in imagegate.pullers("reboot")}
        boot = joined.boot_id()
        joined.reboot()
        cluster.wait(lambda: joined.boot_id() != boot, "the node up again", 60)

        def verified() -> bool:
            after = {pod["metadata"]["uid"] for pod in imagegate.pullers("reboot")}
            observed = imagegate.node(joined.name)["metadata"]["annotations"].get(
                "imagegate.dev/observed", ""
            )
            return (
                observed.endswith(f"/{joined.boot_id()}")
                and before.isdisjoint(after)
                and imagegate.is_true("reboot")
            )

        cluster.wait(verified, "the node verified", 90)
        assert not imagegate.held(joined.name)


def test_suspend_releases_held_nodes_and_taints_no_joining_node(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    missing = "open.registry.test/gate/never:1"
    with (
        imagegate.prefetching("never", missing, nodeSelector=POOL, gate={"policy": "FailClosed"}),
        NodeWatch(cluster) as watch,
    ):
        began = rejoin(cluster, joined)
        assert held(watch.first(joined.name, lambda seen: True, since=began))
        time.sleep(2)
        assert imagegate.held(joined.name)
        imagegate.suspend(True)
        try:
            watch.first(joined.name, released, since=began, timeout=10)
            time.sleep(2)  # until the API server's policy informer has seen the change
            again = rejoin(cluster, joined)
            assert not held(watch.first(joined.name, lambda seen: True, since=again))
        finally:
            imagegate.suspend(False)
            imagegate.wait_armed()


def test_gate_is_off_without_heartbeats_and_on_when_the_operator_returns(
    cluster: LocalCluster, imagegate: Installation, joined: Node
) -> None:
    image = cluster.push("tiny", "gate/silent:1", seed=25)
    with (
        imagegate.prefetching("silent", image, nodeSelector=POOL),
        NodeWatch(cluster) as watch,
    ):
        imagegate.wait_ready("silent")
        imagegate.scale(0)
        imagegate.patch_gate(silenceSeconds=30)
        try:
            cluster.wait(lambda: imagegate.heartbeat_age() > 32, "silence", 62)
            began = rejoin(cluster, joined)
            first = watch.first(joined.name, lambda seen: True, since=began)
            assert not held(first), "the gate must not hold nodes without an operator"
        finally:
            imagegate.patch_gate(silenceSeconds=SILENCE)
            imagegate.scale(2)
        imagegate.wait_armed()
        again = rejoin(cluster, joined)
        assert held(watch.first(joined.name, lambda seen: True, since=again))
        watch.first(joined.name, released, since=again)


def test_every_taint_with_the_gate_key_is_removed_on_release(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """The taint comes from a node pool with another effect, was changed by hand, or is the second
    taint with the key."""
    options = NodeOptions(
        labels={"pool": "effects"},
        register_with_taints=(f"{KEY}=startup:NoExecute", f"{KEY}=startup:PreferNoSchedule"),
    )
    selector = {"matchLabels": {"pool": "effects"}}
    missing = "open.registry.test/gate/never:3"
    try:
        with imagegate.prefetching(
            "effects",
            missing,
            nodeSelector=selector,
            gate={"policy": "FailClosed"},
            retry={"minSeconds": 1, "maxSeconds": 2},
        ):
            node = cluster.add_node("effects", options)
            cluster.wait(lambda: imagegate.counts("effects").get("gated") == 1, "it is held", 30)
            time.sleep(3)
            assert imagegate.taints("effects").count(KEY) == 2
            image = cluster.push("tiny", "gate/never:3", seed=27)
            cluster.wait(lambda: not imagegate.held("effects"), "both taints removed", 60)
            assert node.has_image(image)
        # No prefetch matches the node any more.
        for taint in (f"{KEY}=by-hand:NoExecute", f"{KEY}:PreferNoSchedule"):
            cluster.kubectl("taint", "nodes", "effects", taint)
            cluster.wait(lambda: not imagegate.held("effects"), f"{taint} removed", 20)
        imagegate.scale(0)
        try:
            for taint in (f"{KEY}=by-hand:NoExecute", f"{KEY}:NoSchedule"):
                cluster.kubectl("taint", "nodes", "effects", taint)
            # The command of docs/gate.md ("break the glass"). kubectl fails for nodes without the
            # taint.
            with contextlib.suppress(ClusterError):
                cluster.kubectl("taint", "nodes", "--all", f"{KEY}-")
            assert not imagegate.held("effects")
        finally:
            imagegate.scale(2)
        imagegate.wait_armed()
    finally:
        cluster.remove_node("effects")


def test_change_of_the_taint_key_releases_every_node_with_the_old_key(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """The documented way to change the key: delete the NodeGate and create it again. The Nodes have
    no machine, so they never become Ready and stay held."""
    names = [f"rekey-{number}" for number in range(60)]
    closed = {"policy": "FailClosed"}
    selector = {"matchLabels": {"pool": "rekey"}}
    gate = imagegate.gate()
    other = "startup-taint.cluster-autoscaler.kubernetes.io/other"
    try:
        with imagegate.prefetching(
            "rekey", "open.registry.test/gate/never:2", nodeSelector=selector, gate=closed
        ):
            for name in names:
                cluster.api.post("/api/v1/nodes", held_node(name))
            cluster.wait(lambda: imagegate.counts("rekey").get("gated") == 60, "60 held", 20)
            imagegate.replace_gate({**gate["spec"], "taintKey": other})
            end = time.monotonic() + 15
            while (stuck := [name for name in names if imagegate.held(name)]) and (
                time.monotonic() < end
            ):
                time.sleep(0.5)
            gated = imagegate.counts("rekey").get("gated")
            assert not stuck, f"{len(stuck)} of 60 have the old taint, and {gated} count as gated"
    finally:
        for name in names:
            cluster.kubectl("delete", "node", name, "--ignore-not-found", "--wait=false")
        imagegate.replace_gate(gate["spec"])
        imagegate.wait_armed()


def held_node(name: str) -> dict[str, Any]:
    """A Node that is held and has no kubelet."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"pool": "rekey"}},
        "spec": {"taints": [{"key": KEY, "value": "pending", "effect": "NoSchedule"}]},
    }
