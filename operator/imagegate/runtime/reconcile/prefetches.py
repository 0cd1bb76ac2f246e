"""One prefetch at a time: its finalizer, a pass of its rollout, its status.

Changes are gathered for `queues.PASS_INTERVAL`, because a pass looks at every node that the
prefetch matches. The nodes themselves are decided about one by one (`nodes`).
"""

from __future__ import annotations

from dataclasses import replace

from imagegate.domain import status
from imagegate.domain.effective import adopted, resolved
from imagegate.domain.facts import FINALIZER, Prefetch
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queues import Queues
from imagegate.runtime.reconcile.deletions import Deletions
from imagegate.runtime.reconcile.slots import Slots
from imagegate.runtime.reconcile.statuses import StatusWriter


class PrefetchReconciler:
    def __init__(
        self,
        known: Knowledge,
        slots: Slots,
        statuses: StatusWriter,
        deletions: Deletions,
        queues: Queues,
    ) -> None:
        self._known = known
        self._store = known.store
        self._ledger = known.ledger
        self._slots = slots
        self._statuses = statuses
        self._deletions = deletions
        self._queues = queues

    async def reconcile(self, name: str) -> None:
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting:
            await self._delete(name, prefetch)
            return
        if prefetch.live and FINALIZER not in prefetch.finalizers:
            await self._deletions.add_finalizer(prefetch)
            return  # the event of this change queues it again
        self._known.workloads.follow(prefetch)
        self._known.repositories.follow(prefetch)
        if prefetch.searching:
            return  # the found workloads, or the end of the wait for them, queue it again
        prefetch = self._known.size_limit.judge(prefetch)
        if not self._slots.counted(prefetch):
            self._begin(prefetch)
        if prefetch.invalid is None:
            if prefetch.dry_run:
                self._queues.forecasts.add(name)
                return
            self._slots.grant(prefetch)
        await self._report(prefetch)

    def _begin(self, prefetch: Prefetch) -> None:
        """Begin with a spec that is new to this process: after a start, or after an edit."""
        self._slots.count(prefetch)
        if prefetch.invalid is None:
            self._known.images.look(prefetch)
        outdated = set(self._store.nodes) if prefetch.live else set()
        self._ledger.entry(prefetch.name).begin(outdated)
        groups = [group.key for group in prefetch.groups]
        for node in self._store.nodes:
            self._ledger.forgive(node, groups, self._known.clock.now())
        self._queues.plan_decisions(self._store.nodes)

    async def _report(self, prefetch: Prefetch) -> None:
        """Write the status."""
        tally = self._ledger.entry(prefetch.name).tally(prefetch)
        images = self._known.images.known(prefetch) or {}
        current = adopted(prefetch, images)
        if current and not tally.complete and _is_reported(prefetch):
            return  # after a restart: the written status stays until all nodes are decided about
        if not current:
            # New digests are written to the status before they are pulled: they are the target when
            # the status comes back from the API server. Until then it must not say Ready.
            prefetch = replace(prefetch, images=resolved(prefetch.images, images))
            tally = replace(tally, complete=False)
        wanted = status.prefetch_status(
            prefetch,
            tally,
            self._known.clock.now(),
            status.Findings(
                images,
                refreshed=self._known.images.refreshed(prefetch.name),
                found=self._known.workloads.found(prefetch),
                selected=self._known.repositories.selected(prefetch),
            ),
        )
        await self._statuses.write(prefetch, wanted, self._queues.prefetches, urgent=not current)

    async def _delete(self, name: str, prefetch: Prefetch | None) -> None:
        """Forget a prefetch that is being deleted, or was deleted (None)."""
        self._deletions.forget(name, gone=prefetch is None)
        self._known.size_limit.forget(name)
        # A decision about a node may have created the entry before the prefetch was reconciled.
        known = self._ledger.entries.pop(name, None) is not None
        if self._slots.forget(name) or known or prefetch is not None:
            self._known.images.forget(name)
            self._known.workloads.forget(name)
            self._known.repositories.forget(name)
            self._statuses.forget(name)
            self._deletions.queue_nodes(name, prefetch)
        if prefetch is not None:
            await self._deletions.finish(prefetch)


def _is_reported(prefetch: Prefetch) -> bool:
    """Whether the status is about exactly this spec and target."""
    reported = prefetch.status.get("observedGeneration"), prefetch.status.get("target")
    return reported == (prefetch.generation, prefetch.target)
