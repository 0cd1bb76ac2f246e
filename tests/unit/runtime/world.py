"""The real loop with an API server in memory, and kubelets that do what the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from imagegate.api.fields import timestamp
from imagegate.domain.disk import Usage
from imagegate.domain.facts import OBSERVED, Gate, ImageFacts, Node, Prefetch, Refreshed
from imagegate.domain.policy import ANYTHING, PrefetchPolicy
from imagegate.errors import ImagegateError
from imagegate.kube import gates, nodes, prefetches
from imagegate.kube.daemonsets import DaemonSets
from imagegate.kube.events import Events
from imagegate.kube.gates import Gates
from imagegate.kube.nodes import Nodes
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches, Reader
from imagegate.kube.workloads import Workloads
from imagegate.puller import read
from imagegate.puller.build import PullerSettings
from imagegate.runtime.clock import Clock
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.disks import Disks
from imagegate.runtime.gate_taint import GateTaint
from imagegate.runtime.image_volumes import ImageVolumes
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.process import Process
from imagegate.runtime.reconcile.changes import Changes
from imagegate.runtime.reconcile.controllers import Controllers
from imagegate.runtime.repositories import RepositoryTags
from imagegate.runtime.resync import Resync
from imagegate.runtime.size_limit import SizeLimit
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.workloads import WorkloadImages
from tests.unit.memory_api import MemoryApi

KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
NAMESPACE = "imagegate-system"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Registries:
    """Registries that have already answered."""

    def __init__(self) -> None:
        self.images: dict[str, ImageFacts] = {}
        self.asked = True
        self.looked: Refreshed | None = None

    def known(self, _: Prefetch) -> Mapping[str, ImageFacts] | None:
        return self.images if self.asked else None

    def refreshed(self, _: str) -> Refreshed | None:
        return self.looked

    def look(self, prefetch: Prefetch) -> None: ...
    def meet(self, platform: str) -> None: ...
    def forget(self, prefetch: str) -> None: ...


class NoWorkloads:
    """For prefetches without ``imagesFrom``."""

    def found(self, _: Prefetch) -> None: ...
    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


class NoRepositories:
    """For prefetches without ``repositories``."""

    def selected(self, _: Prefetch) -> None: ...
    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


class Tags:
    """The tags of repositories, by repository."""

    def __init__(self) -> None:
        self.tags: dict[str, Sequence[str]] = {}
        self.problem: ImagegateError | None = None
        self.lists: list[tuple[str, tuple[str, ...]]] = []
        """The repository and the secrets of each list."""
        self.hangs = False

    async def tags_of(self, repository: str) -> tuple[str, ...]:
        if self.hangs:
            await asyncio.sleep(3600)
        if self.problem is not None:
            raise self.problem
        return tuple(self.tags.get(repository, ()))


class Lister:
    def __init__(self, tags: Tags) -> None:
        self._tags = tags

    async def tags(
        self, namespace: str, repository: str, secrets: Sequence[str], patience: float
    ) -> tuple[str, ...]:
        self._tags.lists.append((repository, tuple(secrets)))
        return await self._tags.tags_of(repository)


class OneKey:
    """A gate whose taint has always had the same key."""

    current = KEY
    earlier: frozenset[str] = frozenset()

    def see(self, gate: Gate | None) -> None: ...


class Full:
    """Kubelets that all have the same disk."""

    def __init__(self, usage: Usage) -> None:
        self.answer = usage
        self.asked = 0

    async def usage(self, _: Node) -> Usage:
        self.asked += 1
        return self.answer


class World:
    def __init__(self, api: MemoryApi | None = None, policy: PrefetchPolicy = ANYTHING) -> None:
        self.api = api or MemoryApi()
        self.clock = Clock()
        self.policy = policy
        self.reader = Reader([NAMESPACE], policy)
        self.registries = Registries()
        self.tags = Tags()
        self.disks = Full(Usage(capacity=100 * 10**9, used=10 * 10**9))
        self.start_operator()
        self.api.watchers.append(self._watch)

    def start_operator(self) -> None:
        """Start a new process, which knows only what is in the cluster."""
        client: Any = self.api
        process = Process.create(self.clock, version="test")
        self.metrics, self.store, self.queues = process.metrics, process.store, process.queues
        store = self.store
        self.ledger = Ledger()
        self.cluster = Cluster(
            Nodes(client, lambda: store.wanted),
            Pods(client),
            Prefetches(client, self.reader),
            Gates(client),
            Events(client, component="imagegate", instance="test"),
        )
        gate = GateTaint(store, OneKey(), by_watch=False)
        self.changes = changes = Changes(self.queues, store, self.ledger, gate)
        self.workloads = WorkloadImages(
            Workloads(client), store, self.queues.workloads, changes.prefetch_changed, self.policy
        )
        self.repositories = RepositoryTags(
            Lister(self.tags),
            store,
            self.clock,
            self.queues.repositories,
            changes.prefetch_changed,
        )
        self.known = Knowledge(
            clock=self.clock,
            store=store,
            ledger=self.ledger,
            gate=gate,
            images=self.registries,
            size_limit=SizeLimit(self.registries.known, self.policy),
            workloads=self.workloads,
            repositories=self.repositories,
            disks=Disks(self.disks, self.clock),
            start_after=StartAfter(
                DaemonSets(client), self.queues.start_after, changes.node_changed
            ),
            image_volumes=ImageVolumes(self.cluster.pods, PullerSettings(image="pause"), NAMESPACE),
        )
        self.controllers = Controllers(self.cluster, self.known, self.queues, changes, self.metrics)
        self.resync = Resync(
            self.cluster, self.known, self.metrics, namespaces=[NAMESPACE], period=300
        )

    @contextlib.asynccontextmanager
    async def operating(self) -> AsyncIterator[None]:
        await self.resync.once()
        self.store.listen(self.changes)
        self.changes.everything()
        queues, controllers = self.queues, self.controllers
        work = [
            queues.nodes.run(controllers.nodes.reconcile),
            queues.prefetches.run(controllers.prefetches.reconcile),
            queues.disks.run(controllers.disks.read),
            queues.forecasts.run(controllers.forecaster.forecast),
            queues.start_after.run(self.known.start_after.look),
            queues.workloads.run(self.workloads.look),
            queues.repositories.run(self.repositories.list),
            self.cluster.events.run(),
        ]
        tasks = [asyncio.create_task(part) for part in work]
        try:
            yield
        finally:
            self.workloads.stop()
            self.repositories.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _watch(self, kind: str, body: dict[str, Any]) -> None:
        gone = kind == "DELETED"
        match body.get("kind"):
            case "Node":
                node = nodes.parse(body, self.store.wanted)
                self.store.lose_node(node.name, node.uid) if gone else self.store.see_node(node)
            case "Pod":
                pod = read.pod(body)
                if gone:
                    self.store.lose_pod(pod.namespace, pod.name, pod.uid)
                else:
                    self.store.see_pod(pod, live=True)
            case "ImagePrefetch":
                prefetch = self.reader.parse(body)
                if gone:
                    self.store.lose_prefetch(prefetch.name, prefetch.uid)
                else:
                    self.store.see_prefetch(prefetch)
            case "NodeGate":
                self.store.see_gate(None if gone else gates.parse(body))
            case _:
                pass

    # ---- the rest of the cluster

    def add_gate(self, **spec: Any) -> None:
        self.api.put(
            f"{gates.PATH}/default",
            {
                "kind": "NodeGate",
                "metadata": {"name": "default", "uid": "gate"},
                "spec": {"taintKey": KEY, "suspend": False, "silenceSeconds": 300, **spec},
                "status": {"heartbeat": timestamp(self.clock.now())},
            },
        )

    def add_node(
        self, name: str, *, gated: bool = False, labels: Mapping[str, str] | None = None
    ) -> None:
        taints = [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
        if gated:
            taints.append({"key": KEY, "value": "pending", "effect": "NoSchedule"})
        now = timestamp(self.clock.now())
        self.api.put(
            f"/api/v1/nodes/{name}",
            {
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "uid": f"{name}-uid",
                    "creationTimestamp": now,
                    "labels": {"kubernetes.io/hostname": name, **(labels or {})},
                },
                "spec": {"taints": taints},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
                    "nodeInfo": {"bootID": "boot-1"},
                },
            },
        )

    def add_prefetch(self, name: str, *images: str, **spec: Any) -> None:
        self.api.put(
            f"{prefetches.PATH}/{name}",
            {
                "apiVersion": "imagegate.dev/v1alpha1",
                "kind": "ImagePrefetch",
                "metadata": {
                    "name": name,
                    "uid": f"{name}-uid",
                    "generation": 1,
                    "creationTimestamp": "2025-12-31T00:00:00Z",
                },
                "spec": {"images": [{"image": image} for image in images], **spec},
            },
        )

    def change_images(self, name: str, *images: str) -> None:
        def edit(body: dict[str, Any]) -> None:
            body["spec"]["images"] = [{"image": image} for image in images]
            body["metadata"]["generation"] += 1

        self.api.change(f"{prefetches.PATH}/{name}", edit)

    def pods(self) -> list[dict[str, Any]]:
        return [body for path, body in self.api.objects.items() if path.startswith(PODS + "/")]

    def node(self, name: str) -> dict[str, Any]:
        return self.api.objects[f"/api/v1/nodes/{name}"]

    def taints(self, name: str) -> list[str]:
        return [taint["key"] for taint in self.node(name)["spec"].get("taints", [])]

    def labels(self, name: str) -> dict[str, str]:
        labels: dict[str, str] = self.node(name)["metadata"].get("labels", {})
        return {k: v for k, v in labels.items() if k.startswith("cached.imagegate.dev/")}

    def observed(self, name: str) -> str | None:
        return (self.node(name)["metadata"].get("annotations") or {}).get(OBSERVED)

    def finish(self, pod: Mapping[str, Any], phase: str = "Succeeded", **status: Any) -> None:
        """The kubelet ends a pod."""
        self.api.change(
            f"{PODS}/{pod['metadata']['name']}",
            lambda body: body.update(status={"phase": phase, **status}),
        )

    def fail(self, pod: Mapping[str, Any], message: str, reason: str = "ErrImagePull") -> None:
        """The kubelet reports a failed pull."""
        waiting = {"reason": reason, "message": message}
        self.api.change(
            f"{PODS}/{pod['metadata']['name']}",
            lambda body: body.update(
                status={
                    "phase": "Pending",
                    "containerStatuses": [{"state": {"waiting": waiting}}],
                }
            ),
        )

    def status(self, prefetch: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects[f"{prefetches.PATH}/{prefetch}"].get("status", {})
        return found

    def condition(self, prefetch: str, type_: str) -> dict[str, Any]:
        conditions = self.status(prefetch).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {})


async def until(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    """Wait until the condition is true. Fails after ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while not condition():
        assert loop.time() < end, "it did not come true in time"
        await asyncio.sleep(0.01)
