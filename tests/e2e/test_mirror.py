"""The seeds fill a mirror, which serves the other nodes. A joining node waits until it is
configured to use the mirror."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import NodeOptions, images
from tests.cluster.local.mirrors import Mirror, blob_requests
from tests.e2e import daemons
from tests.e2e.installation import Installation
from tests.e2e.watching import NodeWatch, is_ready, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

HOST = "open.registry.test"
POOL = {"matchLabels": {"pool": "mirrored"}}
OPTIONS = NodeOptions(labels={"pool": "mirrored"})
SEEDED = {"maxParallel": "100%", "seeds": 1, "fanout": 2}
AT_ONCE = {"maxParallel": "100%", "seeds": 1000}
LAYER = 16 * images.MiB
"""The least bytes of a layer of the test image. Its manifest and configuration are smaller."""
AGENT = {"namespace": daemons.NAMESPACE, "daemonSet": "mirror-agent"}


@pytest.fixture(scope="module")
def mirror(cluster: LocalCluster) -> Iterator[Mirror]:
    made = cluster.mirror()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def mirrored(
    cluster: LocalCluster, imagegate: Installation, mirror: Mirror
) -> Iterator[list[Node]]:
    """Four nodes in service whose containerd asks the mirror first."""
    names = [f"node-m{number}" for number in range(1, 5)]
    for name in names:
        node = cluster.add_node(name, OPTIONS, wait=False)
        (node.etc / "certs.d" / HOST / "hosts.toml").write_text(mirror.hosts_toml())
    for name in names:
        cluster.wait(cluster.node(name).ready, f"{name} Ready", 90)
    cluster.wait(lambda: not any(map(imagegate.held, names)), "four nodes in service", 30)
    yield [cluster.node(name) for name in names]
    for name in names:
        cluster.remove_node(name)


def layers(log: Path, repository: str) -> Counter[str]:
    """How many of the image's layers a registry or mirror has served, by client."""
    served = [r for r in blob_requests(log) if r.repository == repository and r.size >= LAYER]
    return Counter(request.client for request in served)


def roll_out(
    cluster: LocalCluster, imagegate: Installation, repository: str, rollout: dict[str, Any]
) -> float:
    image = cluster.push("layers", f"{repository}:1", seed=sum(map(ord, repository)))
    begin = time.monotonic()
    name = repository.rpartition("/")[2]
    with imagegate.prefetching(name, image, nodeSelector=POOL, rollout=rollout):
        imagegate.wait_ready(name)
        assert imagegate.counts(name)["cached"] == 4
        return time.monotonic() - begin


def test_mirror_serves_every_node_and_the_registry_serves_only_the_mirror(
    cluster: LocalCluster, imagegate: Installation, mirror: Mirror, mirrored: list[Node]
) -> None:
    upstream = cluster.registries["open"].log
    addresses = {node.address for node in mirrored}
    for repository, rollout in (("mirror/seeded", SEEDED), ("mirror/at-once", AT_ONCE)):
        seconds = roll_out(cluster, imagegate, repository, rollout)
        asked, served = layers(upstream, repository), layers(mirror.log, repository)
        print(
            f"\n{repository}: {asked.total()} layers from the registry, {served.total()} from the"
            f" mirror to {len(served)} nodes, {seconds:.1f} s"
        )
        assert not addresses & asked.keys(), "a node pulled from the registry itself"
        assert served == dict.fromkeys(addresses, 4)
        if rollout == SEEDED:
            # Distribution fetches a missing blob twice: for the client and for its own storage.
            assert asked.total() <= 2 * 4, "the registry served more than the seed's layers"


def test_joining_node_pulls_only_after_the_agent_has_configured_the_mirror(
    cluster: LocalCluster,
    imagegate: Installation,
    mirror: Mirror,
    mirrored: list[Node],
) -> None:
    """The agent is a DaemonSet that writes containerd's hosts.toml, as Spegel's DaemonSet does."""
    busybox = cluster.push("busybox", "mirror/agent:1")
    image = cluster.push("layers", "mirror/join:1", seed=83)
    upstream = cluster.registries["open"].log
    agent = daemons.late(
        "mirror-agent",
        busybox,
        "mirrored",
        seconds=5,
        then='printf %s "$HOSTS" > /host/hosts.toml',
        env=[
            {"name": "HOSTS", "value": mirror.hosts_toml()},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        volumeMounts=[
            {
                "name": "nodes",
                "mountPath": "/host",
                "subPathExpr": f"$(NODE)/disk/etc/certs.d/{HOST}",
            }
        ],
        volumes=[{"name": "nodes", "hostPath": {"path": str(mirrored[0].folder.parent)}}],
    )
    spec = {"nodeSelector": POOL, "rollout": SEEDED, "startAfter": [AGENT]}
    with (
        daemons.allowed(cluster, imagegate),
        imagegate.prefetching("mirror-join", image, **spec),
        NodeWatch(cluster) as watch,
    ):
        imagegate.wait_ready("mirror-join")
        cluster.apply(agent)
        before = layers(upstream, "mirror/join").total()
        node = cluster.add_node("node-m5", OPTIONS, wait=False)
        try:
            ready = watch.first(node.name, is_ready, timeout=90)
            free = watch.first(node.name, released, timeout=60)
            label = free.body["metadata"]["labels"]["cached.imagegate.dev/mirror-join"]
            assert label == imagegate.get("mirror-join")["status"]["target"]
            print(f"\nReady to released: {free.at - ready.at:.1f} s; the registry served", end=" ")
            print(f"{before} layers to the four, {layers(upstream, 'mirror/join').total()} in all")
            assert layers(upstream, "mirror/join").total() == before, "the node did not wait"
            assert layers(mirror.log, "mirror/join")[node.address] == 4
        finally:
            cluster.remove_node(node.name)
