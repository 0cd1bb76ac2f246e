"""Full disks, and images that are removed without Imagegate."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from imagegate.domain.share.drift import LISTED_AFTER
from tests.cluster import NodeOptions
from tests.e2e.installation import NAMESPACE, PREFETCHES, Installation
from tests.e2e.watching import NodeWatch, Watch

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

GONE = "disk/gone:1"


def used_percent(cluster: LocalCluster, node: str) -> float:
    """The disk usage as the kubelet's image garbage collection computes it."""
    summary = json.loads(cluster.api.raw(f"/api/v1/nodes/{node}/proxy/stats/summary"))
    image_fs = summary["node"]["runtime"]["imageFs"]
    return 100 * (1 - float(image_fs["availableBytes"]) / float(image_fs["capacityBytes"]))


def test_begin_prefetch_of_an_image_that_is_removed_later(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """Runs early, because the operator trusts the kubelet's list of images only some minutes after
    a pull."""
    image = cluster.push("app", GONE, seed=91)
    selector = {"matchLabels": {"kubernetes.io/hostname": "node-2"}}
    imagegate.prefetch("gone", image, nodeSelector=selector)
    # Another image of the same size, with five tags and a digest: six names. The kubelet lists
    # five of them and hides one.
    names = [cluster.push("app", f"disk/names:{tag}", seed=93) for tag in range(5)]
    imagegate.prefetch("names", *names, nodeSelector=selector)
    for name in ("gone", "names"):
        imagegate.wait_ready(name)


def test_full_disk_blocks_the_pull_reports_the_usage_and_releases_the_node(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("app", "disk/full:1", seed=92)
    limit = int(used_percent(cluster, "node-1"))
    selector = {"matchLabels": {"disk": "full"}}
    disk = {"maxUsagePercent": limit}
    with imagegate.prefetching("full", image, nodeSelector=selector, disk=disk):
        node = cluster.add_node("full-1", NodeOptions(labels={"disk": "full"}))
        try:
            cluster.wait(lambda: imagegate.counts("full").get("failed") == 1, "failed", 60)
            cluster.wait(lambda: not imagegate.held("full-1"), "the node released", 10)
            events = {e["reason"]: e["message"] for e in imagegate.events("Node", "full-1")}
            assert "DiskFull" in events["GateReleased"]
            assert imagegate.pullers("full") == [], "nothing was started"
            (failure,) = imagegate.get("full")["status"]["failures"]
            assert failure["reason"] == "DiskFull"
            assert f"disk.maxUsagePercent is {limit}" in failure["message"]
            said = float(failure["message"].rsplit("(", 1)[1].split(" %")[0])
            assert abs(said - used_percent(cluster, "full-1")) <= 2, "its kubelet's own figure"
            assert "maxUsagePercent" in imagegate.condition("full", "Degraded")["message"]
            sizes = imagegate.get("full")["status"]["images"][0]
            assert sizes["compressedBytes"] >= sizes["largestLayerBytes"] > 100_000
            imagegate.prefetch(
                "full", image, nodeSelector=selector, disk={"maxUsagePercent": limit + 2}
            )
            imagegate.wait_ready("full")
            assert node.has_image(image)
        finally:
            cluster.remove_node("full-1")


def test_end_removed_image_is_detected_and_pulled_again(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    node, image = cluster.nodes["node-2"], f"open.registry.test/{GONE}"
    label = "cached.imagegate.dev/gone"
    before = {pod["metadata"]["uid"] for pod in imagegate.pullers("gone")}
    # Watches, because a poll on a loaded machine may miss the time until the next pull.
    with NodeWatch(cluster) as nodes, Watch(cluster, PREFETCHES) as prefetches:
        node.remove_image(image)
        removed = time.time()
        # The kubelet lists images every 30 s and writes every 10 s. A new leader waits
        # LISTED_AFTER before it treats an unlisted image as removed.
        unlabelled = nodes.first(
            "node-2",
            lambda seen: label not in seen.body["metadata"]["labels"],
            timeout=LISTED_AFTER + 60,
        )
        reported = prefetches.first(
            "gone", lambda seen: bool(seen.body["status"]["failures"]), removed, 10
        )
        cluster.wait(lambda: node.has_image(image), "the image pulled again", 90)
        imagegate.wait_ready("gone", 30)
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in imagegate.pullers("gone"))
    logs = cluster.kubectl("-n", NAMESPACE, "logs", imagegate.leader())
    assert "EvictedByKubelet" in logs
    failures = reported.body["status"]["failures"]
    print(f"\nremoved image noticed after {unlabelled.at - removed:.0f} s: {failures}")
    imagegate.delete("gone")
    imagegate.delete("names")
