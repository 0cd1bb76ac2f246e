"""Which nodes may pull for a prefetch now: its slots, counted, granted and taken."""

from __future__ import annotations

from imagegate.domain import rollout
from imagegate.domain.facts import Node, Prefetch
from imagegate.domain.node import NodePlan
from imagegate.metrics import Metrics
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queue import KeyedQueue


class Slots:
    def __init__(self, known: Knowledge, queue: KeyedQueue, metrics: Metrics) -> None:
        """``queue``: of the nodes that are granted a slot."""
        self._store = known.store
        self._ledger = known.ledger
        self._gate = known.gate
        self._queue = queue
        self._metrics = metrics
        self._specs: dict[str, tuple[str, Prefetch]] = {}
        """By name: the uid and the spec for which the slots were counted."""

    # ---- for nodes

    def take(self, node: Node, plan: NodePlan) -> bool:
        """Give a joining node the free slots that it wants. True if it got a slot."""
        if not plan.held:
            return False
        got = False
        for name, standing in plan.standings.items():
            prefetch = self._store.prefetches[name]
            if standing.wants and self.counted(prefetch):
                got = self._ledger.entry(name).take_slot(node.name, prefetch) or got
        return got

    def has(self, node: Node, prefetch: Prefetch) -> bool:
        """Whether the node may start a pull. A slot is valid for the running pull only, if it was
        granted before ``paused`` or before a smaller ``maxParallel``, or if the pull was started by
        a deleted prefetch of the same name.
        """
        entry = self._ledger.entry(prefetch.name)
        if node.name not in entry.slots or not self.counted(prefetch):
            return False
        if prefetch.rollout.paused and node.taint(self._gate.key) is None:
            return False
        return not entry.overdrawn(node.name, prefetch) or any(
            pod.prefetch == prefetch.name and not pod.finished
            for pod in self._store.pods_on(node.name)
        )

    # ---- for prefetches

    def counted(self, prefetch: Prefetch) -> bool:
        """Whether the slots of exactly this spec are known. After a start or an edit they are not
        known before `count`.
        """
        return self._specs.get(prefetch.name) == (prefetch.uid, prefetch)

    def count(self, prefetch: Prefetch) -> None:
        """Count the slots in use for a spec that is new to this process.

        A node with an unfinished puller pod keeps its slot, also after a restart. So does a node
        for which a pod was decided but is not yet visible in the watch. Other grants of an earlier
        spec end.
        """
        self._specs[prefetch.name] = (prefetch.uid, prefetch)
        entry, nodes = self._ledger.entry(prefetch.name), self._store.nodes
        decided = {name for name, standing in entry.standings.items() if standing.pulling}
        entry.slots = entry.slots & decided | {
            pod.node
            for pod in self._store.pods.values()
            if pod.prefetch == prefetch.name and not pod.finished
            # A deleted Node frees its slot. A new Node with the same name must request one.
            if pod.node in nodes and nodes[pod.node].uid == pod.machine
        }

    def grant(self, prefetch: Prefetch) -> None:
        """One pass of the rollout."""
        entry = self._ledger.entry(prefetch.name)
        view = entry.rollout_view(prefetch)
        entry.stopped = rollout.stopped(view)
        self._metrics.rollout_allowed(prefetch.name, rollout.total_allowed(view))
        for node in rollout.grant(view):
            entry.slots.add(node)
            self._queue.add(node, urgent=entry.wants.get(node, False))

    def forget(self, prefetch: str) -> bool:
        """Forget a prefetch that is deleted. False where its slots were never counted."""
        return self._specs.pop(prefetch, None) is not None
