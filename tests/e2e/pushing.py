"""Push events of the registry, and when the kubelets pull what was pushed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import yaml

from tests.cluster.local.registries import Registry
from tests.e2e.installation import HOOKS, NAMESPACE, PULLERS, Installation
from tests.e2e.watching import Watch

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

PATH = "e2e-7d1f0a6c5b9e4c21"


class Pulls(Watch):
    """The kubelets' events in the puller namespace, which show when each pull began."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(cluster, f"/api/v1/namespaces/{PULLERS}/events")

    def pods(self, imagegate: Installation, *prefetches: str) -> set[str]:
        """The names of all puller pods that exist or that an event has named."""
        there = {pod["metadata"]["name"] for each in prefetches for pod in imagegate.pullers(each)}
        return there | {seen.body["involvedObject"]["name"] for seen in list(self.sightings)}

    def begun(self, image: str, pods: set[str], timeout: float) -> float:
        """The time of the first event Pulling of the image for a pod that is not in ``pods``."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for seen in list(self.sightings):
                event = seen.body
                pulls = event["reason"] == "Pulling" and image in event["message"]
                if pulls and event["involvedObject"]["name"] not in pods:
                    return seen.at
            time.sleep(0.02)
        raise AssertionError(f"no kubelet pulled {image} within {timeout:g} s")


def receive(cluster: LocalCluster, imagegate: Installation, *secrets: str) -> None:
    """Write the Secret, and wait until every pod that receives push hooks has read it."""
    receiver = {
        "name": "e2e",
        "source": "distribution",
        "path": PATH,
        "registry": "open.registry.test",  # Images name this host, push events an address.
        "secrets": list(secrets),
    }
    pods = [pod["metadata"]["name"] for pod in imagegate.hooks_pods()]
    before = {pod: reads(cluster, pod) for pod in pods}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": HOOKS, "namespace": NAMESPACE},
            "stringData": {"receivers.yaml": yaml.safe_dump([receiver])},
        }
    )

    def read() -> bool:
        # The kubelet updates a pod's volumes once a minute, and after each change of the pod.
        note = f"e2e/hooks={int(time.time()) // 3}"
        cluster.kubectl("-n", NAMESPACE, "annotate", "pods", *pods, note, "--overwrite")
        return all(reads(cluster, pod) > before[pod] for pod in pods)

    cluster.wait(read, "every pod to have read the receivers", 90)


def reads(cluster: LocalCluster, pod: str) -> int:
    return cluster.kubectl("-n", NAMESPACE, "logs", pod).count("push receivers read")


@contextmanager
def told(registry: Registry, address: str, secret: str) -> Iterator[None]:
    """The registry sends an event to the operator for every push."""
    with registry.notifying(f"http://{address}/hooks/{PATH}", f"Bearer {secret}"):
        yield


def service(cluster: LocalCluster) -> str:
    """The address of the chart's Service outside the cluster. Any of its pods may answer."""
    body = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/{HOOKS}")
    node = next(iter(cluster.nodes.values()))
    return f"{node.address}:{body['spec']['ports'][0]['nodePort']}"
