"""`make demo`: a node joins with Imagegate, and one without; what happened, in seconds.

Both nodes get the same image over a link of the same speed.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.cluster import ClusterOptions, NodeOptions, start_cluster
from tests.e2e.installation import KEY, Installation, push_operator
from tests.e2e.watching import NodeWatch, Sighting

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

LINK = "200mbit"
LABEL = "demo/images"


@dataclass
class Timeline:
    title: str
    zero: float = 0.0
    steps: list[tuple[str, float]] = field(default_factory=list)

    def add(self, what: str, at: float) -> None:
        self.steps.append((what, at))

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
    # Not in a `with`: the cluster stays, for the person who watches to look around.
    cluster: LocalCluster = start_cluster(ClusterOptions(name=name, nodes=1))
    print("\nInstalling Imagegate with Helm ...")
    installation = Installation(
        cluster,
        push_operator(cluster),
        cluster.push("pause", "test/pause:3.10"),
    )
    installation.install()
    image = cluster.push("big", "demo/model:1", seed=int(time.time()))
    print(
        "Applying an ImagePrefetch of a 300 MiB image for nodes labelled demo/images=prefetch ..."
    )
    installation.prefetch("demo", image, nodeSelector={"matchLabels": {LABEL: "prefetch"}})
    print(f"Two nodes join, each over a link of {LINK}/s, and on each a pod waits for its node ...")
    with NodeWatch(cluster) as watch:
        gated = join(cluster, installation, watch, image, "with-imagegate", "prefetch")
        plain = join(cluster, installation, watch, image, "without-imagegate", "none")
    gated.show()
    plain.show()
    print(summary(gated, plain))
    print(farewell(cluster, name))
    return 0


def join(
    cluster: LocalCluster,
    installation: Installation,
    watch: NodeWatch,
    image: str,
    node_name: str,
    label: str,
) -> Timeline:
    """Have a node join and a pod start on it; when what happened."""
    cluster.apply(pod(node_name, image, label))
    node = cluster.add_node(node_name, NodeOptions(labels={LABEL: label}), wait=False)
    node.limit_bandwidth(LINK)
    timeline = Timeline(f"a node joins {node_name.replace('-', ' ')}")
    first = watch.first(node_name, lambda seen: True)
    timeline.zero = first.at
    tainted = KEY in first.taints()
    timeline.add("joined" + (", tainted in its first version" if tainted else ""), first.at)
    timeline.add("Ready", watch.first(node_name, ready).at)
    path = f"/api/v1/namespaces/default/pods/{node_name}"

    def status() -> dict[str, Any]:
        found: dict[str, Any] = cluster.api.get(path)["status"]
        return found

    cluster.wait(lambda: status().get("phase") == "Running", "the pod running", 180)
    if label == "prefetch":
        (puller,) = installation.pullers("demo")
        timeline.add("pulling", seconds(puller["metadata"]["creationTimestamp"]))
        free = watch.first(node_name, lambda seen: "cached.imagegate.dev/demo" in labels(seen))
        timeline.add("cached; taint released", free.at)
    scheduled = next(c for c in status()["conditions"] if c["type"] == "PodScheduled")
    timeline.add("pod lands on the node", seconds(scheduled["lastTransitionTime"]))
    state = status()["containerStatuses"][0]["state"]["running"]
    timeline.add("pod started", seconds(state["startedAt"]))
    return timeline


def pod(name: str, image: str, label: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeSelector": {LABEL: label},
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": image, "imagePullPolicy": "IfNotPresent"}],
        },
    }


def ready(seen: Sighting) -> bool:
    conditions = seen.body["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def labels(seen: Sighting) -> dict[str, str]:
    return dict(seen.body["metadata"].get("labels") or {})


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def summary(gated: Timeline, plain: Timeline) -> str:
    def waited(timeline: Timeline) -> float:
        return timeline.seconds("pod started") - timeline.seconds("pod lands")

    return f"""
  From landing on its node to running, the pod took {waited(gated):.0f} s with Imagegate and \
{waited(plain):.0f} s without.
  The pull itself is as fast as the link; with Imagegate no pod is bound to the node meanwhile.
  (The API server gives the times of pods in whole seconds.)"""


def farewell(cluster: LocalCluster, name: str) -> str:
    return f"""
  The cluster is still up. Look around:
    export KUBECONFIG={cluster.kubeconfig}
    alias kubectl={cluster.program("kubectl")}
    kubectl get imageprefetches.imagegate.dev,nodegates -o wide
    kubectl get nodes -L cached.imagegate.dev/demo
    kubectl describe node with-imagegate
  Take it down:
    make demo-down{"" if name == "imagegate-demo" else f" DEMO={name}"}
"""


if __name__ == "__main__":
    sys.exit(main())
