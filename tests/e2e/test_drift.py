"""Changes that Imagegate did not make: edited labels, reboots, new nodes with the same name."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from imagegate.domain.share.drift import LISTED_AFTER
from tests.cluster import NodeOptions
from tests.e2e.installation import KEY, NAMESPACE, RELEASE, Installation
from tests.e2e.watching import NodeWatch, Sighting, Watch

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

QUICK = {"nodeStatusUpdateFrequency": "2s", "nodeStatusReportFrequency": "5m"}
"""Settings with which a restarted kubelet reports Ready soon."""
ROLLBACK = {"rollback-a": "drift/rollback-a:1", "rollback-b": "drift/rollback-b:1"}
"""The images of two prefetches that are edited and rolled back together."""
STEADY = {"matchLabels": {"steady": "yes"}}
"""The nodes that stay. Nodes of other tests join while these prefetches exist."""


def test_edited_or_removed_label_is_restored_without_a_pull(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "drift/label:1", seed=81)
    label = "cached.imagegate.dev/by-hand"
    with imagegate.prefetching("by-hand", image):
        imagegate.wait_ready("by-hand")
        pods = {pod["metadata"]["uid"] for pod in imagegate.pullers("by-hand")}
        target = imagegate.get("by-hand")["status"]["target"]

        def right() -> bool:
            return bool(imagegate.node("node-1")["metadata"]["labels"].get(label) == target)

        cluster.kubectl("label", "node", "node-1", f"{label}=nonsense", "--overwrite")
        cluster.wait(right, "the label put right", 20)
        cluster.kubectl("label", "node", "node-1", f"{label}-")
        cluster.wait(right, "the label put back", 20)
        assert {pod["metadata"]["uid"] for pod in imagegate.pullers("by-hand")} == pods
    cluster.wait(
        lambda: label not in imagegate.node("node-1")["metadata"]["labels"], "the label gone", 10
    )
    cluster.kubectl("label", "node", "node-1", f"{label}=stale")
    cluster.wait(
        lambda: label not in imagegate.node("node-1")["metadata"]["labels"],
        "a label of no prefetch removed",
        20,
    )


def test_new_node_with_the_same_name_is_held_and_cached_again(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "drift/again:1", seed=82)
    pool = {"matchLabels": {"pool": "again"}}
    options = NodeOptions(labels={"pool": "again"}, kubelet=QUICK)
    with imagegate.prefetching("again", image, nodeSelector=pool):
        node = cluster.add_node("again-1", options)
        try:
            imagegate.wait_ready("again")
            first = imagegate.node("again-1")["metadata"]["uid"]
            with NodeWatch(cluster) as watch:
                began = time.time()
                cluster.api.delete("/api/v1/nodes/again-1")
                node.restart("kubelet")
                created = watch.first(
                    "again-1", lambda s: s.body["metadata"]["uid"] != first, since=began
                )
                assert any("imagegate" in key for key in created.taints()), "held anew"
                labels = created.body["metadata"]["labels"]
                assert not any(key.startswith("cached.") for key in labels)
                released = watch.first(
                    "again-1",
                    lambda s: (
                        s.body["metadata"]["uid"] != first
                        and not any("imagegate" in key for key in s.taints())
                    ),
                    since=created.at,
                )
            labels = released.body["metadata"]["labels"]
            assert (
                labels["cached.imagegate.dev/again"] == imagegate.get("again")["status"]["target"]
            )
        finally:
            cluster.remove_node("again-1")


def test_reboot_verifies_images_under_hold_and_not_under_ignore(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "drift/reboot:1", seed=83)
    pool = {"matchLabels": {"pool": "reboot"}}
    node = cluster.add_node("reboot-1", NodeOptions(labels={"pool": "reboot"}, kubelet=QUICK))
    hold, ignore = {"onReboot": "Hold"}, {"onReboot": "Ignore"}
    try:
        with (
            imagegate.prefetching("hold", image, nodeSelector=pool, gate=hold),
            imagegate.prefetching("ignore", image, nodeSelector=pool, gate=ignore),
            NodeWatch(cluster) as watch,
        ):
            imagegate.wait_ready("hold")
            imagegate.wait_ready("ignore")
            # The prefetch becomes Ready with the last image, shortly before the pods end. Wait for
            # the pods, because the operator replaces a pod that a reboot interrupts.
            cluster.wait(
                lambda: all(
                    pod["status"].get("phase") == "Succeeded"
                    for name in ("hold", "ignore")
                    for pod in imagegate.pullers(name)
                ),
                "the pods to have ended",
                20,
            )
            kept = {pod["metadata"]["uid"] for pod in imagegate.pullers("ignore")}
            verified = {pod["metadata"]["uid"] for pod in imagegate.pullers("hold")}
            began = time.time()
            node.reboot()
            held = watch.first(
                "reboot-1", lambda s: any("imagegate" in key for key in s.taints()), since=began
            )
            assert held.body["status"]["nodeInfo"]["bootID"] == node.boot_id()
            assert "cached.imagegate.dev/hold" not in held.body["metadata"]["labels"]
            assert "cached.imagegate.dev/ignore" in held.body["metadata"]["labels"]
            released = watch.first(
                "reboot-1",
                lambda s: not any("imagegate" in key for key in s.taints()),
                since=held.at,
            )
            assert "cached.imagegate.dev/hold" in released.body["metadata"]["labels"]
            assert {pod["metadata"]["uid"] for pod in imagegate.pullers("ignore")} == kept
            assert verified.isdisjoint(p["metadata"]["uid"] for p in imagegate.pullers("hold"))
    finally:
        cluster.remove_node("reboot-1")


def test_no_pod_lands_on_a_returning_node_before_it_is_verified(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """Three nodes return: one was only stopped, one has rebooted, and one has a wiped disk. A pod
    waits for each of them."""
    image = cluster.push("tiny", "drift/again:1", seed=86)
    names = ("away", "rebooted", "wiped")
    options = NodeOptions(labels={"pool": "again"}, kubelet=QUICK)
    gate = {"onReboot": "Hold", "policy": "FailClosed"}
    with ExitStack() as stack:
        nodes = [cluster.add_node(name, options, wait=False) for name in names]
        for name in names:
            stack.callback(cluster.remove_node, name)
        stack.enter_context(
            imagegate.prefetching(
                "again", image, nodeSelector={"matchLabels": {"pool": "again"}}, gate=gate
            )
        )
        cluster.wait(
            lambda: len(ended_on(imagegate, "again")) == 3 and not any(map(imagegate.held, names)),
            "three nodes in service",
            90,
        )
        seen = stack.enter_context(NodeWatch(cluster))
        pods = stack.enter_context(Watch(cluster, "/api/v1/namespaces/default/pods"))
        began = time.time()
        for node in nodes:
            node.stop()
        since: dict[str, float] = {}
        for name in names:
            gone = seen.first(name, lambda s: not ready(s), since=began, timeout=90)
            held = seen.first(name, lambda s: KEY in s.taints(), since=began, timeout=10)
            since[name] = held.at
            print(f"{name}: tainted {held.at - gone.at:.2f} s after it was not Ready")
            cluster.apply(pinned(name, image))
            stack.callback(
                cluster.kubectl, "delete", "pod", f"for-{name}", "--wait=false", "--force"
            )
        nodes[2].wipe()
        nodes[0].start()
        nodes[1].reboot()
        nodes[2].start()
        for name in names:
            free = seen.first(name, lambda s: KEY not in s.taints(), since[name], timeout=120)
            assert ready(free)
            assert "cached.imagegate.dev/again" in free.body["metadata"]["labels"]
            assert cluster.nodes[name].has_image(image)
            bound = pods.first(f"for-{name}", lambda s: "nodeName" in s.body["spec"], timeout=30)
            assert version(bound) > version(free), f"{name}: a pod landed before the release"
            back = seen.first(name, ready, since[name])
            print(f"{name}: released {free.at - back.at:.2f} s after it was Ready")


def ended_on(imagegate: Installation, prefetch: str) -> list[str]:
    """The nodes whose puller pods have succeeded."""
    return [
        pod["spec"]["nodeName"]
        for pod in imagegate.pullers(prefetch)
        if pod["status"].get("phase") == "Succeeded"
    ]


def ready(seen: Sighting) -> bool:
    conditions = seen.body["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def version(seen: Sighting) -> int:
    return int(seen.body["metadata"]["resourceVersion"])


def pinned(node: str, image: str) -> dict[str, Any]:
    """A pod that can run only on this node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"for-{node}", "namespace": "default"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "automountServiceAccountToken": False,
            "containers": [{"name": "app", "image": image}],
        },
    }


