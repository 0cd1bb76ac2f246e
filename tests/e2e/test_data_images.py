"""Data sets as images: the pods of a Job read one while a node is removed, and a training pod reads
the result.

The test builds and applies the files of `docs/examples/data-images`, with other image names and
without the disk guard, because the disks of test machines are full of other data.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster import NodeOptions, paths
from tests.cluster.errors import Unsupported
from tests.cluster.images import MiB
from tests.cluster.local.mirrors import BlobRequest, blob_requests
from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "data-images"
PARTS, ITEMS = 3, 24
STEADY, LEAVING = ("node-1", "node-2"), "node-batch"
JOB = "/apis/batch/v1/namespaces/default/jobs/features"
BUSYBOX = "docker.io/library/busybox:1.37.0-musl"
PHOTOS = "registry.example/data/photos:2026.11"
FEATURES = "registry.example/data/features:41"


@dataclass(frozen=True)
class Run:
    """The facts about the Job, and about the node that was removed while it ran."""

    photos: str
    nodes: dict[str, str]
    """The addresses of the nodes, by name."""
    content: dict[str, bytes]
    """The data set, by item."""
    output: Path
    """The folder that the Job's pods mount as /features."""
    interrupted: set[str]
    """The items that the removed node had started and not finished."""
    mount: str
    """The line of the data set in a worker's /proc/mounts."""
    copies: list[Counter[str]]
    """How many copies of each item a steady node had on its disk, during the Job and after it."""
    served: list[Counter[tuple[str, str]]]
    """The layers of the data set that the registry served, by client: before and after the Job."""
    status: dict[str, Any]


# ---- the examples


def example(name: str, images: dict[str, str]) -> list[dict[str, Any]]:
    text = (EXAMPLES / name).read_text()
    for there, here in images.items():
        text = text.replace(there, here)
    bodies: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    for body in bodies:
        if body["kind"] == "ImagePrefetch":
            body["spec"]["disk"] = {"maxUsagePercent": 100}
    return bodies


@contextmanager
def applied(cluster: LocalCluster, *bodies: dict[str, Any]) -> Iterator[None]:
    """Apply objects for the length of a `with` block, and delete them after it."""
    try:
        cluster.apply(*bodies)
        yield
    finally:
        text = yaml.safe_dump_all(bodies)
        arguments = ("--ignore-not-found", "--grace-period=1", "--timeout=90s")
        cluster.kubectl("delete", "-f", "-", *arguments, stdin=text)


