"""Releases held nodes when the operator is dead. It runs every few minutes in a separate process.

The admission policy checks the heartbeat itself, and taints no node without a heartbeat. But nodes
that were held when the operator died, and nodes with a taint from another source (Karpenter's
``startupTaints``, a node pool, ``--register-with-taints``), would wait forever.
"""

from __future__ import annotations

import logging

from imagegate.api import fields
from imagegate.domain.actions import PatchNode
from imagegate.domain.facts import Node
from imagegate.domain.gate import heartbeat_is_fresh
from imagegate.kube.client import Client
from imagegate.kube.errors import NotFound
from imagegate.kube.events import Events
from imagegate.kube.gates import Gates
from imagegate.kube.leases import LeaseRecord, Leases
from imagegate.kube.nodes import Nodes, try_each
from imagegate.runtime.clock import Clock
from imagegate.runtime.installation import Installation

logger = logging.getLogger(__name__)

REASON = "GateReleased"


class Watchdog:
    def __init__(
        self,
        client: Client,
        installation: Installation,
        *,
        after: float,
        clock: Clock,
        instance: str = "imagegate-watchdog",
    ) -> None:
        """``after``: seconds without a heartbeat. ``clock``: of the API server."""
        self._nodes = Nodes(client)
        self._gates = Gates(client)
        self._leases = Leases(client, installation.namespace, installation.lease)
        self._events = Events(client, component="imagegate-watchdog", instance=instance)
        self._taint_key = installation.taint_key
        self._after = after
        self._clock = clock

    async def run(self) -> int:
        """Returns how many nodes were released: none while the operator lives. Raises a KubeError;
        nodes that were released before stay released.
        """
        try:
            lease = await self._leases.get()
        except NotFound:
            lease = LeaseRecord()
        gate = await self._gates.get()
        if gate is not None:
            # The heartbeat, because a leader that cannot see the cluster still renews its Lease.
            alive = gate.status.get("heartbeat") or gate.created
        else:
            alive = lease.renew_time
        beat, now = fields.seconds(alive) or 0.0, self._clock.now()
        if heartbeat_is_fresh(beat, now, self._after):
            logger.info("the operator lives", extra={"seconds": round(now - beat)})
            return 0
        keys = frozenset({self._taint_key, *lease.taint_keys})
        keys |= {gate.taint_key} if gate is not None else set()
        held = [node for node in await self._nodes.list() if node.taints_of(keys)]
        if not held:
            return 0
        since = f"the operator has been silent since {alive}" if alive else "there is no operator"
        if beat > now:
            since = f"the heartbeat {alive} is of the future and proves nothing"
        logger.error("the operator is dead", extra={"alive": alive, "held": len(held)})

        def wanted(node: Node) -> PatchNode:
            return PatchNode(node, remove=node.taints_of(keys))

        async def free(node: Node) -> bool:
            freed = await self._nodes.insist(node, wanted)
            if freed:
                text = f"gate taint removed (watchdog): {since}; the images may not be there"
                self._events.node(
                    node.name, node.uid, REASON, text, self._clock.now(), warning=True
                )
            return freed

        try:
            return await try_each(held, free)
        finally:
            await self._events.flush()
