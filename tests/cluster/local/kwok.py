"""kwok: nodes without kubelets, for tests with thousands of nodes.

Its nodes pull nothing. A puller pod (label `imagegate.dev/prefetch`) is Succeeded some seconds
after it was scheduled, which simulates the pull. The pod's annotation `kwok.test/pull-seconds` sets
another time.
"""

import itertools
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries
from tests.cluster.api import Api, ApiError, Json
from tests.cluster.local.controlplane import ControlPlane
from tests.cluster.local.processes import wait_until

SELECTOR = "kwok.test/node"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_PARALLEL = 50


@dataclass(frozen=True, slots=True)
class Kwok:
    """One kwok process and its nodes. Keep the process running: a restarted kwok has another
    identity and does not manage the nodes until the Leases of the old process expire."""

    control_plane: ControlPlane
    api: Api

    def start(self, pull_seconds: float) -> None:
        """Starts kwok if it does not run yet."""
        group = self.control_plane.group
        if group.find("kwok"):
            return
        path = group.folder / "kwok.yaml"
        path.write_text(yaml.safe_dump_all([_configuration(), *_stages(pull_seconds)]))
        self._forget_leases()
        program = str(binaries.path(binaries.kwok(), "kwok"))
        kubeconfig = group.folder / "kwok.kubeconfig"
        group.start("kwok", [program, f"--kubeconfig={kubeconfig}", f"--config={path}"])

    def stop(self) -> None:
        """Stops kwok. Its nodes stay and become NotReady later; see `delete`."""
        self.control_plane.group.stop("kwok")

    def add(self, count: int, labels: Mapping[str, str], zones: int) -> list[str]:
        """Creates nodes with unused numbers, and waits until all are Ready."""
        taken = {node["metadata"]["name"] for node in self._list()}
        free = (name for number in itertools.count() if (name := _name(number)) not in taken)
        names = list(itertools.islice(free, count))
        bodies = [_node(name, f"zone-{int(name[5:]) % zones}", labels) for name in names]
        _each(lambda body: self.api.post("/api/v1/nodes", body), bodies)
        self.wait_ready(names)
        return names

    def delete(self, names: Iterable[str]) -> None:
        _each(self._delete, list(names))

    def wait_ready(self, names: Sequence[str], timeout: float = 120) -> None:
        """Waits until the nodes are Ready and have a Lease, because kwok manages the pods of a node
        only after it has the Lease."""
        process = self.control_plane.group.find("kwok")
        wanted = set(names)

        def ready() -> bool:
            if not wanted <= {node["metadata"]["name"] for node in self._list() if _ready(node)}:
                return False
            leases = self.api.get(_LEASES)["items"]
            return wanted <= {lease["metadata"]["name"] for lease in leases}

        needed = [process] if process else []
        wait_until(ready, f"{len(names)} kwok nodes Ready", timeout, needed)

    def _delete(self, name: str) -> None:
        try:
            self.api.delete(f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    def _list(self) -> list[Json]:
        nodes: list[Json] = self.api.get(f"/api/v1/nodes?labelSelector={SELECTOR}")["items"]
        return nodes

    def _forget_leases(self) -> None:
        """Deletes the Leases of an earlier kwok, because this kwok would not manage its nodes until
        they expire."""
        names = {node["metadata"]["name"] for node in self._list()}
        leases = (lease["metadata"]["name"] for lease in self.api.get(_LEASES)["items"])
        stale = [name for name in leases if name in names]
        _each(lambda name: self.api.delete(f"{_LEASES}/{name}"), stale)


def _each(do: Callable[[Any], object], items: Sequence[Any]) -> None:
    """Makes many requests in parallel; raises the first error."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for _ in pool.map(do, items):
            pass


def _name(number: int) -> str:
    return f"kwok-{number:05d}"


def _ready(node: Json) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _node(name: str, zone: str, labels: Mapping[str, str]) -> Json:
    """A Node with the fields that stage `node-initialize` does not set, mainly the boot id."""
    amounts = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "500Gi"}
    well_known = {
        SELECTOR: "true",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": zone,
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**well_known, **labels}},
        "status": {
            "allocatable": amounts,
            "capacity": amounts,
            "nodeInfo": {
                "architecture": "amd64",
                "operatingSystem": "linux",
                "bootID": str(uuid.uuid4()),
                "machineID": uuid.uuid4().hex,
                "systemUUID": str(uuid.uuid4()),
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "containerd://2.4.2",
                "kernelVersion": "6.18.0",
                "osImage": "kwok",
            },
        },
    }


def _configuration() -> Json:
    """All needed options, because an option that the file omits is 0 and not its default."""
    return {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokConfiguration",
        "options": {
            "cidr": "10.94.0.0/16",
            "nodeIP": "10.95.0.1",
            "manageAllNodes": False,
            "manageNodesWithLabelSelector": SELECTOR,
            "nodeLeaseDurationSeconds": 140,  # renewed every 35 s; the grace period is 50 s
            "nodeLeaseParallelism": 16,
            "nodePlayStageParallelism": 16,
            "podPlayStageParallelism": 16,
            "podsOnNodeSyncParallelism": 16,
            "enablePodsOnNodeSyncListPager": True,
            "enablePodsOnNodeSyncStreamWatch": False,
        },
    }


def _stages(pull_seconds: float) -> list[Json]:
    folder = Path(__file__).with_name("stages")
    text = "\n---\n".join(path.read_text() for path in sorted(folder.glob("*.yaml")))
    stages: list[Json] = list(yaml.safe_load_all(text))
    for stage in stages:
        if stage["metadata"]["name"] == "pod-complete":
            stage["spec"]["delay"]["durationMilliseconds"] = round(pull_seconds * 1000)
    return stages
