"""What nodes do when the operator has created a puller pod: they fetch the layers and unpack them.

A node fetches `CONCURRENT_DOWNLOADS` layers at a time, and unpacks them in order with one core.
With mirrors, the first node of a zone that needs a layer fetches it from the registry through the
zone's mirror. Other nodes that need the layer meanwhile wait, and then get it from the mirror.
Transfers between nodes are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from imagegate.domain import failures
from imagegate.domain.failures import FailureClass
from imagegate.simulate.agenda import Agenda
from imagegate.simulate.network import Link, Network, Source, Transfer
from imagegate.simulate.world import CONCURRENT_DOWNLOADS, World

Ended = Callable[[str, FailureClass | None], None]
"""A node's pull has ended: the node, and the failure if it failed."""


@dataclass(slots=True, eq=False)
class _Pull:
    node: str
    link: Link
    slowness: float
    breaks_at: tuple[int, int] | None
    next_layer: int = 0
    arrived: set[int] = field(default_factory=set)
    fetching: int = 0
    """Layers that it fetches or waits for."""
    unpacked: int = 0
    """Layers whose unpacking has been planned."""
    unpacked_at: float = 0.0
    at_registry: bool = False


@dataclass(slots=True)
class _Mirror:
    """The layers that the mirror of one zone has, or is being sent."""

    held: set[int] = field(default_factory=set)
    waiting: dict[int, list[_Pull]] = field(default_factory=dict)
    """By the layer that is on its way from the registry: the pulls that wait for it."""


