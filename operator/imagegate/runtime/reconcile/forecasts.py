"""Says in the status what a dry run would do; every few minutes anew, as nodes come and go."""

from __future__ import annotations

from imagegate.domain import forecast, status
from imagegate.domain.facts import Node, Prefetch
from imagegate.domain.match import matches
from imagegate.kube.nodes import Nodes
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.reconcile.statuses import StatusWriter

FORECAST_INTERVAL = 300.0
"""Seconds between two forecasts of a dry run."""


class Forecaster:
    """Beside the work on prefetches, because all kubelets are asked."""

    def __init__(
        self, nodes: Nodes, known: Knowledge, statuses: StatusWriter, queue: KeyedQueue
    ) -> None:
        """``queue``: of the dry runs."""
        self._nodes = nodes
        self._known = known
        self._store = known.store
        self._statuses = statuses
        self._queue = queue

    async def forecast(self, name: str) -> None:
        prefetch = self._dry_run(name)
        images = self._known.images.known(prefetch) if prefetch is not None else None
        if prefetch is None or images is None:
            return  # the answer of the registries brings the prefetch back
        nodes = await self._matching(prefetch)
        usages = await self._known.disks.survey(nodes) if prefetch.max_usage < 100 else {}
        current = self._dry_run(name)
        if current is None or (current.uid, current.generation) != (
            prefetch.uid,
            prefetch.generation,
        ):
            return  # it was edited or deleted meanwhile, and that brings it back
        facts = forecast.forecast(current, images, forecast.Fleet(nodes, usages))
        self._queue.add(name, delay=FORECAST_INTERVAL)
        findings = status.Findings(images, found=self._known.workloads.found(current))
        wanted = status.dry_run_status(current, facts, self._known.clock.now(), findings)
        await self._statuses.write(current, wanted, self._queue)

    async def _matching(self, prefetch: Prefetch) -> list[Node]:
        """The nodes that the prefetch is for, all of them searched for its images."""
        images = {image.listed_as for image in prefetch.images if image.listed_as}
        nodes = [node for node in self._store.nodes.values() if matches(prefetch, node)]
        if all(images <= node.wanted for node in nodes):
            return nodes
        # They were read when no prefetch named these images: what they list of them is not known.
        for node in await self._nodes.list():
            self._store.see_node(node)
        return [node for node in self._store.nodes.values() if matches(prefetch, node)]

    def _dry_run(self, name: str) -> Prefetch | None:
        """The prefetch as it is now, if it only says what it would do."""
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting or prefetch.invalid is not None:
            return None
        return prefetch if prefetch.dry_run and not prefetch.searching else None
