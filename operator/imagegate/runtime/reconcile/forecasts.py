"""Writes in the status what a dry run would do; again every few minutes, because nodes change."""

from __future__ import annotations

from imagegate.domain import forecast, status
from imagegate.domain.facts import Prefetch
from imagegate.domain.match import matches
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.reconcile.statuses import StatusWriter

FORECAST_INTERVAL = 300.0
"""Seconds between two forecasts of a dry run."""


class Forecaster:
    """Has its own queue, because a forecast asks all kubelets."""

    def __init__(self, known: Knowledge, statuses: StatusWriter, queue: KeyedQueue) -> None:
        """``queue``: of the dry runs."""
        self._known = known
        self._store = known.store
        self._statuses = statuses
        self._queue = queue

    async def forecast(self, name: str) -> None:
        prefetch = self._dry_run(name)
        images = self._known.images.known(prefetch) if prefetch is not None else None
        if prefetch is None or images is None:
            return  # the answer of the registries queues the prefetch again
        nodes = [node for node in self._store.nodes.values() if matches(prefetch, node)]
        usages = await self._known.disks.survey(nodes) if prefetch.max_usage < 100 else {}
        current = self._dry_run(name)
        if current is None or (current.uid, current.generation) != (
            prefetch.uid,
            prefetch.generation,
        ):
            return  # it was edited or deleted meanwhile, and that queues it again
        facts = forecast.forecast(current, images, forecast.Fleet(nodes, usages))
        self._queue.add(name, delay=FORECAST_INTERVAL)
        findings = status.Findings(images, found=self._known.workloads.found(current))
        wanted = status.dry_run_status(current, facts, self._known.clock.now(), findings)
        await self._statuses.write(current, wanted, self._queue)

    def _dry_run(self, name: str) -> Prefetch | None:
        """The current prefetch, if it is a dry run that can be forecast."""
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting or prefetch.invalid is not None:
            return None
        return prefetch if prefetch.dry_run and not prefetch.searching else None
