"""Writes the status of a prefetch: only its changes, and not too often."""

from __future__ import annotations

import contextlib
from typing import Any

from imagegate.domain import status
from imagegate.domain.facts import Prefetch
from imagegate.kube.errors import Conflict, NotFound
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.reconcile.changes import Changes

STATUS_INTERVAL = 2.0
"""Seconds between two writes of one status while only its counts change."""


class StatusWriter:
    def __init__(self, cluster: Cluster, known: Knowledge, changes: Changes) -> None:
        self._prefetches = cluster.prefetches
        self._events = cluster.events
        self._store = known.store
        self._clock = known.clock
        self._changes = changes
        self._written: dict[str, float] = {}
        """By name: when the status was written last."""

    async def write(
        self,
        prefetch: Prefetch,
        wanted: dict[str, Any],
        queue: KeyedQueue,
        *,
        urgent: bool = False,
    ) -> None:
        """``queue``: gets the prefetch again if it is too early to write, or if the prefetch has
        changed meanwhile; ``urgent``: write without waiting for `STATUS_INTERVAL`.
        """
        now = self._clock.now()
        changed = status.changes(prefetch.status, wanted)
        if not changed:
            return
        before, after = _conditions(prefetch.status), _conditions(wanted)
        due = self._written.get(prefetch.name, 0.0) + STATUS_INTERVAL
        if before == after and now < due and not urgent:
            queue.add(prefetch.name, delay=due - now)
            return
        self._written[prefetch.name] = now
        with self._changes.writing_status(prefetch.name):
            try:
                answer = await self._prefetches.write_status(prefetch, changed)
                self._store.see_prefetch(answer)
            except NotFound:
                return
            except Conflict:
                await self._read_again(prefetch.name, queue)
                return
        known = self._store.declared(prefetch.name)
        if known is not None and known.status != answer.status:
            # Another writer has changed the status before the answer came.
            self._changes.status_changed(prefetch.name)
        self._emit_events(prefetch, before, after, wanted)

    def forget(self, name: str) -> None:
        """The prefetch was deleted."""
        self._written.pop(name, None)

    async def _read_again(self, name: str, queue: KeyedQueue) -> None:
        """Read a prefetch that has changed, and queue it again."""
        with contextlib.suppress(NotFound):
            self._store.see_prefetch(await self._prefetches.get(name))
            queue.add(name, delay=0.02)

    def _emit_events(
        self,
        prefetch: Prefetch,
        before: dict[str, str],
        after: dict[str, str],
        wanted: dict[str, Any],
    ) -> None:
        """Emit an Event when everything is cached, and another when a pull has failed."""
        messages = {c["type"]: (c["reason"], c["message"]) for c in wanted["conditions"]}
        for type_, warning in (("Ready", False), ("Degraded", True)):
            if after[type_] == "True" and before.get(type_) != "True":
                reason, message = messages[type_]
                self._events.prefetch(
                    prefetch.name,
                    prefetch.uid,
                    reason,
                    message,
                    self._clock.now(),
                    warning=warning,
                )


def _conditions(status_: Any) -> dict[str, str]:
    """The conditions' statuses by their types."""
    conditions = status_.get("conditions") or ()
    return {c["type"]: c["status"] for c in conditions}
