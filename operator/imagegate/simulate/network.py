"""The bandwidth that transfers share: a max-min fair allocation, in virtual time.

Every transfer gets the same rate, except where a link allows less: the registry's, the mirror's of
a zone, or the node's own, which all transfers of the node share. What one transfer cannot use goes
to the others, as with TCP connections through the same bottleneck.

Nodes of a zone with the same number of transfers from each source are in the same situation. They
are one `_Group`, whose transfers from one source have the same rate and are one `_Flow`. So the
allocation costs a few steps, whatever the number of nodes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from imagegate.simulate.world import World

_DONE = 0.5
"""Bytes that may be missing from a finished transfer, because floats are not exact."""


class Source(Enum):
    REGISTRY = auto()
    """From the registry; with mirrors, through the mirror of the zone."""
    MIRROR = auto()
    """From the mirror's own store."""


@dataclass(slots=True, eq=False)
class Transfer:
    """The bytes of one layer on their way to one node."""

    link: Link
    layer: int
    size: int
    source: Source
    breaks: bool = False
    """Whether it breaks off at its end, and so fails the pull."""
    flow: _Flow | None = None
    ends_at: float = 0.0
    """The `_Flow.sent` at which it is complete."""


@dataclass(slots=True, eq=False)
class Link:
    """One node's link."""

    node: str
    zone: str
    transfers: list[Transfer] = field(default_factory=list)
    group: _Group | None = None


@dataclass(slots=True, eq=False)
class _Flow:
    """Transfers that have the same rate. ``sent`` is what a transfer has received that was in the
    flow from the beginning, so a transfer ends when ``sent`` has grown by its size.
    """

    source: Source
    rate: float = 0.0
    sent: float = 0.0
    since: float = 0.0
    """When ``sent`` was counted."""
    transfers: int = 0
    ends: list[tuple[float, int, Transfer]] = field(default_factory=list)

    def sent_at(self, now: float) -> float:
        return self.sent + self.rate * (now - self.since)


class _Group:
    """Nodes of one zone with the same number of transfers from each source."""

    def __init__(self, key: _Key, counts: dict[Source, int], now: float) -> None:
        self.key = key
        self.nodes = 0
        self.counts = counts
        self.flows = {source: _Flow(source, since=now) for source in counts}


_Key = tuple[str, int, int]


