"""A deleted prefetch: its labels and puller pods are removed, then its finalizer."""

from __future__ import annotations

import contextlib

from imagegate.domain.facts import FINALIZER, LABEL_PREFIX, Prefetch
from imagegate.kube.errors import NotFound
from imagegate.metrics import Metrics
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queues import Queues

GIVE_UP_AFTER = 300.0
"""Seconds after which the finalizer is removed although nodes still have the label or pods, because
a policy may refuse the changes permanently."""


class Deletions:
    def __init__(
        self, cluster: Cluster, known: Knowledge, queues: Queues, metrics: Metrics
    ) -> None:
        self._prefetches = cluster.prefetches
        self._events = cluster.events
        self._store = known.store
        self._clock = known.clock
        self._gate = known.gate
        self._queues = queues
        self._metrics = metrics
        self._begun: dict[str, tuple[str, float]] = {}
        """Prefetches that are being deleted: uid, and since when this process knows."""

    async def add_finalizer(self, prefetch: Prefetch) -> None:
        with contextlib.suppress(NotFound):
            self._store.see_prefetch(await self._prefetches.add_finalizer(prefetch))

    def forget(self, name: str, *, gone: bool) -> None:
        """Remove the metrics of a prefetch that is deleted; ``gone``: its deletion is over."""
        if gone:
            self._begun.pop(name, None)
        self._metrics.forget(name)

    def queue_nodes(self, name: str, prefetch: Prefetch | None) -> None:
        """Queue every node that has a label or a pod of a prefetch that is being deleted, or was
        deleted (None). Only once, because afterwards each node has its own back-off.
        """
        if prefetch is not None:
            if self._begun.get(name, ("",))[0] == prefetch.uid:
                return
            self._begun[name] = prefetch.uid, self._clock.monotonic()
        for pod in self._store.pods.values():
            if pod.prefetch == name:
                self._queues.nodes.add(pod.node)
        label = LABEL_PREFIX + name
        for node in self._store.nodes.values():
            held = self._gate.holds(node)
            if label in node.labels or held:
                self._queues.nodes.add(node.name, urgent=held)

    async def finish(self, prefetch: Prefetch) -> None:
        """Remove the finalizer once no node has the prefetch's label and no pod is left.

        It waits for the API server only, and not for kubelets, because a pod on a dead node never
        finishes its termination.
        """
        if FINALIZER not in prefetch.finalizers:
            return
        labelled = any(
            prefetch.label in node.labels and not node.deleting
            for node in self._store.nodes.values()
        )
        pods = any(
            pod.prefetch == prefetch.name and not pod.deleting and pod.node in self._store.nodes
            for pod in self._store.pods.values()
        )
        since = self._begun.get(prefetch.name, ("", self._clock.monotonic()))[1]
        waited = self._clock.monotonic() - since
        if (labelled or pods) and waited < GIVE_UP_AFTER:
            self._queues.prefetches.add(prefetch.name, delay=0.5 if waited < 60 else 5.0)
            return
        if labelled or pods:
            self._events.prefetch(
                prefetch.name,
                prefetch.uid,
                "CleanupIncomplete",
                "labels or puller pods could not be removed: the API server refuses it. The"
                " operator goes on trying; look at its log for the nodes",
                self._clock.now(),
                warning=True,
            )
        await self._prefetches.remove_finalizer(prefetch)