def build(context: Path, dockerfile: str, layout: Path) -> Path:
    """Build an OCI layout with the commands of docs/data-images.md."""
    with tempfile.TemporaryDirectory() as scratch:
        policy = Path(scratch, "policy.json")
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        own = [f"--root={scratch}/root", f"--runroot={scratch}/run", "--storage-driver=vfs"]
        # buildah runs in its own mount namespace, so that its mounts end with it.
        buildah = [paths.system("unshare"), "--mount", "--propagation=private"]
        buildah += [paths.system("buildah"), *own]
        file, tag = f"--file={EXAMPLES / dockerfile}", "localhost/data:built"
        layers, zstd = "--layers", "--compression-format=zstd"
        for command in (
            ["build", layers, "--isolation=chroot", file, f"--tag={tag}", str(context)],
            ["push", zstd, f"--signature-policy={policy}", tag, f"oci:{layout}"],
        ):
            done = subprocess.run([*buildah, *command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return layout


def volume(claim: str, folder: Path, mode: str) -> dict[str, Any]:
    """The volume for a claim of the examples. All nodes are on this machine, so a folder of it acts
    as a file server: the folder outlives a node, and several nodes may write to it."""
    folder.mkdir()
    folder.chmod(0o777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": claim},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": [mode],
            "claimRef": {"namespace": "default", "name": claim},
            "hostPath": {"path": str(folder)},
        },
    }


# ---- observations while the Job runs


def begun(output: Path) -> dict[str, list[tuple[str, str]]]:
    """The items that each pod has started, as (node, item), from its file in /features/log."""
    found = {
        file.name: [(line.split()[0], line.split()[1]) for line in file.read_text().splitlines()]
        for file in output.glob("log/*")
    }
    return {pod: items for pod, items in found.items() if items}


def copies(node: Node) -> Counter[str]:
    """How many copies of each item are on the node's disk, in any folder. Mounts are not visible
    here, because the node has its own mount namespace."""
    command = ["find", str(node.disk), "-name", "photo-*.jpg", "-size", "+512k", "-printf", "%f\n"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Counter(done.stdout.split())


def layers_served(cluster: LocalCluster, photos: str) -> Counter[tuple[str, str]]:
    def is_layer(request: BlobRequest) -> bool:
        return photos.startswith(f"open.registry.test/{request.repository}:") and (
            request.size >= MiB
        )

    requests = blob_requests(cluster.registries["open"].log)
    return Counter((each.client, each.digest) for each in requests if is_layer(each))


def events(cluster: LocalCluster, pods: str, reason: str) -> list[str]:
    path = f"/api/v1/namespaces/default/events?fieldSelector=reason%3D{reason}"
    return [
        event["message"]
        for event in cluster.api.get(path)["items"]
        if event["involvedObject"]["name"].startswith(pods)
    ]


def wait_for_item(cluster: LocalCluster, output: Path, node: str, number: int) -> str:
    """Wait until a pod of that node has started so many items. Returns the pod's name."""
    found: list[str] = []

    def reached() -> bool:
        for pod, items in begun(output).items():
            if len(items) >= number and items[0][0] == node:
                found.append(pod)
        return bool(found)

    cluster.wait(reached, f"item {number} of a pod on {node}", 60)
    return found[0]


# ---- the run


@pytest.fixture(scope="module")
def pool(cluster: LocalCluster, imagegate: Installation) -> Iterator[None]:
    """Labels the steady nodes for the node pool of the examples."""
    version = cluster.api.get("/version")
    if (int(version["major"]), int(version["minor"].rstrip("+"))) < (1, 35):
        raise Unsupported("image volumes need Kubernetes 1.35")
    cluster.kubectl("label", "nodes", *STEADY, "pool=batch", "--overwrite")
    yield
    cluster.kubectl("label", "nodes", *STEADY, "pool-")


@pytest.fixture(scope="module")
def run(
    cluster: LocalCluster,
    imagegate: Installation,
    pool: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    """Builds the image of the data set, runs the Job to its end, and removes a node meanwhile."""
    folder = tmp_path_factory.mktemp("photos")
    source = random.Random("photos")
    content = {f"photo-{number:02}.jpg": source.randbytes(MiB) for number in range(ITEMS)}
    for number, (name, data) in enumerate(content.items()):
        part = folder / "data" / f"part-{number * PARTS // ITEMS}"
        part.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(data)
    layout = build(folder / "data", "photos.Dockerfile", folder / "layout")
    photos = cluster.push_layout(layout, "data/photos:2026.11")
    images = {PHOTOS: photos, BUSYBOX: imagegate.busybox}
    output = folder / "features"
    with (
        applied(cluster, *example("prefetch.yaml", images)),
        applied(cluster, volume("features", output, "ReadWriteMany")),
    ):
        cluster.add_node(LEAVING, NodeOptions(labels={"pool": "batch"}))
        try:
            cluster.wait(lambda: imagegate.counts("photos").get("cached") == 3, "three nodes", 60)
            # The node controller's taints must be gone too. Otherwise all pods of the Job go to the
            # two other nodes.
            cluster.wait(lambda: not imagegate.taints(LEAVING), "a node without taints", 30)
            nodes = {name: cluster.node(name).address for name in (*STEADY, LEAVING)}
            served = [layers_served(cluster, photos)]
            with applied(cluster, *example("job.yaml", images)):
                pod = wait_for_item(cluster, output, STEADY[0], 1)
                mount = cluster.kubectl("exec", pod, "--", "grep", " /photos ", "/proc/mounts")
                wait_for_item(cluster, output, LEAVING, 2)
                found = [copies(cluster.node(name)) for name in STEADY]
                cluster.remove_node(LEAVING)
                removed = time.time()
                interrupted = {
                    items[-1][1]
                    for items in begun(output).values()
                    if items[0][0] == LEAVING and not (output / "items" / items[-1][1]).exists()
                }
                cluster.wait(lambda: ended(cluster), "the end of the Job", 240)
                print(f"\n{replacements(cluster, removed)}")
                found += [copies(cluster.node(name)) for name in STEADY]
                served.append(layers_served(cluster, photos))
                status = cluster.api.get(JOB)["status"]
                yield Run(photos, nodes, content, output, interrupted, mount, found, served, status)
        finally:
            if LEAVING in cluster.nodes:
                cluster.remove_node(LEAVING)


def replacements(cluster: LocalCluster, removed: float) -> str:
    """A report of the times, in seconds after the node's removal."""
    now = time.time() - removed
    label = "batch.kubernetes.io%2Fjob-name%3Dfeatures"
    lines = [f"a node removed, its pods replaced, the Job complete after {now:.0f} s"]
    for pod in cluster.api.get(f"/api/v1/namespaces/default/pods?labelSelector={label}")["items"]:
        (container,) = pod["status"]["containerStatuses"]
        started = container["state"]["terminated"]["startedAt"]
        created, began = (
            datetime.fromisoformat(text).timestamp() - removed
            for text in (pod["metadata"]["creationTimestamp"], started)
        )
        if created > 0:
            lines.append(f"a replacement created after {created:.0f} s, runs from {began:.0f} s on")
    return "\n".join(lines)


def ended(cluster: LocalCluster) -> bool:
    conditions = cluster.api.get(JOB)["status"].get("conditions") or []
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def test_every_item_is_processed_and_only_interrupted_items_start_twice(run: Run) -> None:
    assert run.status["completedIndexes"] == "0-5"
    assert run.status["succeeded"] == 6
    assert not run.status.get("failed"), "the loss of a node counts as no failure of an index"
    results = {file.name: file.read_text().split()[0] for file in run.output.glob("items/*")}
    assert results == {name: hashlib.sha256(data).hexdigest() for name, data in run.content.items()}
    pods = begun(run.output)
    lost = [pod for pod, items in pods.items() if items[0][0] == LEAVING]
    print(f"\n{len(pods)} pods, {len(lost)} on the removed node; begun twice: {run.interrupted}")
    assert run.interrupted, "the node was removed when nothing ran there"
    times = Counter(item for items in pods.values() for _, item in items)
    assert times == {name: 1 + (name in run.interrupted) for name in run.content}


def test_job_pods_pull_nothing_and_each_node_stores_the_data_once(
    cluster: LocalCluster, run: Run
) -> None:
    assert run.mount.split()[3].split(",")[0] == "ro"
    pulled = events(cluster, "features-", "Pulled")
    assert any(run.photos in message for message in pulled)
    assert all("already present on machine" in message for message in pulled)
    assert not events(cluster, "features-", "Pulling")
    before, after = run.served
    print(
        f"\nthe registry has served {before.total()} layers to {len(run.nodes)} nodes, then", end=""
    )
    print(f" {after.total() - before.total()}; {run.mount.strip()}")
    assert before.total() == PARTS * len(run.nodes), "a layer for each node, once"
    assert {client for client, _ in before} == set(run.nodes.values())
    assert after == before
    assert run.copies == [dict.fromkeys(run.content, 1)] * 4


def test_training_pod_reads_the_result_and_writes_to_its_own_volume(
    cluster: LocalCluster, imagegate: Installation, run: Run, tmp_path: Path
) -> None:
    layout = build(run.output, "features.Dockerfile", tmp_path / "layout")
    features = cluster.push_layout(layout, "data/features:41")
    images = {FEATURES: features, BUSYBOX: imagegate.busybox}
    model = tmp_path / "model"

    def done() -> bool:
        pod = cluster.api.get("/api/v1/namespaces/default/pods/training")
        return bool(pod["status"]["phase"] == "Succeeded")

    with (
        applied(cluster, volume("model", model, "ReadWriteOnce")),
        applied(cluster, *example("training.yaml", images)),
    ):
        cluster.wait(done, "the training pod to have ended", 60)
        pulled = events(cluster, "training", "Pulled")
        assert any(features in message for message in pulled)
        assert all("already present on machine" in message for message in pulled)
    results = sorted(run.output.glob("items/*"))
    assert (model / "model").read_bytes() == b"".join(file.read_bytes() for file in results)
