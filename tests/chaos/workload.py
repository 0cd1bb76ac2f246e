"""The load on the cluster during faults: rollouts, joining and leaving nodes, pulls.

All requests are repeated while the API server is down, because the faults stop it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.chaos.recorder import Containerd, insist
from tests.cluster import NodeOptions, images
from tests.cluster.api import ApiError
from tests.e2e.installation import PREFETCHES, Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

POOL = {"pool": "chaos"}
SELECTOR = {"matchLabels": POOL}
FOREIGN = ("chaos.example.com/keep=x:NoSchedule", "chaos.example.com/too=x:PreferNoSchedule")
JOINING = ("chaos-a", "chaos-b")
SLOW, STEADY = "10mbit", "20mbit"
"""4 MiB take 3.4 s on a joining node and 1.7 s on the nodes of the operator."""
QUICK = {"minSeconds": 1, "maxSeconds": 5}


def prepare(cluster: LocalCluster) -> None:
    """Label and taint the first nodes before a witness watches their taints. The taint's effect is
    PreferNoSchedule, so it keeps no pod away."""
    cluster.kubectl("label", "nodes", "--all", "pool=chaos", "--overwrite")
    cluster.kubectl("taint", "nodes", "--all", FOREIGN[1], "--overwrite")


class Workload:
    def __init__(
        self, cluster: LocalCluster, imagegate: Installation, containerd: Containerd
    ) -> None:
        self._cluster = cluster
        self._imagegate = imagegate
        self._containerd = containerd
        self._pool = ThreadPoolExecutor(4)
        self._joining: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._editing = threading.RLock()
        self._pushed = 0
        self._specs: dict[str, dict[str, Any]] = {}
        self._first = cluster.push("tiny", "chaos/first:1", seed=9001)

    # ---- life

    def begin(self) -> None:
        """Limit the network of the steady nodes and record their containerd events."""
        for node in self._cluster.nodes.values():
            node.limit_bandwidth(STEADY)
            self._containerd.attach(node)

    def end(self) -> None:
        """Delete all joined nodes and all ImagePrefetches."""
        self.wait()
        for name in list(self._specs):
            self.delete(name)
        for name in JOINING:
            self.leave(name)
        self._pool.shutdown()

    def stir(self, rng: random.Random) -> None:
        """Start a rollout, an edit, a new ImagePrefetch and a joining node. Returns while most of
        them still run."""
        for name in [name for name in self._specs if name.startswith("bad-")]:
            self.delete(name)
        self.apply_again()
        self.apply(
            "closed",
            self._first,
            self.image("tiny"),
            rollout={"maxParallel": rng.choice((1, 2))},
            retry=QUICK,
            nodeSelector=SELECTOR,
            gate={"policy": "FailClosed"},
        )
        self.apply(
            f"brief-{self._pushed}",
            self.image("tiny"),
            nodeSelector=SELECTOR,
            gate={"mode": "Never"},
        )
        self.join(rng.choice(JOINING))

    def apply_again(self) -> None:
        """Start another rollout on all nodes."""
        self.apply(
            "roll", self.image(), rollout={"maxParallel": 2}, retry=QUICK, nodeSelector=SELECTOR
        )

    def calm(self) -> None:
        """Wait for joining nodes, and delete the `brief-` ImagePrefetches."""
        self.wait()
        for name in [name for name in self._specs if name.startswith("brief-")]:
            self.delete(name)

    def wait(self) -> None:
        with self._lock:
            going = list(self._joining.values())
        for each in going:
            each.result(120)

    # ---- images and ImagePrefetches

    def image(
        self, kind: str = "data", *, registry: str = "open", repository: str = "chaos/image"
    ) -> str:
        """Push an image that no node has ever pulled."""
        with self._lock:
            self._pushed += 1
            number = self._pushed
        reference = self._cluster.push(
            kind, f"{repository}:{number}", registry=registry, seed=9100 + number
        )
        images.forget(kind, seed=9100 + number)
        return reference

    def apply(self, name: str, *refs: str, **spec: Any) -> None:
        with self._editing:
            self._specs[name] = {
                "images": [{"image": ref} for ref in refs],
                "disk": {"maxUsagePercent": 100},  # disks of test machines are full of other data
                **spec,
            }
            self._put(name)

    def _put(self, name: str) -> None:
        body = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "ImagePrefetch",
            "metadata": {"name": name},
            "spec": self._specs[name],
        }
        insist(lambda: self._cluster.apply(body), f"apply {name}")

    def delete(self, name: str) -> None:
        with self._editing:
            self._specs.pop(name, None)
            self.delete_object(name)

    def delete_object(self, name: str) -> None:
        """Delete the object but keep it in `expected`; `put_back` creates it again."""
        insist(_gone(lambda: self._cluster.api.delete(f"{PREFETCHES}/{name}")), f"delete {name}")

    def put_back(self) -> None:
        with self._editing:
            for name in list(self._specs):
                self._put(name)

    @property
    def expected(self) -> dict[str, dict[str, Any]]:
        """The expected ImagePrefetches: specs by name."""
        return dict(self._specs)

    # ---- nodes

    def join(self, name: str) -> None:
        """Add a new machine in the background. The name may be that of an earlier node."""
        with self._lock:
            before = self._joining.get(name)
            self._joining[name] = self._pool.submit(self._join, name, before)

    def _join(self, name: str, before: Future[None] | None) -> None:
        if before is not None:
            before.result(120)
        self.leave(name)
        self._cluster.add_node(
            name, NodeOptions(labels=POOL, register_with_taints=FOREIGN), wait=False
        )
        self.woke(name)

    def woke(self, name: str) -> None:
        """Limit the network of a node whose containerd has started, and record its events."""
        node = self._cluster.node(name)
        node.limit_bandwidth(SLOW)
        self._containerd.attach(node)

    def stop(self, name: str) -> None:
        """Kill the node. Record containerd's events until its end, because the kubelet may still
        report an image that was completed last, and the operator may act on that."""
        self._cluster.node(name).stop()
        self._containerd.detach(name)

    def leave(self, name: str) -> None:
        if name in self._cluster.nodes:
            self.stop(name)
            self._cluster.remove_node(name, delete_object=False)
        path = f"/api/v1/nodes/{name}"
        insist(_gone(lambda: self._cluster.api.delete(path)), f"delete node {name}")


def _gone(do: Callable[[], object]) -> Callable[[], None]:
    def attempt() -> None:
        try:
            do()
        except ApiError as error:
            if error.status != 404:
                raise

    return attempt
