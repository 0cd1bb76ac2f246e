"""Checks the DaemonSets of ``spec.startAfter``, for which joining nodes wait before they pull.

A waiting node is checked about every two seconds, in a separate queue, so that its release never
waits for an answer. Once a DaemonSet was Ready on a node it counts as Ready until the next boot.
This is kept in memory only: after a restart the operator asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from imagegate.domain.facts import DaemonSetRef, Node, Prefetch
from imagegate.kube.daemonsets import DaemonSets
from imagegate.runtime.queue import KeyedQueue

PERIOD = 2.0
"""Seconds between two checks of a waiting node."""
RATE = 50.0
"""Largest number of checks per second. If more than a hundred nodes wait, each is checked less
often. In a cluster with its first prefetch every node is a joining node."""


@dataclass(slots=True)
class _Node:
    """What is known of one node since its last boot."""

    identity: str
    ready: set[DaemonSetRef] = field(default_factory=set)
    reasons: dict[DaemonSetRef, str] = field(default_factory=dict)
    awaited: frozenset[DaemonSetRef] = frozenset()


class StartAfter:
    def __init__(
        self, daemonsets: DaemonSets, queue: KeyedQueue, changed: Callable[[str], None]
    ) -> None:
        """``changed`` is called with the name of a node for which an answer has changed."""
        self._daemonsets = daemonsets
        self._queue = queue
        self._changed = changed
        self._nodes: dict[str, _Node] = {}
        self._waiting: set[str] = set()

    def unready(self, node: Node, prefetch: Prefetch) -> Mapping[DaemonSetRef, str]:
        """The DaemonSets that, as far as is known, were not Ready on the node since its boot, and
        why not.
        """
        if not prefetch.start_after:
            return {}
        known = self._nodes.get(node.name)
        if known is None or known.identity != node.identity:
            return dict.fromkeys(prefetch.start_after, "")
        missing = (ref for ref in prefetch.start_after if ref not in known.ready)
        return {ref: known.reasons.get(ref, "") for ref in missing}

    def follow(self, node: Node, awaited: frozenset[DaemonSetRef]) -> None:
        """Check the DaemonSets that the node waits for, as long as there are any."""
        known = self._nodes.get(node.name)
        if known is None or known.identity != node.identity:
            if not awaited:
                self.forget(node.name)
                return
            known = self._nodes[node.name] = _Node(node.identity)
        if awaited - known.awaited:
            self._queue.add(node.name)
        known.awaited = awaited
        if awaited:
            self._waiting.add(node.name)
        else:
            self._waiting.discard(node.name)

    def forget(self, node: str) -> None:
        self._nodes.pop(node, None)
        self._waiting.discard(node)

    async def look(self, name: str) -> None:
        """Ask about one node, and queue it again while a DaemonSet is not Ready."""
        known = self._nodes.get(name)
        if known is None or not known.awaited:
            return
        asked = known.awaited
        reasons = await self._daemonsets.unready(name, asked)
        if self._nodes.get(name) is not known:
            return  # the node has rebooted or was deleted meanwhile: the answer is out of date
        ready = asked - reasons.keys()
        changed = bool(ready) or any(known.reasons.get(ref) != why for ref, why in reasons.items())
        known.ready |= ready
        known.reasons = {ref: known.reasons[ref] for ref in known.reasons.keys() - asked} | reasons
        if reasons:
            self._queue.add(name, delay=max(PERIOD, len(self._waiting) / RATE))
        if changed:
            self._changed(name)
