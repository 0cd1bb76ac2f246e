"""The operator's process: the real `App` as the leader, connected to the API server in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from benchmarks.memory.cluster import Api, Kubelets, Wire
from benchmarks.memory.meter import Meter
from imagegate.app import App, Outside
from imagegate.domain import node as node_decision
from imagegate.domain.node import shares
from imagegate.domain.share import assess as share_decision
from imagegate.handlers import Sightings
from imagegate.kube.client import CONNECTIONS, Client
from imagegate.kube.errors import Gone
from imagegate.kube.leases import Leases
from imagegate.puller.build import PullerSettings
from imagegate.run import campaign
from imagegate.runtime.clock import Clock, ServerTime
from imagegate.runtime.election import Elector
from imagegate.runtime.process import Process, collect_less
from imagegate.settings import Settings
from tests.simulation.loop import EPOCH
from tests.simulation.machines import Registry
from tests.simulation.replica import LEASE, NAMESPACE, Manifests
from tests.simulation.transport import Network

PATHS = {
    "prefetch": "/apis/imagegate.dev/v1alpha1/imageprefetches",
    "gate": "/apis/imagegate.dev/v1alpha1/nodegates",
}
"""Paths that kopf watches, by the method of `Sightings` that receives the events."""


class Counts:
    """Counts the operator's decisions about a node, and about a node's share of one prefetch."""

    def __init__(self) -> None:
        self.decisions = Counter[str]()
        decide, assess = node_decision.decide, share_decision.assess

        def decided(*args: Any) -> Any:
            self.decisions["nodes"] += 1
            return decide(*args)

        def assessed(*args: Any) -> Any:
            self.decisions["shares"] += 1
            return assess(*args)

        self._patches = [
            patch.object(node_decision, "decide", decided),
            patch.object(shares, "assess", assessed),
        ]
        for each in self._patches:
            each.start()

    def close(self) -> None:
        for each in self._patches:
            each.stop()


class Operator:
    def __init__(
        self,
        meter: Meter,
        server: Api,
        kubelets: Kubelets,
        network: Network,
        registry: Registry,
    ) -> None:
        collect_less()
        loop = asyncio.get_running_loop()
        server_time = ServerTime(wall=lambda: EPOCH + loop.time(), monotonic=loop.time)
        clock = Clock(now=server_time.now, monotonic=loop.time)
        process = Process.create(clock, version="benchmark")
        api: Any = Wire(meter, server, network, "operator")
        client = Client(
            api,
            fence=process.leadership.fence,
            observer=process.metrics,
            time_observer=server_time,
            recovered=process.queues.kick,
            connections=CONNECTIONS,
        )
        watching = Client(api, observer=process.metrics)
        settings = Settings(
            namespace=NAMESPACE,
            identity="operator",
            puller_namespaces=(NAMESPACE,),
            puller=PullerSettings(image="registry.test/pause:3", busybox="registry.test/bb:1"),
        )
        manifests: Any = Manifests(registry)

        async def watch(sightings: Sightings, _: Sequence[str], __: str) -> None:
            async with asyncio.TaskGroup() as group:
                for method, path in PATHS.items():
                    group.create_task(_follow(watching, path, getattr(sightings, method)))

        self.process = process
        self.app = App(
            settings,
            process,
            Outside(
                api=client, watching=watching, manifests=manifests, kubelets=kubelets, watch=watch
            ),
        )
        leases = Leases(client, NAMESPACE, LEASE)
        elector = Elector(leases, "operator", clock, process.leadership)
        self.running = loop.create_task(campaign(self.app, elector, asyncio.Event()))

    @property
    def idle(self) -> bool:
        """Whether no key is queued or in progress."""
        return not any(len(queue) or queue._active for queue in self.process.queues)


async def _follow(client: Client, path: str, tell: Any) -> None:
    """List and watch without end with the operator's client, and parse each object. Keep no
    object, because the memory that kopf needs for its copies is not measured.
    """
    while True:
        version = await _list(client, path, tell)
        try:
            while True:
                async for type_, body in client.watch(path, version):
                    version = body["metadata"]["resourceVersion"]
                    if type_ != "BOOKMARK":
                        tell(type_, body)
                await asyncio.sleep(0.1)
        except Gone:
            continue


async def _list(client: Client, path: str, tell: Any) -> str:
    """List all pages, and return the resourceVersion of the list."""
    token = version = ""
    while True:
        page = await client.page(path, token=token)
        version = version or page.version
        for item in page.items:
            tell(None, item)
        token = page.token
        if not token:
            return version