class Network:
    def __init__(self, world: World) -> None:
        self._world = world
        self._groups: dict[_Key, _Group] = {}
        self._order = itertools.count()
        self._stale = False
        """Whether transfers began or ended since the bandwidth was shared out."""
        self.now = 0.0
        self.from_registry = 0.0
        """Bytes that the registry has sent until `now`, in transfers that have ended."""
        self.rates: list[tuple[float, float]] = [(0.0, 0.0)]
        """(time, bytes a second): what the registry sends from that time on."""

    @property
    def next_at(self) -> float:
        """When the next transfer ends; infinity: there is none."""
        if self._stale:
            self._share()
        return min((self._end(flow) for flow in self._flows()), default=float("inf"))

    def advance(self, to: float) -> list[Transfer]:
        """Go to this time. Returns the transfers that are complete; `change` has to end them."""
        self.now = to
        done: list[Transfer] = []
        for flow in self._flows():
            sent = flow.sent_at(to) + _DONE
            while flow.ends and flow.ends[0][0] <= sent:
                ends_at, _, transfer = heapq.heappop(flow.ends)
                if transfer.flow is flow and transfer.ends_at == ends_at:
                    done.append(transfer)
        return done

    def change(
        self, link: Link, begun: Iterable[Transfer] = (), ended: Iterable[Transfer] = ()
    ) -> None:
        """Begin and end transfers of one node."""
        before = link.group
        for transfer in ended:
            left = self._leave(transfer)
            link.transfers.remove(transfer)
            if transfer.source is Source.REGISTRY:
                self.from_registry += transfer.size - left
        begun = tuple(begun)
        after = self._group(link.zone, [*link.transfers, *begun])
        if after is not before:
            moved = [(transfer, self._leave(transfer)) for transfer in link.transfers]
            self._join(link, after)
            for transfer, left in moved:
                self._enter(link, transfer, left)
        for transfer in begun:
            link.transfers.append(transfer)
            self._enter(link, transfer, transfer.size)
        self._stale = True

    # ---- groups

    def _group(self, zone: str, transfers: list[Transfer]) -> _Group | None:
        if not transfers:
            return None
        direct = sum(transfer.source is Source.REGISTRY for transfer in transfers)
        key = zone, direct, len(transfers) - direct
        if key not in self._groups:
            counts = {Source.REGISTRY: direct, Source.MIRROR: len(transfers) - direct}
            used = {source: count for source, count in counts.items() if count}
            self._groups[key] = _Group(key, used, self.now)
        return self._groups[key]

    def _join(self, link: Link, group: _Group | None) -> None:
        if link.group is not None:
            link.group.nodes -= 1
            if not link.group.nodes:
                del self._groups[link.group.key]
        link.group = group
        if group is not None:
            group.nodes += 1

    def _enter(self, link: Link, transfer: Transfer, left: float) -> None:
        assert link.group is not None
        flow = transfer.flow = link.group.flows[transfer.source]
        flow.transfers += 1
        transfer.ends_at = flow.sent_at(self.now) + left
        heapq.heappush(flow.ends, (transfer.ends_at, next(self._order), transfer))

    def _leave(self, transfer: Transfer) -> float:
        """Take a transfer out of its flow. Returns the bytes that it lacks."""
        flow = transfer.flow
        assert flow is not None
        flow.transfers -= 1
        transfer.flow = None
        left = transfer.ends_at - flow.sent_at(self.now)
        return left if left > _DONE else 0.0

    def _flows(self) -> list[_Flow]:
        return [flow for group in self._groups.values() for flow in group.flows.values()]

    def _end(self, flow: _Flow) -> float:
        """When the first transfer of the flow is complete."""
        while flow.ends:
            ends_at, _, transfer = flow.ends[0]
            if transfer.flow is flow and transfer.ends_at == ends_at:
                return max(self.now, flow.since + (ends_at - flow.sent) / flow.rate)
            heapq.heappop(flow.ends)  # it was moved to another flow, or has ended
        return float("inf")

    # ---- shares

    def _share(self) -> None:
        """Share the bandwidth out again."""
        self._stale = False
        for flow in self._flows():
            flow.sent, flow.since = flow.sent_at(self.now), self.now
        _fill(self._bottlenecks())
        rate = sum(
            flow.rate * flow.transfers for flow in self._flows() if flow.source is Source.REGISTRY
        )
        if self.rates[-1][0] == self.now:
            self.rates.pop()
        self.rates.append((self.now, rate))

    def _bottlenecks(self) -> list[_Bottleneck]:
        """What bounds the rates: the registry, the mirrors, and the link of a node in each
        group.
        """
        rates, registry, mirrors = self._world.rates, list[_Member](), dict[str, list[_Member]]()
        found: list[_Bottleneck] = []
        for group in self._groups.values():
            found.append((rates.node, [(flow, group.counts[s]) for s, flow in group.flows.items()]))
            for source, flow in group.flows.items():
                if source is Source.REGISTRY:
                    registry.append((flow, flow.transfers))
                if self._world.mirror is not None:
                    mirrors.setdefault(group.key[0], []).append((flow, flow.transfers))
        found.append((rates.registry, registry))
        if self._world.mirror is not None:
            found += [(self._world.mirror, members) for members in mirrors.values()]
        return found


_Member = tuple[_Flow, int]
_Bottleneck = tuple[float, list[_Member]]
"""Bytes a second, and the flows that share them with the number of their transfers."""


def _fill(bottlenecks: list[_Bottleneck]) -> None:
    """Set the rates of the flows: all grow together, until a bottleneck is full; the flows through
    it keep their rate, and the others grow on.
    """
    fixed: set[_Flow] = set()
    while bottlenecks:
        levels: list[float] = []
        for capacity, members in bottlenecks:
            used = sum(flow.rate * count for flow, count in members if flow in fixed)
            growing = sum(count for flow, count in members if flow not in fixed)
            levels.append((capacity - used) / growing if growing else float("inf"))
        level = min(levels)
        full = level * (1 + 1e-12)
        for (_, members), reached in zip(bottlenecks, levels, strict=True):
            if reached <= full:
                for flow, _ in members:
                    if flow not in fixed:
                        flow.rate = level
                        fixed.add(flow)
        bottlenecks = [
            each for each in bottlenecks if any(flow not in fixed for flow, _ in each[1])
        ]
