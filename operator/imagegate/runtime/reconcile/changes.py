"""Which keys a change concerns: the listener of the store, the inspector and others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from imagegate.runtime.gate_taint import GateTaint
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.queues import Queues
from imagegate.runtime.store import Store


class Changes:
    """Queues the nodes and prefetches that a change concerns. Implements `store.Listener` and
    `inspector.Listener`.
    """

    def __init__(self, queues: Queues, store: Store, ledger: Ledger, gate: GateTaint) -> None:
        self._queues = queues
        self._store = store
        self._ledger = ledger
        self._gate = gate
        self._writing: set[str] = set()
        """The prefetches whose status is being written."""

    def everything(self) -> None:
        """The first resync is complete: decide about every prefetch and every node."""
        for name in self._store.prefetches:
            self.prefetch_changed(name)
        for name in self._store.nodes:
            self.node_changed(name)

    def node_changed(self, name: str) -> None:
        node = self._store.nodes.get(name)
        urgent = node is not None and self._gate.holds(node)
        self._queues.nodes.add(name, urgent=urgent)

    def gate_changed(self) -> None:
        for name, node in self._store.nodes.items():
            held = self._gate.holds(node)
            # A node that is not Ready may have to be held as soon as the gate is closed again.
            if held or self._gate.by_watch or not node.ready:
                self._queues.nodes.add(name, urgent=held)

    def prefetch_changed(self, name: str) -> None:
        self._queues.prefetches.add(name)

    def images_inspected(self, name: str) -> None:
        """What the registries say about a prefetch's images has changed, or is known now."""
        entry = self._ledger.entries.get(name)
        self._queues.plan_decisions(entry.standings if entry is not None else ())
        self._queues.prefetches.add(name)

    def status_changed(self, name: str) -> None:
        """Check a status that another writer has changed: an earlier leader that was suspended and
        continued late, or a user. The event of an own write is ignored.
        """
        if name not in self._writing:
            self._queues.plan_passes((name,))

    @contextlib.contextmanager
    def writing_status(self, name: str) -> Iterator[None]:
        """Within this context a change of the prefetch's status counts as an own write."""
        self._writing.add(name)
        try:
            yield
        finally:
            self._writing.discard(name)
