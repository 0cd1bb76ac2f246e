"""Reads the disk usage of a node when a decision needs it."""

from __future__ import annotations

from imagegate.kube.errors import NotFound
from imagegate.kube.nodes import Nodes
from imagegate.runtime.disks import PAUSE
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.reconcile.changes import Changes


class DiskReader:
    """Has its own queue, because a kubelet that does not answer takes seconds, and no release may
    wait for it.
    """

    def __init__(self, nodes: Nodes, known: Knowledge, queue: KeyedQueue, changes: Changes) -> None:
        """``queue``: of the nodes whose disks are to be read."""
        self._nodes = nodes
        self._store = known.store
        self._disks = known.disks
        self._gate = known.gate
        self._queue = queue
        self._changes = changes

    async def read(self, name: str) -> None:
        known = self._store.nodes.get(name)
        if known is None:
            return
        if self._disks.known(known) is not None and known.wanted >= self._store.wanted:
            # A decision has asked while the last read was in progress.
            self._changes.node_changed(name)
            return
        # The stored Node may lack images of the prefetch, because it was parsed earlier. Read the
        # Node before its usage is known, because the usage lets a pull start.
        try:
            node = await self._nodes.get(name)
        except NotFound:
            return  # the watch, or a resync, reports the deletion
        await self._disks.read(node)
        current = self._store.nodes.get(name)
        if current is None:
            self._disks.forget(name)
            return
        # Both facts at once: with the Node alone, a decision would ask for the usage again.
        if current.uid == node.uid:
            self._store.see_node(node)
        if self._disks.known(node) is None:
            self._queue.add(name, delay=PAUSE, urgent=self._gate.holds(node))
        else:
            self._changes.node_changed(name)
