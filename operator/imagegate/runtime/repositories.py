"""Lists the tags of the repositories that ``spec.repositories`` names: at intervals, and
immediately after a push. One list serves all ImagePrefetches that name a repository with the same
secrets.

The first decision about a new spec waits for the tags, because otherwise a joining node would be
released without them. This wait has a limit. An operator that starts does not wait: it continues
with the tags that the status records.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from imagegate.domain import repositories
from imagegate.domain.facts import Prefetch, RepositorySpec
from imagegate.domain.repositories import Chosen, Selected
from imagegate.domain.tags import At
from imagegate.errors import ImagegateError
from imagegate.runtime.clock import Clock
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.registries import is_repository
from imagegate.runtime.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Longest wait of a new spec for the first list, in seconds."""
LIST_TIMEOUT = 60.0
"""Seconds that a list may take, with all its pages."""
FIRST_RETRY = 15.0
"""Seconds until the tags are listed again after an error; doubled each time, up to the interval."""
SPREAD = 0.1
"""Part of an interval by which lists are spread, so that not all are due at the same time."""
MANY = 1000
"""Tags from which on they are compared in a thread: 10,000 take 0.06 to 0.07 s of CPU time."""


class Lister(Protocol):
    """Lists the tags of a repository (`registries.Registries`)."""

    async def tags(
        self, namespace: str, repository: str, secrets: Sequence[str], patience: float
    ) -> tuple[str, ...]:
        """Raises ImagegateError."""


class _Feed(NamedTuple):
    """The scope of one list: a repository, and the secrets with which it is read."""

    namespace: str
    repository: str
    secrets: tuple[str, ...]

    @property
    def key(self) -> str:
        return " ".join((self.namespace, self.repository, *self.secrets))


@dataclass(slots=True)
class _Followed:
    """One ImagePrefetch, and what is chosen for it."""

    prefetch: Prefetch
    chosen: dict[str, Chosen]
    """By repository, in the order of the spec; none until the tags are known."""
    wait: asyncio.TimerHandle | None = None
    announced: Selected | None = None
    """The last result that was passed on."""

    @property
    def complete(self) -> bool:
        return len(self.chosen) == len(self.prefetch.repositories)

    @property
    def selected(self) -> Selected:
        specs = self.prefetch.repositories
        return Selected(tuple(self.chosen[spec.repository] for spec in specs))

    def feeds(self) -> Iterator[tuple[_Feed, RepositorySpec]]:
        for spec in self.prefetch.repositories:
            yield _Feed(self.prefetch.namespace, spec.repository, spec.pull_secrets), spec

    def end(self) -> None:
        if self.wait is not None:
            self.wait.cancel()
            self.wait = None


