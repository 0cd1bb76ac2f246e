"""The one place where the parts are put together, and the life of the process.

Standby until elected; then list, watch, decide, act; out of the process when leadership is lost:
a process that is not sure must not go on, and a restarted one has no state to be wrong about.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from imagegate import __version__, handlers, http
from imagegate.errors import ImagegateError
from imagegate.handlers import Sightings
from imagegate.hooks.asking import Asker
from imagegate.hooks.event import Push
from imagegate.hooks.sources import SOURCES
from imagegate.kube import pushes
from imagegate.kube.client import CONNECTIONS, Client
from imagegate.kube.daemonsets import DaemonSets
from imagegate.kube.events import Events
from imagegate.kube.gates import Gates
from imagegate.kube.kubelets import Kubelets
from imagegate.kube.leases import Leases
from imagegate.kube.nodes import Nodes
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches, Reader
from imagegate.kube.secrets import Secrets
from imagegate.kube.tokens import Tokens
from imagegate.kube.workloads import Workloads
from imagegate.metrics import Metrics
from imagegate.puller import build
from imagegate.puller.mode import Mode
from imagegate.registry import client as registry
from imagegate.registry.manifests import Manifests
from imagegate.runtime import watches
from imagegate.runtime.clock import Clock, ServerTime
from imagegate.runtime.collector import StateCollector
from imagegate.runtime.disks import Disks, Source
from imagegate.runtime.election import Elector
from imagegate.runtime.heartbeat import Heartbeat
from imagegate.runtime.inspector import Inspector
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.reconcile import Reconciler
from imagegate.runtime.reflector import Reflector
from imagegate.runtime.resync import Resync
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.store import Store
from imagegate.runtime.taint_keys import TaintKeys
from imagegate.runtime.workloads import WorkloadImages
from imagegate.settings import GateSource, Settings

logger = logging.getLogger(__name__)


Watch = Callable[[Sightings, Sequence[str], str], Coroutine[Any, Any, None]]
"""Watches for ever, in these namespaces and under this identity, and tells what it sees."""


class LeadershipLost(ImagegateError):
    pass


class App:
    def __init__(
        self,
        settings: Settings,
        client: Client,
        metrics: Metrics,
        clock: Clock,
        *,
        watching: Client,
        manifests: Manifests,
        kubelets: Source,
        watch: Watch = handlers.watch,
    ) -> None:
        self._watch = watch
        self._watching = watching
        self._settings = settings
        self._clock = clock
        self._client = client
        self._metrics = metrics
        self._leading = False
        self._policy_missing = False
        self._probed = False
        namespaces = settings.puller_namespaces
        policy = settings.prefetch_policy
        self._reader = Reader(namespaces, policy)
        self.store = Store(clock)
        metrics.exists = lambda prefetch: prefetch in self.store.prefetches
        self.ledger = Ledger()
        self._gates = Gates(client)
        leases = Leases(client, settings.namespace, settings.lease_name)
        self._keys = TaintKeys(leases, clock, settings.gate_taint_key)
        nodes, pods = Nodes(client, lambda: self.store.wanted), Pods(client)
        self._nodes = nodes
        inspector = Inspector(
            store=self.store,
            manifests=manifests,
            secrets=Secrets(client),
            clock=clock,
        )
        self._inspector = inspector
        self._pods = pods
        prefetches = Prefetches(client, self._reader)
        self._events = Events(client, component="imagegate", instance=settings.identity)
        self._start_after = StartAfter(DaemonSets(client))
        self._workloads = WorkloadImages(Workloads(watching), self.store, policy)
        self._reconciler = Reconciler(
            store=self.store,
            ledger=self.ledger,
            nodes=nodes,
            pods=pods,
            prefetches=prefetches,
            start_after=self._start_after,
            events=self._events,
            metrics=metrics,
            puller=settings.puller,
            inspector=inspector,
            workloads=self._workloads,
            disks=Disks(kubelets, clock),
            policy=policy,
            clock=clock,
            taint_key=self._taint_key,
            taints_by_watch=settings.gate_source is GateSource.WATCH,
            control_planes=settings.gate_control_planes,
            earlier_keys=self._earlier_keys,
        )
        inspector.changed = self._reconciler.images_inspected
        inspector.looked = self._reconciler.prefetch_changed
        self._workloads.changed = self._reconciler.prefetch_changed
        self._resync = Resync(
            store=self.store,
            nodes=nodes,
            pods=pods,
            prefetches=prefetches,
            gates=self._gates,
            namespaces=namespaces,
            metrics=metrics,
            clock=clock,
            period=settings.resync_seconds,
        )
        self._heartbeat = Heartbeat(
            gates=self._gates,
            store=self.store,
            ledger=self.ledger,
            keys=self._keys,
            clock=clock,
            fit=self._fit_to_hold,
            armed=self._armed,
        )
        queues = (
            *self._reconciler.queues,
            inspector.queue,
            self._start_after.queue,
            self._workloads.queue,
        )
        self._queues = queues
        for queue in queues:
            queue.observe_wait, queue.observe_work = metrics.queue_observers(queue.name)
        client.recovered = self._kick
        metrics.registry.register(
            StateCollector(
                metrics,
                self.ledger,
                queues,
                leading=lambda: self._leading,
                lease=settings.lease_name,
            )
        )

    def _kick(self) -> None:
        """The API server answers again: what failed because it did not is tried now."""
        for queue in self._queues:
            queue.kick()

    def _taint_key(self) -> str:
        self._keys.see(self.store.gate)
        return self._keys.current

    def _earlier_keys(self) -> frozenset[str]:
        self._keys.see(self.store.gate)
        return self._keys.earlier

    def _armed(self) -> tuple[bool, str, str]:
        match self._settings.gate_source:
            case GateSource.POLICY if self._policy_missing:
                return (
                    False,
                    "PolicyMissing",
                    f"MutatingAdmissionPolicy {self._settings.gate_policy} is not there: joining"
                    " nodes are not held; install the chart again",
                )
            case GateSource.POLICY:
                return True, "Armed", "joining nodes are tainted at admission"
            case GateSource.WATCH:
                return True, "BestEffort", "joining nodes are tainted when they are seen"
            case GateSource.NONE:
                return True, "External", "joining nodes are tainted by somebody else"

    def healthy(self) -> str | None:
        """What is wrong with this process, if something is that a restart may mend."""
        if not self._leading:
            return None
        now = self._clock.monotonic()
        if now - self._resync.last > max(3 * self._settings.resync_seconds, 120.0):
            return "no resync has succeeded for three periods"
        return self.store.watches.problem()

    def _fit_to_hold(self) -> str | None:
        """Why nobody may be held on this process' account: it could not let them go in time."""
        if problem := self.healthy():
            return problem
        if not self.store.watches.begun:
            return "no watch has begun yet"
        gate = self.store.gate
        silence = gate.silence if gate is not None else float("inf")
        seen = max(self._resync.last, self.store.watches.quiet_since(watches.NODES))
        if self._clock.monotonic() - seen > max(silence, 2 * watches.QUIET):
            return "neither a list nor the watch of Nodes has said anything for silenceSeconds"
        return None

    def ready(self) -> str | None:
        """A standby is ready; a leader once its store is complete."""
        return (
            "the first resync is not complete"
            if self._leading and not self.store.complete
            else None
        )

    def pushed(self, push: Push) -> int:
        """Ask the registry about what was pushed, soon; the number of images it concerns."""
        return self._inspector.poke(push.registry, push.repository)

    async def lead(self) -> None:
        """Do the work of the leader until cancelled, or until a part of it fails."""
        settings = self._settings
        self._leading = True
        self._resync.begin()
        await self._provide_gate()
        self._probed = await self._probe_image_volumes()
        await self._resync.once()
        self.store.complete = True
        # Only now is anything queued and worked on: nobody is released on half of the facts.
        self.store.listen(self._reconciler)
        for name in self.store.prefetches:
            self._reconciler.prefetch_changed(name)
        for name in self.store.nodes:
            self._reconciler.node_changed(name)
        sightings = Sightings(self.store, self._metrics, self._reader, self._nodes.parse)
        # Before the watches: kopf cancels every task that was made after it began.
        tasks = [
            *(_spawn(queue.run(), queue.name) for queue in self._queues),
            _spawn(self._resync.run(), "resync"),
            _spawn(self._heartbeat.run(), "heartbeat"),
            _spawn(self._look_again(), "look again"),
            _spawn(self._events.run(), "events"),
        ]
        tasks += [_spawn(part, name) for name, part in self._asking().items()]
        tasks += [
            _spawn(reflector.run(), f"watch {path}")
            for namespace in settings.puller_namespaces
            for path, reflector in self._reflectors(sightings, namespace)
        ]
        watching = self._watch(sightings, settings.puller_namespaces, settings.identity)
        tasks.append(_spawn(watching, "watch"))
        try:
            await first_of(tasks)
        finally:
            self._workloads.stop()

    def _asking(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What reads the pushes that another process has received (`receive`), if there is one."""
        name = self._settings.pushes_configmap
        if not name:
            return {}
        asker = Asker(SOURCES, pushed=self.pushed, observe=self._metrics.push_event)

        def tell(event: str | None, body: Mapping[str, Any]) -> None:
            if event != "DELETED":
                asker.see(pushes.text(body))

        path = pushes.collection(self._settings.namespace)
        query = pushes.selector(name)
        reflector = Reflector(self._watching, path, query, tell, listing=True)
        return {"watch pushes": reflector.run(), "ask about pushes": asker.run()}

    def _reflectors(self, sightings: Sightings, namespace: str) -> list[tuple[str, Reflector]]:
        """The watches of one puller namespace: its pods, and what kubelets say of their pulls."""
        pods, events = (f"/api/v1/namespaces/{namespace}/{kind}" for kind in ("pods", "events"))
        selector = {"labelSelector": build.SELECTOR}
        pulled = {"fieldSelector": "reason=Pulled,involvedObject.kind=Pod"}
        return [
            (pods, Reflector(self._watching, pods, selector, sightings.pod, listing=True)),
            (events, Reflector(self._watching, events, pulled, sightings.event, listing=False)),
        ]

    async def _provide_gate(self) -> None:
        """Create the NodeGate once for each taint key that the chart has had.

        Whoever deletes the NodeGate opens the gate for good, or a restart of the operator would
        close it again. After the chart's key was changed there is no NodeGate that anybody could
        have deleted for that reason.
        """
        await self._keys.load()
        key = self._settings.gate_taint_key
        gate = await self._gates.get()
        if gate is None and self._keys.created_with == key:
            logger.warning("no NodeGate: somebody deleted it, and no node is held")
            return
        if gate is None:
            gate = await self._gates.create(
                taint_key=key,
                suspend=self._settings.gate_suspend,
                silence_seconds=self._settings.gate_silence_seconds,
            )
        self._keys.see(gate)
        # After the creation: an operator that is killed in between finds the NodeGate and goes on.
        await self._keys.record(gate.taint_key, created_with=key)

    async def _probe_image_volumes(self) -> bool:
        """Where the API server drops image volumes no kubelet gets any, whatever the flags say.
        False: it could not be found out, and a webhook that fails is no reason not to lead.
        """
        puller = self._settings.puller
        if puller.mode is Mode.CONTAINER:
            return True
        probe = build.probe(self._settings.puller_namespaces[0], puller)
        kept = await self._pods.keeps_image_volumes(probe)
        if kept is False:
            logger.info("the API server drops image volumes: images are pulled as containers")
            self._reconciler.actor.puller = dataclasses.replace(puller, mode=Mode.CONTAINER)
        return kept is not None

    async def _look_again(self) -> None:
        """Look at what no watch tells: whether the API server keeps image volumes, until that is
        known, and whether the policy is there. The NodeGate says when it is gone.
        """
        while True:
            if not self._probed:
                self._probed = await self._probe_image_volumes()
            if self._settings.gate_source is GateSource.POLICY:
                try:
                    exists = await self._gates.policy_exists(self._settings.gate_policy)
                    self._policy_missing = not exists
                except ImagegateError as error:
                    logger.warning("policy not looked up", extra={"error": str(error)})
            await asyncio.sleep(self._settings.resync_seconds)


async def run(settings: Settings) -> None:
    """The whole process, until a signal. Raises LeadershipLost when it must be restarted."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server_time = ServerTime()
    clock = Clock(now=server_time.now)
    metrics = Metrics(CollectorRegistry(), version=__version__, host="kubernetes")
    electing: list[Elector] = []

    def fence() -> None:
        electing[0].fence()

    async with (
        _client(metrics, fence, server_time) as client,
        # A watch keeps its connection for as long as it runs, and there may be many.
        _client(metrics, fence, server_time, connections=0) as watching,
        registry.Client(settings.registry, observer=metrics) as registries,
        Kubelets(
            Tokens(client, settings.namespace, settings.kubelet_account)
            if settings.kubelet_account
            else None,
            ca_file=settings.kubelet_ca_file,
            insecure_tls=settings.kubelet_insecure_tls,
        ) as kubelets,
    ):
        elector = Elector(
            Leases(client, settings.namespace, settings.lease_name),
            settings.identity,
            clock,
        )
        electing.append(elector)
        app = App(
            settings,
            client,
            metrics,
            clock,
            watching=watching,
            manifests=Manifests(registries),
            kubelets=kubelets,
        )
        site = await http.serve(
            http.make_app(registry=metrics.registry, healthy=app.healthy, ready=app.ready),
            settings.http_port,
        )
        try:
            await campaign(app, elector, stop)
        finally:
            await elector.release()
            await site.cleanup()


async def campaign(app: App, elector: Elector, stop: asyncio.Event) -> None:
    """Stand by until elected, lead until ``stop``. Raises LeadershipLost, and what ended a part."""
    await first_of([_spawn(elector.acquire(), "elect"), _spawn(stop.wait(), "stop")])
    if stop.is_set():
        return
    # kopf takes over the signals now, and ends when one comes.
    hold, lead = _spawn(elector.hold(), "hold"), _spawn(app.lead(), "lead")
    await first_of([hold, lead, _spawn(stop.wait(), "stop")])
    if not elector.leading:
        raise LeadershipLost("leadership was lost; the process must start again")


@contextlib.asynccontextmanager
async def _client(
    metrics: Metrics, fence: Any, server_time: ServerTime, *, connections: int = CONNECTIONS
) -> AsyncIterator[Client]:
    client = await Client.connect(
        user_agent=f"imagegate/{__version__}",
        fence=fence,
        observer=metrics,
        time_observer=server_time,
        connections=connections,
    )
    try:
        yield client
    finally:
        await client.close()


def _spawn(coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    return asyncio.create_task(coroutine, name=name)


async def first_of(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until one of the tasks ends, cancel the others, and raise what it raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        logger.info("part ended", extra={"part": task.get_name()})
        task.result()
