"""Nodes without image volumes, as before Kubernetes 1.35: images are pulled as containers.

On the newest Kubernetes one older node joins, because the operator chooses the kind of a puller pod
for each node.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import NodeOptions, images
from tests.e2e.installation import PULLERS, Installation
from tests.e2e.test_prefetch import pull_secret
from tests.e2e.watching import NodeWatch, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

pytestmark = pytest.mark.older

OLDER = "v1.34"
POOL = {"matchLabels": {"pool": "older"}}


@pytest.fixture(scope="module")
def older(cluster: LocalCluster, imagegate: Installation) -> Iterator[Node]:
    options = NodeOptions(labels={"pool": "older"}, kubernetes=OLDER)
    yield cluster.add_node("node-older", options)
    cluster.remove_node("node-older")


def unfit(folder: Path) -> Path:
    """An image in which the busybox cannot run, because a file has the path of its mount."""

    def fill(tar: tarfile.TarFile) -> None:
        tar.addfile(tarfile.TarInfo("imagegate"))

    images.write_single_layer(folder, fill, {"Entrypoint": ["/nothing"], "User": "nobody"})
    return folder


def kind(pod: dict[str, Any]) -> str:
    volumes = pod["spec"]["volumes"]
    return "ImageVolume" if any("image" in volume for volume in volumes) else "Container"


def test_images_of_all_kinds_are_cached_on_an_older_node(
    cluster: LocalCluster, imagegate: Installation, older: Node, tmp_path: Path
) -> None:
    app = cluster.push("app", "older/app:1")
    data = cluster.push("data", "older/data:1", seed=2)
    wrong = cluster.push_layout(unfit(tmp_path / "unfit"), "older/unfit:1")
    private = cluster.push("app", "older/private:1", registry="secure")
    cluster.apply(pull_secret(cluster, "older-pull"))
    secret = {"image": private, "imagePullSecrets": [{"name": "older-pull"}]}
    with imagegate.prefetching("kinds", app, data, wrong, secret):
        imagegate.wait_ready("kinds")
        for node in cluster.nodes.values():
            missing = {app, data, wrong, private} - node.images()
            assert not missing, f"{node.name} says Ready without {missing}"
        kinds: dict[str, set[str]] = {}
        for pod in imagegate.pullers("kinds"):
            kinds.setdefault(pod["spec"]["nodeName"], set()).add(kind(pod))
        versions = {
            name: imagegate.node(name)["status"]["nodeInfo"]["kubeletVersion"] for name in kinds
        }
        print(f"\n{versions} {kinds}")
        assert versions[older.name].startswith(OLDER)
        for name, version in versions.items():
            newer = not version.startswith(OLDER)
            assert kinds[name] == {"ImageVolume" if newer else "Container"}

        def ends() -> dict[str, str]:
            return {
                pod["metadata"]["uid"]: pod["status"]["phase"]
                for pod in imagegate.pullers("kinds")
                if pod["spec"]["nodeName"] == older.name
            }

        # The unfit image makes its pod fail, but the node has the image, so it counts as cached.
        cluster.wait(lambda: set(ends().values()) == {"Succeeded", "Failed"}, "the pods' ends", 30)
        before = ends()
        time.sleep(3)
        assert ends() == before, "the failed pod stays, and pins its images"
        assert imagegate.is_true("kinds")
        assert imagegate.get("kinds")["status"].get("failures", []) == []


def test_failing_image_is_reported_while_the_others_are_pulled(
    cluster: LocalCluster, imagegate: Installation, older: Node
) -> None:
    first = cluster.push("tiny", "older/first:1", seed=81)
    late = "open.registry.test/older/late:1"
    last = cluster.push("tiny", "older/last:1", seed=82)
    retry = {"minSeconds": 1, "maxSeconds": 3}
    with imagegate.prefetching("partly", first, late, last, nodeSelector=POOL, retry=retry):
        cluster.wait(lambda: imagegate.counts("partly").get("failed") == 1, "failed", 60)
        (failure,) = imagegate.get("partly")["status"]["failures"]
        assert (failure["image"], failure["reason"]) == (late, "ImageNotFound")
        cluster.wait(lambda: {first, last} <= older.images(), "the other images", 30)
        cluster.push("tiny", "older/late:1", seed=83)
        imagegate.wait_ready("partly")
        assert older.has_image(late)


def test_joining_node_reports_a_missing_busybox_until_it_can_pull_it(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "older/join:1", seed=84)
    pool = {"matchLabels": {"pool": "older-join"}}
    cluster.registries["open"].delete("test/busybox:1.37.0-musl")
    options = NodeOptions(labels={"pool": "older-join"}, kubernetes=OLDER)
    closed, quick = {"policy": "FailClosed"}, {"minSeconds": 1, "maxSeconds": 3}
    with (
        imagegate.prefetching("no-tool", image, nodeSelector=pool, gate=closed, retry=quick),
        NodeWatch(cluster) as watch,
    ):
        try:
            node = cluster.add_node("node-older-join", options, wait=False)
            cluster.wait(lambda: imagegate.counts("no-tool").get("failed") == 1, "failed", 60)
            (failure,) = imagegate.get("no-tool")["status"]["failures"]
            assert failure["image"] == imagegate.busybox
            assert "the puller pod's own image" in failure["message"]
            assert imagegate.held(node.name)
        finally:
            pushed = time.time()
            cluster.push("busybox", "test/busybox:1.37.0-musl")
        free = watch.first(node.name, released, since=pushed)
        assert "cached.imagegate.dev/no-tool" in free.body["metadata"]["labels"]
        events = cluster.api.get(f"/api/v1/namespaces/{PULLERS}/events")["items"]
        (pulled,) = [
            event
            for event in events
            if event["reason"] == "Pulled"
            and event["involvedObject"].get("fieldPath") == "spec.containers{image-0}"
            and event["source"].get("host") == node.name
        ]
        assert f'"{image}"' in pulled["message"]
        cluster.remove_node(node.name)
