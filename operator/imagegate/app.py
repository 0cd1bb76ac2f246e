"""Creates all parts of the operator, and runs them while this process leads.

The leader lists, watches, decides and acts. The rest of the process, such as the election, is in
`run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagegate import handlers
from imagegate.handlers import Sightings
from imagegate.hooks.asking import Asker
from imagegate.hooks.event import Push
from imagegate.hooks.sources import SOURCES
from imagegate.kube import pushes
from imagegate.kube.client import Client
from imagegate.kube.daemonsets import DaemonSets
from imagegate.kube.events import Events
from imagegate.kube.gates import Gates
from imagegate.kube.leases import Leases
from imagegate.kube.nodes import PATH as NODES
from imagegate.kube.nodes import Nodes
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches, Reader
from imagegate.kube.secrets import Secrets
from imagegate.kube.workloads import Workloads
from imagegate.puller import build
from imagegate.registry.manifests import Manifests
from imagegate.runtime.arming import Arming
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.collector import Leader, StateCollector
from imagegate.runtime.disks import Disks, Source
from imagegate.runtime.gate_taint import GateTaint
from imagegate.runtime.health import Health
from imagegate.runtime.heartbeat import Heartbeat
from imagegate.runtime.image_volumes import ImageVolumes
from imagegate.runtime.inspector import Inspector
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.process import Process
from imagegate.runtime.queue import Handle, KeyedQueue
from imagegate.runtime.reconcile.changes import Changes
from imagegate.runtime.reconcile.controllers import Controllers
from imagegate.runtime.reflector import Reflector
from imagegate.runtime.registries import Registries
from imagegate.runtime.repositories import RepositoryTags
from imagegate.runtime.resync import Resync
from imagegate.runtime.size_limit import SizeLimit
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.taint_keys import TaintKeys
from imagegate.runtime.tasks import first_of, spawn
from imagegate.runtime.workloads import WorkloadImages
from imagegate.settings import GateSource, Settings

Watch = Callable[[Sightings, Sequence[str], str], Coroutine[Any, Any, None]]
"""Watches until cancelled, in these namespaces and under this identity, and reports changes."""


@dataclass(frozen=True, slots=True)
class Outside:
    """The connections of the process."""

    api: Client
    watching: Client
    """For watches: each keeps a connection for as long as it runs, and there may be many."""
    manifests: Manifests
    kubelets: Source
    watch: Watch = handlers.watch


class App:
    def __init__(self, settings: Settings, process: Process, outside: Outside) -> None:
        """Create the parts, each complete at construction: the clients, the listener of changes,
        the knowledge, the reconcilers, then the parts that run besides them.
        """
        self._settings, self._process, self._outside = settings, process, outside
        self._leading = False
        api, clock, store, queues = outside.api, process.clock, process.store, process.queues
        policy, namespaces = settings.prefetch_policy, settings.puller_namespaces
        metrics, period = process.metrics, settings.resync_seconds

        self._reader = Reader(namespaces, policy)
        nodes, prefetches = Nodes(api, lambda: store.wanted), Prefetches(api, self._reader)
        events = Events(api, component="imagegate", instance=settings.identity)
        self._cluster = cluster = Cluster(nodes, Pods(api), prefetches, Gates(api), events)

        leases = Leases(api, settings.namespace, settings.lease_name)
        keys = TaintKeys(leases, clock, settings.gate_taint_key)
        by_watch = settings.gate_source is GateSource.WATCH
        gate = GateTaint(
            store, keys, by_watch=by_watch, control_planes=settings.gate_control_planes
        )
        ledger = Ledger()
        self._changes = changes = Changes(queues, store, ledger, gate)

        registries = Registries(outside.manifests, Secrets(api))
        self._repositories = RepositoryTags(
            registries, store, clock, queues.repositories, changes.prefetch_changed
        )
        self._inspector = Inspector(store, registries, clock, queues.images, changes)
        self._workloads = WorkloadImages(
            Workloads(outside.watching), store, queues.workloads, changes.prefetch_changed, policy
        )
        self._known = known = Knowledge(
            clock=clock,
            store=store,
            ledger=ledger,
            gate=gate,
            images=self._inspector,
            size_limit=SizeLimit(self._inspector.known, policy),
            workloads=self._workloads,
            repositories=self._repositories,
            disks=Disks(outside.kubelets, clock),
            start_after=StartAfter(DaemonSets(api), queues.start_after, changes.node_changed),
            image_volumes=ImageVolumes(cluster.pods, settings.puller, namespaces[0]),
        )

        self._controllers = Controllers(cluster, known, queues, changes, metrics)

        self._resync = Resync(cluster, known, metrics, namespaces=namespaces, period=period)
        self._health = Health(known, self._resync, period)
        self._arming = Arming(cluster.gates, keys, settings)
        self._heartbeat = Heartbeat(cluster, known, keys, self._arming, self._health)
        metrics.registry.register(StateCollector(metrics, ledger, queues, self._leader()))

    def _leader(self) -> Leader:
        """The view of the metrics."""
        known = self._known

        def armed() -> bool | None:
            gate = known.store.gate
            return None if gate is None or gate.suspend else self._arming.armed()[0]

        def oldest_hold() -> float:
            now, nodes = known.clock.now(), known.store.nodes
            held = (nodes[name] for name in known.ledger.holding if name in nodes)
            return max((known.gate.held_for(node, now) for node in held), default=0.0)

        return Leader(
            lease=self._settings.lease_name,
            leading=lambda: self._leading,
            problem=self._health.problem,
            armed=armed,
            oldest_hold=oldest_hold,
        )

    def _handlers(self) -> list[tuple[KeyedQueue, Handle]]:
        """Each queue with the function that works on its keys."""
        queues, controllers = self._process.queues, self._controllers
        return [
            (queues.nodes, controllers.nodes.reconcile),
            (queues.prefetches, controllers.prefetches.reconcile),
            (queues.disks, controllers.disks.read),
            (queues.forecasts, controllers.forecaster.forecast),
            (queues.images, self._inspector.inspect),
            (queues.start_after, self._known.start_after.look),
            (queues.workloads, self._workloads.look),
            (queues.repositories, self._repositories.list),
        ]

    def healthy(self) -> str | None:
        """The problem of this process that a restart may fix; None: there is none."""
        return self._health.problem() if self._leading else None

    def ready(self) -> str | None:
        """Why this process is not ready; None: it is. A leader is ready once its store is complete,
        and a standby always.
        """
        if self._leading and not self._known.store.complete:
            return "the first resync is not complete"
        return None

    def pushed(self, push: Push) -> int:
        """Look up the pushed images soon, and list the tags of their repository. Returns the number
        of images and of lists of tags that the push concerns.
        """
        images = self._inspector.poke(push.registry, push.repository)
        return images + self._repositories.poke(push.registry, push.repository)

    async def lead(self) -> None:
        """Do the work of the leader until cancelled, or until a part of it fails."""
        self._leading = True
        self._resync.begin()
        await self._arming.provide_gate()
        await self._known.image_volumes.probe()
        await self._resync.once()
        # Nothing is queued before this, so that no node is released with half of the facts.
        self._known.store.listen(self._changes)
        self._changes.everything()
        # Before the watches, because kopf cancels every task that was created after its start.
        tasks = [
            *(spawn(queue.run(handle), queue.name) for queue, handle in self._handlers()),
            spawn(self._resync.run(), "resync"),
            spawn(self._heartbeat.run(), "heartbeat"),
            spawn(self._look_again(), "look again"),
            spawn(self._cluster.events.run(), "events"),
        ]
        tasks += [spawn(part, name) for name, part in self._asking().items()]
        tasks += [spawn(part, name) for name, part in self._watching().items()]
        try:
            await first_of(tasks)
        finally:
            self._workloads.stop()
            self._repositories.stop()

    def _asking(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Tasks that read the pushes which another process has received (`receive`), if any."""
        name = self._settings.pushes_configmap
        if not name:
            return {}
        asker = Asker(SOURCES, pushed=self.pushed, observe=self._process.metrics.push_event)

        def see(event: str | None, body: Mapping[str, Any]) -> None:
            if event != "DELETED":
                asker.see(pushes.text(body))

        path = pushes.collection(self._settings.namespace)
        query = pushes.selector(name)
        reflector = Reflector(self._outside.watching, path, query, see, listing=True)
        return {"watch pushes": reflector.run(), "ask about pushes": asker.run()}

    def _watching(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Tasks that report changes to the store: of Nodes, of the puller pods and the kubelets'
        Pulled events of each namespace, and of the operator's own kinds.
        """
        settings, client = self._settings, self._outside.watching
        sightings = Sightings(
            self._known.store, self._process.metrics, self._reader, self._cluster.nodes.parse
        )
        selector = {"labelSelector": build.SELECTOR}
        pulled = {"fieldSelector": "reason=Pulled,involvedObject.kind=Pod"}
        reflectors = {NODES: Reflector(client, NODES, {}, sightings.node, listing=True)}
        for namespace in settings.puller_namespaces:
            pods, events = (f"/api/v1/namespaces/{namespace}/{kind}" for kind in ("pods", "events"))
            reflectors[pods] = Reflector(client, pods, selector, sightings.pod, listing=True)
            reflectors[events] = Reflector(client, events, pulled, sightings.event, listing=False)
        watch = self._outside.watch(sightings, settings.puller_namespaces, settings.identity)
        reflecting = {f"watch {path}": reflector.run() for path, reflector in reflectors.items()}
        return {**reflecting, "watch": watch}

    async def _look_again(self) -> None:
        """Check what no watch reports: whether the API server keeps image volumes, until that is
        known, and whether the policy exists. The NodeGate's status says if it is missing.
        """
        while True:
            if not self._known.image_volumes.probed:
                await self._known.image_volumes.probe()
            await self._arming.look_for_policy()
            await asyncio.sleep(self._settings.resync_seconds)
