"""A kubelet that collects images: those under Keep survive, control images do not.

The collector looks every 5 minutes, so this begins early and is looked at late.
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
"""Uids of the first puller pods under Release: from the beginning of the suite to its end."""


def test_begin_a_node_whose_kubelet_collects_images(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """A disk that is said to be too full: every image that is not in use goes."""
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


def test_end_kept_images_have_survived_the_collection_and_control_images_have_not(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    node = cluster.node(NODE)
    began = time.time()
    cluster.wait(lambda: not node.has_image(CONTROL), "the kubelet's collection", 420)
    print(f"\nwaited {time.time() - began:.0f} s more for the kubelet's collector")
    assert node.has_image(KEPT)
    assert imagegate.is_true("retention")
    assert len(imagegate.pullers("retention")) == 1
    # The first one. Where the kubelet then collected the image, another has pulled it again.
    cluster.wait(
        lambda: RELEASED.isdisjoint(pod["metadata"]["uid"] for pod in imagegate.pullers("loose")),
        "the pod under Release deleted",
        RELEASE_AFTER,
    )
    imagegate.delete("retention")
    imagegate.delete("loose")
    cluster.remove_node(NODE)
