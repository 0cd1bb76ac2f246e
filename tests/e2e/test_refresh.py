"""A tag moves: every node gets the new image under the tag, and a stale mirror is reported.

Only the node's list of images shows that a mirror is stale, and the list is late. So the test of
the mirror begins early in the run and ends late.
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import NodeOptions, images
from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.mirrors import Mirror
    from tests.cluster.local.node import Node

HOST = "open.registry.test"
TAG = f"{HOST}/refresh/app:1"
FOLLOWED = {"mode": "Digest", "intervalSeconds": 30}
SELDOM = {"mode": "Digest", "intervalSeconds": 86400}
BEHIND = "node-behind"
STALE = "refresh/behind:1"


def layout(folder: Path, says: str) -> Path:
    """An image that prints its version."""

    def fill(tar: tarfile.TarFile) -> None:
        tar.add("/bin/busybox", "bin/busybox")
        images.add_file(tar, "version", f"{says}\n".encode())

    images.write_single_layer(
        folder, fill, {"Entrypoint": ["/bin/busybox"], "Cmd": ["cat", "/version"]}
    )
    return folder


def push(cluster: LocalCluster, repository: str, says: str, mirror: Mirror | None = None) -> str:
    """Returns the digest."""
    with tempfile.TemporaryDirectory() as folder:
        made = layout(Path(folder, "layout"), says)
        cluster.push_layout(made, repository)
        if mirror is not None:
            mirror.push(made, repository)
    return cluster.registries["open"].digest(repository)


def run(cluster: LocalCluster, node: str, image: str) -> tuple[str, list[str]]:
    """The output of a pod with IfNotPresent on the node, and the kubelet's events about pulls."""
    name = f"version-{time.monotonic_ns()}"
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}],
        },
    }
    path = f"/api/v1/namespaces/default/pods/{name}"
    events = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{name}"
    cluster.apply(pod)
    try:
        cluster.wait(
            lambda: cluster.api.get(path)["status"]["phase"] == "Succeeded", f"pod {name}", 60
        )
        printed = cluster.api.raw(f"{path}/log").strip()
        said = [
            event["reason"] + ": " + event["message"] for event in cluster.api.get(events)["items"]
        ]
        return printed, [text for text in said if "Pull" in text]
    finally:
        cluster.kubectl("-n", "default", "delete", "pod", name, "--grace-period=0", "--force")


def image_status(imagegate: Installation, name: str) -> dict[str, Any]:
    images_ = imagegate.get(name).get("status", {}).get("images") or [{}]
    return dict(images_[0])


def prefetch_behind(imagegate: Installation, **spec: Any) -> None:
    selector = {"matchLabels": {"pool": "behind"}}
    imagegate.prefetch("behind", f"{HOST}/{STALE}", nodeSelector=selector, **spec)


def test_begin_mirror_still_serves_the_old_image_of_a_tag(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    mirror = cluster.mirror(frozen=True)
    mirror.start()
    old = push(cluster, STALE, "old", mirror)
    node = cluster.add_node(BEHIND, NodeOptions(labels={"pool": "behind"}))
    (node.etc / "certs.d" / HOST / "hosts.toml").write_text(mirror.hosts_toml())
    prefetch_behind(imagegate, refresh=FOLLOWED)
    imagegate.wait_ready("behind")
    assert image_status(imagegate, "behind")["digest"] == old
    push(cluster, STALE, "new")


def test_stale_mirror_is_not_reported_immediately(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """The pull of the digest succeeds, because it bypasses the mirror."""
    new = cluster.registries["open"].digest(STALE)
    cluster.wait(
        lambda: image_status(imagegate, "behind").get("digest") == new, "the new digest", 60
    )
    imagegate.wait_ready("behind")
    # Check the registry rarely from here on, because each check writes the status.
    prefetch_behind(imagegate, refresh=SELDOM)


@pytest.mark.older
def test_moved_tag_resolves_to_the_new_image_on_the_node(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    """Found by polling alone. On the other node only the digest was pulled, so the tag keeps its
    old image there."""
    old = push(cluster, "refresh/app:1", "old")
    selector = {"matchLabels": {"kubernetes.io/hostname": "node-1"}}
    with imagegate.prefetching("app", TAG, nodeSelector=selector, refresh=FOLLOWED):
        imagegate.wait_ready("app")
        assert image_status(imagegate, "app")["digest"] == old
        target = imagegate.get("app")["status"]["target"]
        for node in ("node-1", "node-2"):
            assert run(cluster, node, TAG)[0] == "old"
        new = push(cluster, "refresh/app:1", "new")
        pushed = time.time()
        cluster.wait(
            lambda: image_status(imagegate, "app").get("digest") == new, "the new digest", 60
        )
        imagegate.wait_ready("app")
        print(f"\npushed, found by polling and on the node after {time.time() - pushed:.0f} s")
        status = imagegate.get("app")["status"]
        assert status["target"] != target
        assert status["nodes"]["cached"] == 1
        assert status["refresh"]["nextCheckTime"] > status["refresh"]["lastCheckTime"]
        labels = imagegate.node("node-1")["metadata"]["labels"]
        assert labels["cached.imagegate.dev/app"] == status["target"]

        printed, said = run(cluster, "node-1", TAG)
        assert printed == "new"
        assert all("already present" in text for text in said), said

        assert run(cluster, "node-2", f"{HOST}/refresh/app@{new}")[0] == "new"
        printed, said = run(cluster, "node-2", TAG)
        assert printed == "old", "a pull by digest has moved the tag: a second pull is not needed"
        assert all("already present" in text for text in said), said


def test_end_stale_mirror_is_reported(cluster: LocalCluster, imagegate: Installation) -> None:
    began = time.time()
    node: Node = cluster.node(BEHIND)
    new = cluster.registries["open"].digest(STALE)
    assert image_status(imagegate, "behind")["digest"] == new
    cluster.wait(
        lambda: imagegate.condition("behind", "Degraded").get("reason") == "StaleMirror",
        "the condition StaleMirror",
        300,
    )
    print(f"\nwaited {time.time() - began:.0f} s more: {imagegate.condition('behind', 'Degraded')}")
    assert not imagegate.is_true("behind")
    assert f"{HOST}/refresh/behind@{new}" in node.images(), "the node has the new content"
    assert run(cluster, BEHIND, f"{HOST}/{STALE}")[0] == "old"

    mirror = cluster.mirror(frozen=True)
    with tempfile.TemporaryDirectory() as folder:
        mirror.push(layout(Path(folder, "layout"), "new"), STALE)
    # An edit of the spec resets the back-off, because it usually fixes the cause.
    prefetch_behind(imagegate, refresh=SELDOM, retry={"limit": 5})
    imagegate.wait_ready("behind")
    assert run(cluster, BEHIND, f"{HOST}/{STALE}")[0] == "new"
    imagegate.delete("behind")
    cluster.remove_node(BEHIND)
    mirror.stop()
