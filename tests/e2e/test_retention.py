"""A kubelet collects images: images under Keep survive, a control image does not.

The kubelet's image garbage collection runs every 5 minutes, so the test begins early in the run and
ends late.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.cluster import NodeOptions
from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

NODE = "node-collect"
KEPT = "open.registry.test/retention/kept:1"
CONTROL = "open.registry.test/retention/control:1"
LOOSE = "open.registry.test/retention/loose:1"
POOL = {"matchLabels": {"pool": "collect"}}
RELEASE_AFTER = 360
RELEASED: set[str] = set()
"""Uids of the first puller pods under Release. `test_begin_` sets them, `test_end_` reads them."""


def test_begin_prefetches_on_a_node_whose_kubelet_collects_images(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """The thresholds declare the disk too full, so the kubelet deletes every unused image."""
    assert cluster.push("tiny", "retention/kept:1", seed=31) == KEPT
    assert cluster.push("tiny", "retention/control:1", seed=32) == CONTROL
    collect = {
        "imageGCHighThresholdPercent": 2,
        "imageGCLowThresholdPercent": 1,
        "imageMinimumGCAge": "10s",
    }
    node = cluster.add_node(NODE, NodeOptions(labels={"pool": "collect"}, kubelet=collect))
    assert cluster.push("tiny", "retention/loose:1", seed=33) == LOOSE
    imagegate.prefetch("retention", KEPT, nodeSelector=POOL)
    imagegate.prefetch("loose", LOOSE, nodeSelector=POOL, retention={"mode": "Release"})
    imagegate.wait_ready("retention")
    imagegate.wait_ready("loose")
    RELEASED.update(pod["metadata"]["uid"] for pod in imagegate.pullers("loose"))
    assert RELEASED
    puller = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "control", "namespace": "default"},
        "spec": {
            "nodeName": NODE,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": CONTROL, "args": ["-v"]}],
        },
    }
    cluster.apply(puller)
    cluster.wait(lambda: node.has_image(CONTROL), "the control image pulled", 60)
    cluster.kubectl("-n", "default", "delete", "pod", "control", "--grace-period=0", "--force")


def test_end_kept_image_survives_garbage_collection_and_control_image_does_not(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    node = cluster.node(NODE)
    began = time.time()
    cluster.wait(lambda: not node.has_image(CONTROL), "the kubelet's collection", 420)
    print(f"\nwaited {time.time() - began:.0f} s more for the kubelet's collector")
    assert node.has_image(KEPT)
    assert imagegate.is_true("retention")
    assert len(imagegate.pullers("retention")) == 1
    # Only the first pod must be deleted: if the kubelet has collected the image since, a new pod
    # has pulled it again.
    cluster.wait(
        lambda: RELEASED.isdisjoint(pod["metadata"]["uid"] for pod in imagegate.pullers("loose")),
        "the pod under Release deleted",
        RELEASE_AFTER,
    )
    imagegate.delete("retention")
    imagegate.delete("loose")
    cluster.remove_node(NODE)