def test_begin_prefetches_that_are_rolled_back_later(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """Runs early, because an image that the kubelet does not list counts as removed only some
    minutes after its pull."""
    for seed, (name, repository) in enumerate(ROLLBACK.items(), 84):
        image = cluster.push("data", repository, seed=seed)
        imagegate.prefetch(name, image, nodeSelector=STEADY)
    for name in ROLLBACK:
        imagegate.wait_ready(name)
        cluster.wait(partial(ended, imagegate, name), f"the pods of {name} to end", 20)


def test_end_a_rollback_keeps_labels_and_puller_pods(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    labels = {name: imagegate.get(name)["status"]["target"] for name in ROLLBACK}
    pods = {name: uids(imagegate, name) for name in ROLLBACK}
    nodes = [node["metadata"]["name"] for node in labelled(cluster, labels)]
    assert {"node-1", "node-2"} <= set(nodes)
    wait_until_absence_counts(cluster, imagegate)
    try:
        with NodeWatch(cluster) as watch:
            for turn in range(2):
                for name in ROLLBACK:
                    other = f"open.registry.test/drift/{name}:bad-{turn}"
                    imagegate.prefetch(name, other, nodeSelector=STEADY, rollout={"paused": True})
                time.sleep(1)  # after this the store knows only the new images
                # Change each Node, as a heartbeat does, so that the operator parses it again.
                cluster.kubectl("annotate", "nodes", "--all", f"e2e/turn={turn}", "--overwrite")
                time.sleep(1)
                for name, repository in ROLLBACK.items():
                    image = f"open.registry.test/{repository}"
                    imagegate.prefetch(name, image, nodeSelector=STEADY)
                time.sleep(5)
            lost = [
                (seen.body["metadata"]["name"], name)
                for node in nodes
                for seen in watch.of(node)
                for name, target in labels.items()
                if seen.body["metadata"]["labels"].get(f"cached.imagegate.dev/{name}") != target
            ]
        assert not lost, f"nodes that lost a label although the image is there: {lost}"
        assert {name: uids(imagegate, name) for name in ROLLBACK} == pods
        for name in ROLLBACK:
            imagegate.wait_ready(name, 10)
            assert not imagegate.get(name)["status"].get("failures")
    finally:
        for name in ROLLBACK:
            imagegate.delete(name)
        cluster.kubectl("annotate", "nodes", "--all", "e2e/turn-")


def ended(imagegate: Installation, prefetch: str) -> bool:
    return all(pod["status"]["phase"] == "Succeeded" for pod in imagegate.pullers(prefetch))


def uids(imagegate: Installation, prefetch: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in imagegate.pullers(prefetch)}


def labelled(cluster: LocalCluster, labels: dict[str, str]) -> list[dict[str, Any]]:
    """The nodes that have all the labels of these prefetches."""
    wanted = {f"cached.imagegate.dev/{name}": target for name, target in labels.items()}
    return [
        node
        for node in cluster.api.get("/api/v1/nodes")["items"]
        if wanted.items() <= node["metadata"]["labels"].items()
    ]


def wait_until_absence_counts(cluster: LocalCluster, imagegate: Installation) -> None:
    """Wait until the labels are so old that this leader treats an unlisted image as removed. In a
    run of the whole suite the labels are old enough already."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{RELEASE}"
    moments = [cluster.api.get(path)["spec"]["acquireTime"]]
    moments += [
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
        for name in ROLLBACK
        for pod in imagegate.pullers(name)
    ]
    newest = max(datetime.fromisoformat(moment).timestamp() for moment in moments)
    time.sleep(max(0.0, newest + LISTED_AFTER + 5 - time.time()))
