"""The keys under which nodes may be held: the gate's key, and the keys that it had before.

To change its key, a NodeGate is deleted and created again, perhaps within a second, perhaps while
no operator runs. Nodes are then held under the old key, and the admission policy may use the old
parameter for some seconds. So the keys are recorded in an annotation of the election's Lease,
because the Lease remains when the NodeGate is deleted. A key is recorded before the first heartbeat
of its NodeGate, and without a heartbeat no node is held, so every taint has a recorded key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from imagegate.domain.facts import Gate, Node
from imagegate.kube.errors import NotFound
from imagegate.kube.gates import Gates
from imagegate.kube.leases import LeaseRecord, Leases
from imagegate.runtime.clock import Clock

logger = logging.getLogger(__name__)

FORGET_AFTER = 3600.0
"""Seconds without any node under an earlier key after which the key is forgotten. The admission
policy sees a new NodeGate within seconds; a later taint with the old key is not the gate's."""


async def every_key(gates: Gates, leases: Leases, configured: str) -> frozenset[str]:
    """Every key under which nodes may be held: of the NodeGate, of the chart, and of earlier
    NodeGates. For commands that work without the operator.
    """
    gate = await gates.get()
    try:
        recorded = (await leases.get()).taint_keys
    except NotFound:
        recorded = ()
    keys = (gate.taint_key if gate is not None else "", configured, *recorded)
    return frozenset(filter(None, keys))


class TaintKeys:
    def __init__(self, leases: Leases, clock: Clock, configured: str) -> None:
        """``configured``: the chart's key, which is used if there has been no NodeGate."""
        self._leases = leases
        self._clock = clock
        self._current = configured
        self._recorded: frozenset[str] = frozenset()
        self._earlier: frozenset[str] = frozenset()
        self._unused_since: dict[str, float] = {}
        self.created_with = ""
        """The chart's key for which the NodeGate was created or found last; empty: never."""

    @property
    def current(self) -> str:
        """The gate's key, also after the NodeGate was deleted, because its nodes are released."""
        return self._current

    @property
    def earlier(self) -> frozenset[str]:
        return self._earlier

    def see(self, gate: Gate | None) -> None:
        """Note the current NodeGate, before a decision uses its key."""
        if gate is None or not gate.taint_key or gate.taint_key == self._current:
            return
        logger.info("another taint key", extra={"key": gate.taint_key, "before": self._current})
        self._earlier = (self._earlier | {self._current}) - {gate.taint_key}
        self._current = gate.taint_key

    async def load(self) -> None:
        """Read what earlier leaders have recorded. At the start, before anything is decided."""
        self._take(await self._leases.edit(lambda record: record))

    async def record(self, key: str, *, created_with: str = "") -> None:
        """Make sure that the key is recorded. Before the heartbeat of a NodeGate with this key."""
        if key in self._recorded and created_with in ("", self.created_with):
            return

        def add(lease: LeaseRecord) -> LeaseRecord:
            keys = tuple(sorted({*lease.taint_keys, key}))
            return replace(lease, taint_keys=keys, gate_key=created_with or lease.gate_key)

        self._take(await self._leases.edit(add))

    async def forget_unused(self, nodes: Iterable[Node]) -> None:
        """Drop the earlier keys that no node has had for a long time. Needs every node."""
        if not self._earlier:
            return
        now = self._clock.monotonic()
        used = {taint.key for node in nodes for taint in node.taints_of(self._earlier)}
        unused = self._earlier - used
        since = self._unused_since
        self._unused_since = {key: since.get(key, now) for key in unused}
        gone = {key for key, at in self._unused_since.items() if now - at >= FORGET_AFTER}
        if not gone:
            return

        def drop(lease: LeaseRecord) -> LeaseRecord:
            return replace(
                lease, taint_keys=tuple(key for key in lease.taint_keys if key not in gone)
            )

        self._take(await self._leases.edit(drop))
        self._earlier -= gone
        logger.info("taint keys not in use any more", extra={"keys": sorted(gone)})

    def _take(self, record: LeaseRecord) -> None:
        self._recorded = frozenset(record.taint_keys)
        self.created_with = record.gate_key
        self._earlier = (self._earlier | self._recorded) - {self._current}
