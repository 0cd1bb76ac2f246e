"""A joining node pulls only after the pods of the `startAfter` DaemonSets are Ready on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.cluster import NodeOptions
from tests.e2e import daemons
from tests.e2e.installation import Installation
from tests.e2e.watching import NodeWatch, Sighting, Watch, is_ready, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

POOL = {"matchLabels": {"pool": "after"}}


@pytest.fixture(scope="module")
def joining(cluster: LocalCluster, imagegate: Installation) -> Iterator[Node]:
    yield cluster.add_node("node-after", NodeOptions(labels={"pool": "after"}))
    cluster.remove_node("node-after")


def after(name: str, namespace: str = daemons.NAMESPACE) -> dict[str, str]:
    return {"namespace": namespace, "daemonSet": name}


def of_daemon(seen: Sighting) -> bool:
    return bool(seen.body["metadata"].get("labels", {}).get("app") == "agent")


def of_prefetch(seen: Sighting) -> bool:
    labels = seen.body["metadata"].get("labels", {})
    return bool(labels.get("imagegate.dev/prefetch") == "after")


def test_no_pull_starts_before_the_pod_of_the_daemonset_is_ready(
    cluster: LocalCluster, imagegate: Installation, joining: Node
) -> None:
    busybox = cluster.push("busybox", "after/agent:1")
    image = cluster.push("tiny", "after/app:1", seed=81)
    with (
        daemons.allowed(cluster, imagegate),
        imagegate.prefetching("after", image, nodeSelector=POOL, startAfter=[after("agent")]),
        NodeWatch(cluster) as nodes,
        Watch(cluster, "/api/v1/pods") as pods,
    ):
        imagegate.wait_ready("after")  # a node in service does not wait for the missing agent
        imagegate.delete("after")
        joining.remove_image(image)
        before = len(pods.sightings)
        # Apply the prefetch while the Node is deleted, because a Node that is Ready before is
        # released immediately.
        cluster.kubectl("delete", "node", joining.name)
        imagegate.prefetch("after", image, nodeSelector=POOL, startAfter=[after("agent")])
        began = time.time()
        joining.restart("kubelet")
        ready = nodes.first(joining.name, is_ready, since=began)

        def waiting(what: str) -> None:
            def says() -> bool:
                condition = imagegate.condition("after", "Progressing")
                return condition["reason"] == "WaitingForDaemonSet" and what in condition["message"]

            cluster.wait(says, f"the condition to say: {what}", 20)

        waiting(f"{joining.name}: DaemonSet mirrors/agent to be Ready on the node (it does not")
        cluster.apply(daemons.late("agent", busybox, "after", seconds=6))
        waiting(" is not Ready)")
        assert imagegate.held(joining.name)
        assert imagegate.counts("after")["pending"] == 1
        free = nodes.first(joining.name, released, since=began)
        assert imagegate.is_true("after") or joining.has_image(image)

        # One watch shows both pods, in the order in which the API server wrote them.
        seen = pods.sightings[before:]
        (first_pull, *_) = (n for n, s in enumerate(seen) if of_prefetch(s) and s.type == "ADDED")
        (first_ready, *_) = (n for n, s in enumerate(seen) if of_daemon(s) and is_ready(s))
        assert first_ready < first_pull, "a puller pod before the agent was Ready"
        waited = seen[first_ready].at - ready.at
        started = seen[first_pull].at - seen[first_ready].at
        print(
            f"\nnode Ready to agent Ready: {waited:.1f} s; to the puller pod: {started:.2f} s more"
        )
        print(f"puller pod to released: {free.at - seen[first_pull].at:.2f} s")
        assert waited > 5, "the agent was Ready too early for this test"
        assert started < 4
        label = free.body["metadata"]["labels"]["cached.imagegate.dev/after"]
        assert label == imagegate.get("after")["status"]["target"]


def test_missing_daemonsets_are_reported_and_the_gate_timeout_applies(
    cluster: LocalCluster, imagegate: Installation, joining: Node
) -> None:
    image = cluster.push("tiny", "after/app:2", seed=82)
    missing = [after("absent"), after("kube-proxy", "kube-public")]
    with (
        daemons.allowed(cluster, imagegate),
        NodeWatch(cluster) as nodes,
    ):
        cluster.kubectl("delete", "node", joining.name)
        with imagegate.prefetching(
            "absent", image, nodeSelector=POOL, startAfter=missing, gate={"timeoutSeconds": 12}
        ):
            began = time.time()
            joining.restart("kubelet")
            ready = nodes.first(joining.name, is_ready, since=began)

            def explained() -> bool:
                message = imagegate.condition("absent", "Progressing")["message"]
                return (
                    "DaemonSet mirrors/absent to be Ready on the node (it does not exist)"
                    in message
                    and "the operator may not look into namespace kube-public" in message
                    and "add it to the chart's startAfter.namespaces" in message
                )

            cluster.wait(explained, "the condition to name both", 10)
            assert imagegate.pullers("absent") == []
            free = nodes.first(joining.name, released, since=began)
            assert 10 < free.at - ready.at < 18
            waited = (
                "absent: not cached within 12 s of Ready; it waited for DaemonSet mirrors/absent"
            )
            cluster.wait(
                lambda: any(
                    waited in event["message"] for event in imagegate.events("Node", joining.name)
                ),
                "the Event that says what it waited for",
                10,
            )
            imagegate.wait_ready("absent", 30)  # the node is in service now, so it does not wait
