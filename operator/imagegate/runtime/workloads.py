"""Follows the workloads that ``spec.imagesFrom`` names: one watch for each kind and namespace, as
long as a prefetch needs it; for other fields of the same kind there is another watch.

The first decision about a prefetch waits for the first list of every source, because otherwise a
joining node would be released with half of its images. This wait has a limit, because a source may
never be readable.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from imagegate.domain.facts import ImageSource, Place, Prefetch
from imagegate.domain.policy import ANYTHING, PrefetchPolicy
from imagegate.domain.workloads import Found, Listing, Workload, find
from imagegate.kube import workloads as kube
from imagegate.kube.errors import Gone, KubeError
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Longest wait for the first list, in seconds. Also the time after which a source is reported that
was readable earlier and cannot be read now."""
GATHER = 1.0
"""Seconds over which changes are gathered into one target: an upgrade writes many workloads."""
FIRST_RETRY = 0.5
LAST_RETRY = 15.0
"""Seconds until a source that cannot be read is tried again: doubled each time, up to the last."""


@dataclass(slots=True)
class _Followed:
    """One kind in one namespace, and what is known of its workloads."""

    task: asyncio.Task[None]
    workloads: dict[str, Workload] = field(default_factory=dict)
    read: bool = False
    error: str = ""
    """Why the last request failed, with the remedy."""
    served: bool = True
    """Whether the API server serves the kind, as far as the last request tells."""
    failing_since: float | None = None
    impatient: bool = False
    """Whether the failure has lasted for so long that it is reported."""

    @property
    def listing(self) -> Listing:
        error = self.error if self.impatient else ""
        return Listing(self.workloads.values(), self.read, error, served=self.served)


class WorkloadImages:
    """Finds the images of ``imagesFrom``, and passes them to the store."""

    def __init__(
        self,
        workloads: kube.Workloads,
        store: Store,
        queue: KeyedQueue,
        changed: Callable[[str], None],
        policy: PrefetchPolicy = ANYTHING,
    ) -> None:
        """``changed`` is called with the name of a prefetch for which the result has changed."""
        self._workloads = workloads
        self._queue = queue
        self._changed = changed
        self._policy = policy
        self._store = store
        self._sources: dict[str, tuple[ImageSource, ...]] = {}
        self._followed: dict[Place, _Followed] = {}
        self._found: dict[str, Found] = {}

    def found(self, prefetch: Prefetch) -> Found | None:
        """The last result, for the status; None: there is none."""
        return self._found.get(prefetch.name) if prefetch.images_from else None

    def follow(self, prefetch: Prefetch) -> None:
        """Follow the sources of this prefetch, and stop following its earlier sources."""
        before = self._sources.get(prefetch.name, ())
        if before == prefetch.images_from and not prefetch.searching:
            return
        if prefetch.images_from:
            self._sources[prefetch.name] = prefetch.images_from
        else:
            self._sources.pop(prefetch.name, None)
            self._found.pop(prefetch.name, None)
        self._tend()
        if prefetch.images_from:
            self._update(prefetch.name)

    def forget(self, name: str) -> None:
        """The prefetch was deleted."""
        self._found.pop(name, None)
        if self._sources.pop(name, None) is not None:
            self._tend()

    def stop(self) -> None:
        """End every watch."""
        self._sources.clear()
        self._tend()

    def _tend(self) -> None:
        """Start the watches that are needed, and end the others."""
        wanted = {source.place for sources in self._sources.values() for source in sources}
        for place in self._followed.keys() - wanted:
            self._followed.pop(place).task.cancel()
            logger.info("no longer following workloads", extra={"place": str(place)})
        for place in wanted - self._followed.keys():
            task = asyncio.create_task(self._follow(place), name=f"workloads {place}")
            self._followed[place] = _Followed(task)
            logger.info("following workloads", extra={"place": str(place)})

    # ---- one kind in one namespace

    async def _follow(self, place: Place) -> None:
        """List, then watch, until cancelled. Errors are retried.

        If the API server ends a watch normally, the next watch continues from there. After an error
        there is a new list, which also proves that the error is over.
        """
        loop = asyncio.get_running_loop()
        waiting = loop.call_later(PATIENCE, self._lose_patience, place)
        failures = 0
        try:
            while True:
                began = loop.time()
                try:
                    version = await self._list(place)
                    while True:
                        version = await self._watch(place, version)
                        await asyncio.sleep(FIRST_RETRY)
                except Gone:
                    # Compacted while no watch was open. The new list contains the missed changes.
                    logger.info("watch too old, listing again", extra={"place": str(place)})
                except KubeError as error:
                    self._fail(place, error)
                except Exception:
                    logger.exception("workloads not followed", extra={"place": str(place)})
                failures = 1 if loop.time() - began > LAST_RETRY else failures + 1
                delay = min(LAST_RETRY, FIRST_RETRY * 2 ** min(failures - 1, 8))
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            waiting.cancel()

    async def _list(self, place: Place) -> str:
        found, version = await self._workloads.list(place)
        followed = self._followed[place]
        first = not followed.read
        changed = first or followed.impatient or followed.workloads != found
        followed.workloads, followed.read = found, True
        followed.error, followed.failing_since, followed.impatient = "", None, False
        followed.served = True
        if changed:
            self._announce(place, at_once=first)
        return version

    async def _watch(self, place: Place, version: str) -> str:
        """Watch until the API server ends it. Returns the version from which the next continues."""
        followed = self._followed[place]
        async with aclosing(self._workloads.watch(place, version)) as changes:
            async for change in changes:
                version = change.version or version
                if not change.name or change.workload == followed.workloads.get(change.name):
                    continue
                if change.workload is None:
                    del followed.workloads[change.name]
                else:
                    followed.workloads[change.name] = change.workload
                self._announce(place)
        return version

    def _fail(self, place: Place, error: KubeError) -> None:
        followed, now = self._followed[place], asyncio.get_running_loop().time()
        if followed.failing_since is None:
            followed.failing_since = now
            logger.info(
                "workloads not read, will be retried",
                extra={"place": str(place), "error": str(error)},
            )
        text = self._workloads.problem(place, error)
        followed.served = not isinstance(error, kube.NotServed)
        late = followed.impatient or (followed.read and now - followed.failing_since >= PATIENCE)
        news = late and (text != followed.error or not followed.impatient)
        followed.error, followed.impatient = text, late
        if news:
            self._announce(place)

    def _lose_patience(self, place: Place) -> None:
        followed = self._followed.get(place)
        if followed is not None and not followed.read:
            followed.error = followed.error or self._workloads.unanswered(place)
            followed.impatient = True
            self._announce(place, at_once=True)

    # ---- the prefetches

    def _announce(self, place: Place, *, at_once: bool = False) -> None:
        for name, sources in self._sources.items():
            if any(source.place == place for source in sources):
                self._queue.add(name, delay=0 if at_once else GATHER)

    async def look(self, name: str) -> None:
        """Find again which images the workloads of a prefetch name."""
        if name in self._sources:
            self._update(name)

    def _update(self, name: str) -> None:
        declared = self._store.declared(name)
        if declared is None:
            return
        listings = {place: followed.listing for place, followed in self._followed.items()}
        found = find(declared, listings, self._policy)
        if found is None:
            return  # the first list, or the end of `PATIENCE`, queues it again
        before, self._found[name] = self._found.get(name), found
        self._store.found_images(declared, found)
        if found != before:
            self._changed(name)
