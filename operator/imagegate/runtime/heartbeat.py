"""Writes the NodeGate's status: the heartbeat of the dead-man's switch, and what the gate holds.

The admission policy taints a joining node only while the heartbeat is fresh. So only a leader whose
store is complete and whose resyncs succeed writes it, because an operator that cannot release nodes
must not hold any.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from imagegate.api import fields
from imagegate.domain import status
from imagegate.domain.facts import Gate
from imagegate.errors import ImagegateError
from imagegate.kube.errors import Conflict, NotFound
from imagegate.runtime.arming import Arming
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.health import Health
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.taint_keys import TaintKeys

logger = logging.getLogger(__name__)

PERIOD = 60.0
"""Seconds between two heartbeats, or a quarter of silenceSeconds, if that is shorter."""
AHEAD = 5.0
"""Seconds by which a heartbeat may be ahead of the API server's clock, as it is known here."""
LOOK = 2.0
"""Seconds between two checks whether the held nodes have changed."""


class Heartbeat:
    def __init__(
        self, cluster: Cluster, known: Knowledge, keys: TaintKeys, arming: Arming, health: Health
    ) -> None:
        self._gates = cluster.gates
        self._store = known.store
        self._ledger = known.ledger
        self._clock = known.clock
        self._keys = keys
        self._arming = arming
        self._health = health
        self._next = 0.0

    async def run(self) -> None:
        while True:
            try:
                await self.once()
            except ImagegateError as error:
                logger.warning("heartbeat not written", extra={"error": str(error)})
            await asyncio.sleep(LOOK)

    async def once(self) -> None:
        """Write the status if the heartbeat is due or something in it has changed."""
        gate = self._store.gate
        if gate is None or gate.deleting:
            return
        problem = self._health.unfit_to_hold()
        if problem is not None:
            logger.warning("no heartbeat", extra={"problem": problem})
            return
        now = self._clock.monotonic()
        wanted = self._status(gate)
        # A NodeGate that was created again is armed immediately. A heartbeat from the future, which
        # this operator did not write, disarms the gate until it is replaced.
        there = gate.status.get("heartbeat")
        ahead = (fields.seconds(there) or 0.0) > self._clock.now() + AHEAD
        due = now >= self._next or there is None or ahead
        if due:
            wanted["heartbeat"] = fields.timestamp(self._clock.now())
        else:
            wanted["heartbeat"] = gate.status["heartbeat"]
        if patch := status.changes(gate.status, wanted):
            # Strictly before the heartbeat, because that lets the policy taint nodes.
            await self._keys.record(gate.taint_key)
            since = self._clock.monotonic()
            try:
                self._store.see_gate(await self._gates.write_status(gate, patch))
            except (NotFound, Conflict):
                # The watch is stale or dead. Read the NodeGate, so that this write is not repeated.
                self._store.see_gate(await self._gates.get(), since=since)
                return
        if due:
            self._next = now + min(PERIOD, gate.silence / 4)
            await self._keys.forget_unused(self._store.nodes.values())

    def _status(self, gate: Gate) -> dict[str, Any]:
        armed, reason, message = self._arming.armed()
        if gate.suspend:
            armed, reason, message = False, "Suspended", "spec.suspend is true: no node is held"
        condition: status.Condition = ("Armed", armed, reason, message)
        return {
            "armed": armed,
            "held": len(self._ledger.holding),
            "conditions": status.merge_conditions(gate.status, [condition], 1, self._clock.now()),
        }
