"""Writes in the status what a dry run would do; again every few minutes, because nodes change."""

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
    """Has its own queue, because a forecast asks all kubelets."""

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
            return  # the answer of the registries queues the prefetch again
        nodes = await self._matching(prefetch)
        usages = await self._known.disks.survey(nodes) if prefetch.max_usage < 100 else {}
        current = self._dry_run(name)
        if current is None or (current.uid, current.generation) != (
            prefetch.uid,
            prefetch.generation,
        ):
            return  # it was edited or deleted meanwhile, and that queues it again
        facts = forecast.forecast(current, images, forecast.Fleet(nodes, usages))
        self._queue.add(name, delay=FORECAST_INTERVAL)
        findings = status.Findings(
            images,
            found=self._known.workloads.found(current),
            selected=self._known.repositories.selected(current),
        )
        wanted = status.dry_run_status(current, facts, self._known.clock.now(), findings)
        await self._statuses.write(current, wanted, self._queue)

    async def _matching(self, prefetch: Prefetch) -> list[Node]:
        """The matching nodes, after each was read for the images of the prefetch."""
        images = {image.listed_as for image in prefetch.images if image.listed_as}
        nodes = [node for node in self._store.nodes.values() if matches(prefetch, node)]
        if all(images <= node.wanted for node in nodes):
            return nodes
        # The nodes were read before a prefetch named these images, so their lists of these images
        # are not known.
        for node in await self._nodes.list():
            self._store.see_node(node)
        return [node for node in self._store.nodes.values() if matches(prefetch, node)]

    def _dry_run(self, name: str) -> Prefetch | None:
        """The current prefetch, if it is a dry run that can be forecast."""
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting or prefetch.invalid is not None:
            return None
        return prefetch if prefetch.dry_run and not prefetch.searching else None