class Pulls:
    def __init__(self, world: World, agenda: Agenda, network: Network, ended: Ended) -> None:
        self._world = world
        self._agenda = agenda
        self._network = network
        self._ended = ended
        names = world.names()
        # Without mirrors, a node's zone makes no difference.
        mirrored = world.mirror is not None
        zones = {n: world.zone(i) if mirrored else "" for i, n in enumerate(names)}
        self._links = {name: Link(name, zone) for name, zone in zones.items()}
        self._mirrors = {zone: _Mirror() for zone in set(zones.values())} if mirrored else {}
        self._slowness = {name: world.slowness(name) for name in names}
        self._running: dict[str, _Pull] = {}
        self._attempts: dict[str, int] = {}
        self._holds: set[str] = set()
        self._at_registry = 0
        self.most = 0
        """The largest number of pulls at a time."""

    def begin(self, node: str) -> None:
        """A puller pod was created for this node. If an earlier pod's pull still runs, this pod
        waits for it.
        """
        delay = self._world.latency * self._slowness[node]
        if node in self._holds:
            self._agenda.add(delay, lambda: self._ended(node, None))
            return
        if node in self._running:
            return
        attempt = self._attempts[node] = self._attempts.get(node, 0) + 1
        breaks_at = self._world.breaks_at(node, attempt)
        pull = _Pull(node, self._links[node], self._slowness[node], breaks_at)
        self._running[node] = pull
        self.most = max(self.most, len(self._running))
        self._agenda.add(delay, lambda: self._proceed(pull, []))

    def arrived(self, transfers: list[Transfer]) -> None:
        """These transfers are complete, or have broken off."""
        by_node: dict[str, list[Transfer]] = {}
        for transfer in transfers:
            by_node.setdefault(transfer.link.node, []).append(transfer)
        for node, done in by_node.items():
            pull = self._running.get(node)
            # The failure of another pull may have ended this one at the same time.
            if pull is not None and all(each in pull.link.transfers for each in done):
                self._proceed(pull, done)

    def _proceed(self, pull: _Pull, done: list[Transfer]) -> None:
        """Go on after these transfers."""
        if any(transfer.breaks for transfer in done):
            self._fail(pull, failures.TRANSFER_BROKEN)
            return
        pull.fetching -= len(done)
        wanted = self._wanted(pull)
        if Source.REGISTRY in wanted.values() and not self._admitted(pull):
            self._fail(pull, failures.THROTTLED)
            return
        begun = [self._begun(pull, layer, source) for layer, source in wanted.items()]
        self._network.change(pull.link, [each for each in begun if each is not None], done)
        for transfer in done:
            pull.arrived.add(transfer.layer)
            if transfer.source is Source.REGISTRY:
                self._store(pull.link.zone, transfer.layer)
        self._unpack(pull)

    def _wanted(self, pull: _Pull) -> dict[int, Source | None]:
        """The layers that it requests now, each with its source. None: another node of the zone
        fetches the layer, and this node waits.
        """
        count = CONCURRENT_DOWNLOADS - pull.fetching
        last = min(pull.next_layer + count, len(self._world.layers))
        mirror = self._mirrors.get(pull.link.zone)
        wanted: dict[int, Source | None] = {}
        for layer in range(pull.next_layer, last):
            if mirror is not None and layer in mirror.held:
                wanted[layer] = Source.MIRROR
            elif mirror is not None and layer in mirror.waiting:
                wanted[layer] = None
            else:
                wanted[layer] = Source.REGISTRY
        return wanted

    def _begun(self, pull: _Pull, layer: int, source: Source | None) -> Transfer | None:
        mirror = self._mirrors.get(pull.link.zone)
        pull.next_layer = layer + 1
        pull.fetching += 1
        if source is None:
            assert mirror is not None
            mirror.waiting[layer].append(pull)
            return None
        if mirror is not None and source is Source.REGISTRY:
            mirror.waiting[layer] = []
        return self._transfer(pull, layer, source)

    def _transfer(self, pull: _Pull, layer: int, source: Source) -> Transfer:
        if pull.breaks_at is not None and pull.breaks_at[0] == layer:
            return Transfer(pull.link, layer, max(1, pull.breaks_at[1]), source, breaks=True)
        return Transfer(pull.link, layer, self._world.layers[layer], source)

    def _unpack(self, pull: _Pull) -> None:
        """Plan the unpacking of every layer whose predecessors are there."""
        layers, now = self._world.layers, self._agenda.now
        while pull.unpacked in pull.arrived:
            seconds = layers[pull.unpacked] / self._world.rates.unpack * pull.slowness
            pull.unpacked_at = max(pull.unpacked_at, now) + seconds
            pull.unpacked += 1
        if len(pull.arrived) == len(layers):
            self._release(pull)
            self._agenda.add(pull.unpacked_at - now, lambda: self._succeed(pull))

    def _succeed(self, pull: _Pull) -> None:
        del self._running[pull.node]
        self._holds.add(pull.node)
        self._ended(pull.node, None)

    def _fail(self, pull: _Pull, failure: FailureClass) -> None:
        """The pull fails, and loses what it has fetched: the runtime collects it at once."""
        transfers = list(pull.link.transfers)
        self._network.change(pull.link, ended=transfers)
        del self._running[pull.node]
        self._release(pull)
        mirror = self._mirrors.get(pull.link.zone)
        if mirror is not None:
            for pulls in mirror.waiting.values():
                if pull in pulls:
                    pulls.remove(pull)
            for transfer in transfers:
                if transfer.source is Source.REGISTRY:
                    self._refetch(mirror, transfer.layer)
        self._ended(pull.node, failure)

    # ---- the registry

    def _admitted(self, pull: _Pull) -> bool:
        """Whether the registry serves this pull."""
        limit = self._world.registry_pulls
        if not pull.at_registry and (limit is None or self._at_registry < limit):
            pull.at_registry = True
            self._at_registry += 1
        return pull.at_registry

    def _release(self, pull: _Pull) -> None:
        self._at_registry -= pull.at_registry
        pull.at_registry = False

    # ---- the mirrors

    def _store(self, zone: str, layer: int) -> None:
        """The mirror of the zone, if there is one, has the layer now."""
        mirror = self._mirrors.get(zone)
        if mirror is None:
            return
        mirror.held.add(layer)
        for pull in mirror.waiting.pop(layer):
            self._network.change(pull.link, [self._transfer(pull, layer, Source.MIRROR)])

    def _refetch(self, mirror: _Mirror, layer: int) -> None:
        """The pull that fetched this layer through the mirror has failed: the next one fetches."""
        waiting, refused = mirror.waiting.pop(layer), list[_Pull]()
        while waiting:
            pull = waiting.pop(0)
            if self._admitted(pull):
                mirror.waiting[layer] = waiting
                self._network.change(pull.link, [self._transfer(pull, layer, Source.REGISTRY)])
                break
            refused.append(pull)
        for pull in refused:
            self._fail(pull, failures.THROTTLED)
