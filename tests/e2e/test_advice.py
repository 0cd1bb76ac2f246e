"""The advice reports an image with one large layer and not the same files in eight layers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.cluster import images
from tests.e2e.installation import NAMESPACE, PULLERS, Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node
    from tests.cluster.provider import Cluster

PAIRS = 5
FETCH = 8.5
"""The least seconds for 1 GiB over the link. A faster pull found layers already on the node."""
TOOK = re.compile(r"Successfully pulled image \S+ in (?:(\d+)m)?([\d.]+)(m?s) \(")


def test_advice_reports_the_fat_image_and_not_the_same_files_in_eight_layers(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """The image has 1 GiB of zstd, the smallest size that a rule about layers applies to, and it
    breaks no other rule. It unpacks to 2.5 times its size, as published images do. The additional
    bytes are zeros, because zeros cost less CPU than other files.

    The times are the kubelet's, over a link of 1 Gbit/s. Without a limit the test would measure
    the CPU, because two cores run the registry and the cluster. One layer takes about 1.2 times as
    long (docs/images.md). The test repeats a pair of pulls that another process has disturbed.
    """
    pinned: dict[str, str] = {}
    for name in ("fat", "split"):
        repository = cluster.push(name, f"advice/{name}:1").removesuffix(":1")
        pinned[name] = f"{repository}@{images.digest(images.build(name))}"
    command = ["exec", "-n", NAMESPACE, "deploy/imagegate", "--", "imagegate", "lint"]
    command += ["--registry-plain-http=open.registry.test", *pinned.values()]
    print(f"\n{cluster.kubectl(*command)}")
    fat, split = json.loads(cluster.kubectl(*command, "--output=json"))
    assert [each["rule"] for each in fat["advice"]] == ["large-layer"]
    assert split["advice"] == []
    estimates = [each["platforms"][0]["estimatedPullSeconds"] for each in (fat, split)]
    assert estimates[0] > estimates[1]

    node = cluster.node("node-1")
    node.limit_bandwidth("1gbit")
    said: dict[str, dict[str, Any]] = {}
    took = {"fat": 0.0, "split": 0.0}
    try:
        for _ in range(PAIRS):
            for name, image in pinned.items():
                said[name], took[name] = pull(imagegate, node, f"advice-{name}", image)
            print(
                f"pulled in one layer in {took['fat']:.1f} s, in eight in {took['split']:.1f} s:"
                f" {took['fat'] / took['split']:.2f} times; estimates {estimates} s"
            )
            if FETCH < took["split"] < took["fat"]:
                break
    finally:
        node.limit_bandwidth(None)
    assert FETCH < took["split"] < took["fat"], "the advice reports the faster image"
    (text,) = said["fat"]["advice"]
    assert text.startswith("large-layer: layer 1 of 1 has 1.1 GB")
    assert said["split"].get("advice", []) == []
    sizes = [each["compressedBytes"] for each in said.values()]
    assert max(sizes) < 1.001 * min(sizes), "the same files"


def pull(
    imagegate: Installation, node: Node, name: str, image: str
) -> tuple[dict[str, Any], float]:
    """Prefetch the image onto one node. Returns its entry in the status and the seconds of the pull
    by the kubelet's event, without the wait for other pulls."""
    cluster = imagegate.cluster
    selector = {"matchLabels": {"kubernetes.io/hostname": node.name}}
    with imagegate.prefetching(name, image, nodeSelector=selector):
        imagegate.wait_ready(name, 180)
        (status,) = imagegate.get(name)["status"]["images"]
        (pod,) = imagegate.pullers(name)
        cluster.wait(lambda: bool(pull_seconds(cluster, pod, image)), "the event Pulled", 10)
        (seconds,) = pull_seconds(cluster, pod, image)
    cluster.wait(lambda: not imagegate.pullers(name), "the puller pod gone", 30)
    node.remove_image(image)
    return status, seconds


def pull_seconds(cluster: Cluster, pod: dict[str, Any], image: str) -> list[float]:
    path = f"/api/v1/namespaces/{PULLERS}/events?fieldSelector=reason%3DPulled"
    found = [
        TOOK.match(event["message"])
        for event in cluster.api.get(path)["items"]
        if event["involvedObject"].get("uid") == pod["metadata"]["uid"]
        and f'"{image}"' in event["message"]
    ]
    units = {"ms": 0.001, "s": 1}
    return [60 * int(m[1] or 0) + float(m[2]) * units[m[3]] for m in found if m]
