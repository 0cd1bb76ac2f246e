"""Lists all objects at start and every few minutes, to correct what the watches did not report."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from imagegate.domain.facts import Pod
from imagegate.errors import ImagegateError
from imagegate.kube.errors import Forbidden, NotFound
from imagegate.metrics import Metrics
from imagegate.runtime import watches
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.knowledge import Knowledge

logger = logging.getLogger(__name__)

SETTLE = 15.0
"""Seconds after the start until the second resync, which finds objects that were deleted between
the first resync and the start of the watches."""


class Resync:
    def __init__(
        self,
        cluster: Cluster,
        known: Knowledge,
        metrics: Metrics,
        *,
        namespaces: Sequence[str],
        period: float,
    ) -> None:
        """``namespaces``: where puller pods may be; ``period``: seconds between two resyncs."""
        self._cluster = cluster
        self._store = known.store
        self._clock = known.clock
        self._metrics = metrics
        self._namespaces = namespaces
        self._period = period
        self.last = self._clock.monotonic()
        """When the last complete resync ended, or the process began to lead."""

    def begin(self) -> None:
        """This process leads from now on. The time before does not count, because a standby does
        not list anything.
        """
        self.last = self._clock.monotonic()

    async def once(self) -> None:
        """List everything and reconcile the store with it."""
        since = self._clock.monotonic()
        gate = await self._cluster.gates.get()
        prefetches = await self._cluster.prefetches.list()
        # Before the nodes are parsed, because a parsed Node has only the images of prefetches.
        for prefetch in prefetches:
            self._store.see_prefetch(prefetch)
        nodes = await self._cluster.nodes.list()
        pods, unreadable = await self._list_pods()
        watched = self._store.watches
        watched.listed(watches.NODES, nodes)
        watched.listed(watches.PREFETCHES, prefetches)
        watched.listed(watches.GATES, [] if gate is None else [gate])
        # The gate first and the nodes last, so that no decision uses half of the facts.
        self._store.see_gate(gate, since=since)
        self._store.see_unreadable(unreadable)
        pruned = self._store.prune(since=since, nodes=nodes, pods=pods, prefetches=prefetches)
        for kind, count in pruned.items():
            self._metrics.pruned(kind, count)
        self.last = self._clock.monotonic()
        logger.info(
            "resynced",
            extra={
                "nodes": len(nodes),
                "pods": len(pods),
                "prefetches": len(prefetches),
                "pruned": sum(pruned.values()),
                "seconds": round(self.last - since, 2),
            },
        )

    async def _list_pods(self) -> tuple[list[Pod], dict[str, str]]:
        """The puller pods, and for each unreadable namespace the reason: the namespace, or the Role
        in it, was deleted. That must not end the operator, because it also serves the others.
        """
        pods: list[Pod] = []
        unreadable: dict[str, str] = {}
        for namespace in self._namespaces:
            try:
                pods += await self._cluster.pods.list(namespace)
            except (Forbidden, NotFound) as error:
                unreadable[namespace] = error.message
                logger.warning(
                    "puller namespace not read",
                    extra={"namespace": namespace, "error": str(error)},
                )
        return pods, unreadable

    async def run(self) -> None:
        """Resync until cancelled. A failed resync is repeated soon."""
        delay = min(SETTLE, self._period)
        while True:
            await self._wait(delay * random.uniform(0.9, 1.1))  # noqa: S311
            try:
                await self.once()
                delay = self._period if not self._store.unreadable else min(self._period, 30.0)
                if self._store.watches.stale:
                    delay = min(delay, 1.2 * watches.DEAD_AFTER)
            except ImagegateError as error:
                logger.warning("resync failed", extra={"error": str(error)})
                delay = min(self._period, 30.0)

    async def _wait(self, delay: float) -> None:
        """Wait until the next resync is due, or less if the watch of Nodes reports nothing."""
        began = self._clock.monotonic()
        while (now := self._clock.monotonic()) < began + delay:
            quiet = max(began, self._store.watches.quiet_since(watches.NODES)) + watches.QUIET
            if now >= quiet:
                return
            await asyncio.sleep(max(0.1, min(began + delay, quiet) - now))
