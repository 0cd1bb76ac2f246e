"""One replica of the operator: the real `App`, restarted whenever its process ends."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from imagegate.app import App, Outside
from imagegate.domain.facts import Node
from imagegate.kube.client import Client
from imagegate.kube.leases import Leases
from imagegate.puller.build import PullerSettings
from imagegate.registry.documents import Layer
from imagegate.registry.errors import NotFound as ImageNotFound
from imagegate.registry.manifests import ImageFacts
from imagegate.registry.platforms import Platform
from imagegate.run import campaign
from imagegate.runtime.clock import Clock, ServerTime
from imagegate.runtime.election import Elector
from imagegate.runtime.process import Process
from imagegate.settings import Settings
from tests.simulation.apiserver import ApiServer
from tests.simulation.loop import EPOCH, elapsed
from tests.simulation.machines import Kubelet, Kubelets, Registry
from tests.simulation.transport import Network, Transport
from tests.simulation.watches import Kopf

NAMESPACE = "imagegate-system"
LEASE = "imagegate"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PROBE = 10.0
PROBES = 3
LAST_BACK_OFF = 300.0
WELL_AFTER = 600.0

logger = logging.getLogger(__name__)


class Manifests:
    """Replaces `registry.manifests.Manifests`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def resolve(self, reference: Any, keyring: Any = None) -> str:
        await asyncio.sleep(0.03)
        if self._registry.mute:
            await asyncio.sleep(3600.0)
        name = f"{reference.domain}/{reference.path}:{reference.tag}"
        if self._registry.down:
            raise ImageNotFound(reference.domain, "the registry is down", "look at the registry")
        digest = reference.digest or self._registry.tags.get(name)
        if digest is None:
            raise ImageNotFound(reference.domain, f"{name} is not there", "push it")
        return str(digest)

    async def describe(self, reference: Any, platform: Platform, keyring: Any = None) -> ImageFacts:
        digest = await self.resolve(reference)
        layer = Layer(digest, self._registry.sizes.get(digest, 10**9), GZIP)
        return ImageFacts(reference, platform, (platform,), reference.digest or "", (layer,), 2000)


class Replica:
    def __init__(
        self,
        number: int,
        server: ApiServer,
        registry: Registry,
        kubelets: dict[str, Kubelet],
        namespaces: Sequence[str],
        rng: random.Random,
    ) -> None:
        self.number = number
        self.network = Network(rng)
        self.skew = 0.0
        """Seconds by which its clock is fast."""
        self.incarnation = 0
        self.exits: list[tuple[float, str]] = []
        """When and why its process ended, unless the simulation killed it."""
        self.app: App | None = None
        self.blind_since: float | None = None
        self._server, self._registry, self._kubelets = server, registry, kubelets
        self._namespaces = tuple(namespaces)
        self._rng = rng
        self._frozen_until = 0.0
        self._process: asyncio.Task[None] | None = None
        self._killed = False

    @property
    def actor(self) -> str:
        return f"operator-{self.number}/{self.incarnation}"

    def kill(self) -> None:
        """SIGKILL; the kubelet starts the next process about a second later."""
        if self._process is not None:
            self._killed = True
            self._process.cancel()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP for so many seconds: its requests and the answers are delayed."""
        self._frozen_until = elapsed() + seconds

    def go_blind(self, resources: set[str]) -> None:
        """The watches of these resources report nothing any more, until the process ends."""
        self.network.dead = resources
        self.blind_since = elapsed()

    def _frozen(self) -> float:
        return max(0.0, self._frozen_until - elapsed())

    async def run(self) -> None:
        """Run the process, and restart it forever."""
        back_off, task = 1.0, asyncio.current_task()
        assert task is not None
        while True:
            self.incarnation += 1
            self._killed = False
            self.network.dead, self.blind_since = set(), None
            began = elapsed()
            self._process = asyncio.get_running_loop().create_task(self._live())
            try:
                await self._process
                reason = "ended"
            except asyncio.CancelledError:
                if not self._killed or task.cancelling():
                    raise
                reason = "killed"
            except Exception as error:  # noqa: BLE001
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error, BaseExceptionGroup):
                    reason += f" {error.exceptions}"
            self.app = None
            if not self._killed:
                self.exits.append((elapsed(), reason))
            back_off = 1.0 if elapsed() - began > WELL_AFTER or self._killed else back_off
            await asyncio.sleep(back_off * self._rng.uniform(1.0, 1.5))
            back_off = min(LAST_BACK_OFF, 2 * back_off)

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        server_time = ServerTime(wall=lambda: EPOCH + loop.time() + self.skew, monotonic=loop.time)
        clock = Clock(now=server_time.now, monotonic=loop.time)
        process = Process.create(clock, version="simulation")
        api: Any = Transport(self._server, self.network, self.actor)
        api.frozen = self._frozen
        client = Client(
            api,
            fence=process.leadership.fence,
            observer=process.metrics,
            time_observer=server_time,
            recovered=process.queues.kick,
        )
        settings = Settings(
            namespace=NAMESPACE,
            identity=self.actor,
            puller_namespaces=self._namespaces,
            puller=PullerSettings(image="registry.test/pause:3", busybox="registry.test/bb:1"),
        )
        leases = Leases(client, NAMESPACE, LEASE)
        elector = Elector(leases, self.actor, clock, process.leadership)
        watch = Kopf(self._server, self.network, self.actor)
        watch.frozen = self._frozen
        manifests: Any = Manifests(self._registry)
        app = self.app = App(
            settings,
            process,
            Outside(
                api=client,
                watching=client,
                manifests=manifests,
                kubelets=Kubelets(self._kubelets),
                watch=watch,
            ),
        )
        probing = loop.create_task(self._probe(app))
        try:
            working = loop.create_task(campaign(app, elector, asyncio.Event()))
            try:
                await asyncio.wait([probing, working], return_when=asyncio.FIRST_COMPLETED)
                if probing.done():
                    probing.result()
                if working.done():
                    working.result()
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        finally:
            probing.cancel()

    async def _probe(self, app: App) -> None:
        """The kubelet's liveness probe."""
        failed = 0
        while True:
            await asyncio.sleep(PROBE)
            problem = app.healthy()
            failed = failed + 1 if problem else 0
            if failed >= PROBES:
                raise RuntimeError(f"the liveness probe failed: {problem}")

    # ---- for the judge

    def memory(self) -> Mapping[str, int]:
        """The number of entries in everything that lives as long as the process, by path."""
        found: dict[str, int] = {}
        if self.app is not None:
            _count(self.app, "app", found, set(), 0)
        return found


_OURS = "imagegate."
_DEEP = 4


def _count(thing: Any, path: str, found: dict[str, int], seen: set[int], depth: int) -> None:
    if id(thing) in seen or depth > _DEEP:
        return
    seen.add(id(thing))
    attributes = dict(getattr(thing, "__dict__", {}))
    for cls in type(thing).__mro__:
        for slot in getattr(cls, "__slots__", ()):
            if isinstance(slot, str) and hasattr(thing, slot):
                attributes[slot] = getattr(thing, slot)
    for name, value in attributes.items():
        where = f"{path}.{name}"
        if isinstance(value, dict | set | list | frozenset | deque):
            found[where] = len(value)
            if isinstance(value, dict):
                inner = [v for v in value.values() if isinstance(v, dict | set | list)]
                found[f"{where}.*"] = sum(map(len, inner))
        elif type(value).__module__.startswith(_OURS) and not isinstance(value, Node | type):
            _count(value, where, found, seen, depth + 1)