class RepositoryTags:
    """Chooses the tags of ``repositories``, and passes their images to the store."""

    def __init__(
        self,
        lister: Lister,
        store: Store,
        clock: Clock,
        queue: KeyedQueue,
        changed: Callable[[str], None],
    ) -> None:
        """``changed`` is called with the name of a prefetch for which the result has changed."""
        self._lister = lister
        self._store = store
        self._clock = clock
        self._queue = queue
        self._changed = changed
        self._followed: dict[str, _Followed] = {}
        self._feeds: dict[str, _Feed] = {}
        self._failures: dict[str, int] = {}

    def selected(self, prefetch: Prefetch) -> Selected | None:
        """The last result, for the status; None: there is none."""
        followed = self._followed.get(prefetch.name)
        return followed.selected if followed is not None and followed.complete else None

    def follow(self, prefetch: Prefetch) -> None:
        """Follow the repositories of this prefetch, and stop following its earlier repositories."""
        before = self._followed.get(prefetch.name)
        declared = self._store.declared(prefetch.name)
        if before is not None and _asked(before.prefetch) == _asked(prefetch):
            return
        if not prefetch.repositories or declared is None or declared.invalid is not None:
            self.forget(prefetch.name)
            return
        if before is not None:
            before.end()
        followed = self._followed[prefetch.name] = _Followed(declared, {})
        self._remember(followed, before)
        self._tend()
        for feed, _ in followed.feeds():
            self._queue.add(feed.key, urgent=True)
        if followed.complete:
            self._announce(followed)
        else:
            loop = asyncio.get_running_loop()
            followed.wait = loop.call_later(PATIENCE, self._lose_patience, followed)

    def forget(self, name: str) -> None:
        """The prefetch was deleted."""
        followed = self._followed.pop(name, None)
        if followed is not None:
            followed.end()
            self._tend()

    def stop(self) -> None:
        for followed in self._followed.values():
            followed.end()
        self._followed.clear()
        self._tend()

    def poke(self, registry: str, repository: str) -> int:
        """A push was reported: list the tags of that repository now. An empty ``registry`` matches
        any. Returns for how many ImagePrefetches.
        """
        pushed = {
            key
            for key, feed in self._feeds.items()
            if is_repository(feed.repository, registry, repository)
        }
        for key in pushed:
            self._queue.add(key, urgent=True)
        return sum(
            feed.key in pushed for each in self._followed.values() for feed, _ in each.feeds()
        )

    async def list(self, key: str) -> None:
        """List the tags of one repository, choose for all its ImagePrefetches, and plan the next
        list.
        """
        feed = self._feeds.get(key)
        if feed is None:
            return
        tags: tuple[str, ...] = ()
        problem = ""
        try:
            tags = await self._lister.tags(
                feed.namespace, feed.repository, feed.secrets, LIST_TIMEOUT
            )
        except ImagegateError as error:
            problem = str(error)
        self._plan(key, problem)
        for followed in list(self._followed.values()):
            spec = next((spec for each, spec in followed.feeds() if each == feed), None)
            if spec is None:
                continue
            if problem:
                chosen = repositories.failed(spec, self._before(followed, spec), problem)
            else:
                chosen = await self._choose(followed, spec, tags)
            if self._followed.get(followed.prefetch.name) is followed:  # else it was edited
                followed.chosen[spec.repository] = chosen
                self._announce(followed)

    async def _choose(
        self, followed: _Followed, spec: RepositorySpec, tags: tuple[str, ...]
    ) -> Chosen:
        at = At(self._clock.now(), followed.prefetch.list_interval)
        arguments = (spec, tags, self._before(followed, spec), at)
        if len(tags) < MANY:
            return repositories.listed(*arguments)
        return await asyncio.to_thread(repositories.listed, *arguments)

    def _before(self, followed: _Followed, spec: RepositorySpec) -> Chosen:
        known = followed.chosen.get(spec.repository)
        return known or repositories.recorded(followed.prefetch, spec)[0]

    def _remember(self, followed: _Followed, before: _Followed | None) -> None:
        """Continue with the tags that this process has chosen, or that the status records, if they
        are complete for the current spec.
        """
        known = before.chosen if before is not None else {}
        for spec in followed.prefetch.repositories:
            earlier = known.get(spec.repository)
            if earlier is not None and earlier.spec == spec:
                followed.chosen[spec.repository] = earlier
                continue
            chosen, complete = repositories.recorded(followed.prefetch, spec)
            if complete:
                followed.chosen[spec.repository] = chosen

    def _lose_patience(self, followed: _Followed) -> None:
        followed.wait = None
        for spec in followed.prefetch.repositories:
            if spec.repository not in followed.chosen:
                problem = f"{spec.repository} has not answered yet; it is asked again"
                before = self._before(followed, spec)
                followed.chosen[spec.repository] = repositories.failed(spec, before, problem)
        self._announce(followed)

    def _announce(self, followed: _Followed) -> None:
        if not followed.complete or followed.selected == followed.announced:
            return
        followed.end()
        declared = self._store.declared(followed.prefetch.name)
        if declared is not None and _asked(declared) == _asked(followed.prefetch):
            followed.announced = followed.selected
            self._store.chose_tags(declared, followed.announced)
            self._changed(declared.name)

    def _tend(self) -> None:
        """Forget the lists that no prefetch needs."""
        wanted = {feed.key: feed for each in self._followed.values() for feed, _ in each.feeds()}
        self._feeds = wanted
        self._failures = {key: n for key, n in self._failures.items() if key in wanted}

    def _plan(self, key: str, problem: str) -> None:
        if key not in self._feeds:
            return
        interval = min(
            each.prefetch.list_interval
            for each in self._followed.values()
            if any(feed.key == key for feed, _ in each.feeds())
        )
        failures = self._failures[key] = self._failures.get(key, 0) + 1 if problem else 0
        if failures == 1:
            logger.info("tags not listed", extra={"repository": key, "error": problem})
        delay = min(interval, FIRST_RETRY * 2 ** min(failures - 1, 10)) if failures else interval
        self._queue.add(key, delay=delay * random.uniform(1 - SPREAD / 2, 1 + SPREAD / 2))  # noqa: S311


async def select(
    prefetch: Prefetch, list_: Callable[[RepositorySpec], Awaitable[tuple[str, ...]]], now: float
) -> Selected:
    """The present choice for one prefetch, without what was chosen before. ``list_`` lists the tags
    of a repository; an ImagegateError of it is in the result.
    """
    chosen = []
    for spec in prefetch.repositories:
        try:
            found = await list_(spec)
        except ImagegateError as error:
            chosen.append(repositories.failed(spec, Chosen(spec), str(error)))
        else:
            at = At(now, prefetch.list_interval)
            chosen.append(repositories.listed(spec, found, None, at))
    return Selected(tuple(chosen))


def _asked(prefetch: Prefetch) -> object:
    """The fields of the spec on which the tags depend."""
    return prefetch.uid, prefetch.namespace, prefetch.repositories, prefetch.list_interval
