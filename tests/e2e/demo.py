"""`make demo`: nodes join with and without Imagegate; prints a timeline of each, in seconds.

All nodes get the same image over a link of the same speed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

from tests.cluster import ClusterOptions, NodeOptions
from tests.cluster.local.cluster import LocalCluster
from tests.e2e.installation import KEY, Installation, push_operator
from tests.e2e.watching import NodeWatch, Sighting, Watch

LINK = "200mbit"
LABEL = "demo/images"
CACHED = "cached.imagegate.dev/demo"


@dataclass
class Timeline:
    title: str
    zero: float = 0.0
    steps: list[tuple[str, float]] = field(default_factory=list)

    def add(self, what: str, seen: Sighting) -> None:
        self.steps.append((what, seen.at))

    def seconds(self, what: str) -> float:
        return next(at for step, at in self.steps if step.startswith(what)) - self.zero

    def show(self) -> None:
        print(f"\n  {self.title}")
        for what, at in sorted(self.steps, key=lambda step: step[1]):
            elapsed = at - self.zero
            print(f"  {elapsed:7.1f} s  {'·' * min(40, int(elapsed * 2)):40}  {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="imagegate-demo", help="of the cluster")
    name = parser.parse_args().name
    # The cluster stays after the demo, so that the user can look around.
    cluster = LocalCluster.start(ClusterOptions(name=name, nodes=1))
    print("\nInstalling Imagegate with Helm ...")
    installation = Installation(
        cluster,
        push_operator(cluster),
        cluster.push("pause", "test/pause:3.10"),
        cluster.push("busybox", "test/busybox:1.37.0-musl"),
    )
    installation.settle()
    installation.install()
    image = cluster.push("big", "demo/model:1")
    print(
        "Applying an ImagePrefetch of a 300 MiB image for nodes labelled demo/images=prefetch ..."
    )
    installation.prefetch("demo", image, nodeSelector={"matchLabels": {LABEL: "prefetch"}})
    print(
        f"Two nodes join together with Imagegate, then one without, each over a link of {LINK}/s;"
        " on each a pod waits for its node ..."
    )
    with NodeWatch(cluster) as nodes, Watch(cluster, "/api/v1/pods") as pods:
        gated = join(cluster, nodes, pods, image, ("with-imagegate-1", "with-imagegate-2"), True)
        plain = join(cluster, nodes, pods, image, ("without-imagegate",), False)
    for timeline in (*gated, *plain):
        timeline.show()
    print(summary(gated, plain[0]))
    print(farewell(cluster, name))
    return 0


def join(
    cluster: LocalCluster,
    nodes: Watch,
    pods: Watch,
    image: str,
    names: tuple[str, ...],
    gated: bool,
) -> list[Timeline]:
    """Makes nodes join together and a pod start on each. Returns the times that a watch saw."""
    for name in names:
        cluster.apply(pod(name, image))
        node = cluster.add_node(name, NodeOptions(labels=labels_of(name, gated)), wait=False)
        node.limit_bandwidth(LINK)
    return [follow(nodes, pods, name, gated) for name in names]


def labels_of(name: str, gated: bool) -> dict[str, str]:
    return {LABEL: "prefetch" if gated else "none", "demo/node": name}


def follow(nodes: Watch, pods: Watch, name: str, gated: bool) -> Timeline:
    timeline = Timeline(f"a node joins: {name}")
    first = nodes.first(name, lambda seen: True)
    timeline.zero = first.at
    timeline.add("joined" + (", tainted from its first version" if tainted(first) else ""), first)
    timeline.add("Ready", nodes.first(name, ready))
    running = pods.first(
        name, lambda seen: seen.body["status"].get("phase") == "Running", timeout=180
    )
    free = nodes.first(name, lambda seen: not tainted(seen))
    if gated:
        timeline.add("pulling", puller_of(pods, name))
        assert CACHED in labels(free), "released before it was cached"
        timeline.add("cached and released, in one patch", free)
    else:
        timeline.add("released: no ImagePrefetch matches it", free)
    timeline.add(
        "pod lands on the node", pods.first(name, lambda seen: "nodeName" in seen.body["spec"])
    )
    timeline.add("pod started", running)
    return timeline


def puller_of(pods: Watch, node: str) -> Sighting:
    return next(
        seen
        for seen in pods.sightings
        if "imagegate.dev/prefetch" in labels(seen) and seen.body["spec"]["nodeName"] == node
    )


def pod(name: str, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeSelector": {"demo/node": name},
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": image, "imagePullPolicy": "IfNotPresent"}],
        },
    }


def ready(seen: Sighting) -> bool:
    conditions = seen.body["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def tainted(seen: Sighting) -> bool:
    return KEY in seen.taints()


def labels(seen: Sighting) -> dict[str, str]:
    return dict(seen.body["metadata"].get("labels") or {})


def summary(gated: list[Timeline], plain: Timeline) -> str:
    def waited(timeline: Timeline) -> float:
        return timeline.seconds("pod started") - timeline.seconds("pod lands")

    return f"""
  From landing on its node to running, a pod took {max(map(waited, gated)):.0f} s with Imagegate,
  and {waited(plain):.0f} s without.
  The pull itself is as fast as the link; with Imagegate no pod is bound to the node meanwhile."""


def farewell(cluster: LocalCluster, name: str) -> str:
    return f"""
  The cluster is still up. Look around:
    export KUBECONFIG={cluster.kubeconfig}
    alias kubectl={cluster.program("kubectl")}
    kubectl get imageprefetches.imagegate.dev,nodegates -o wide
    kubectl get nodes -L cached.imagegate.dev/demo
    kubectl describe node with-imagegate-1
  Take it down:
    make demo-down{"" if name == "imagegate-demo" else f" DEMO={name}"}
"""


if __name__ == "__main__":
    sys.exit(main())
