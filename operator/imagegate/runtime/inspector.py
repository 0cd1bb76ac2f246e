"""Asks the registries about images: once per spec, then at intervals.

Pulls also work without the answers. The answers order small images before large ones, and say how
long a pull may take, whether it fits the disk, and for which platforms there is no image. If tags
are followed (``refresh``), the answers decide what is rolled out. If a registry does not answer,
nothing changes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Protocol

from imagegate.domain.facts import ImageFacts, Prefetch, Refreshed
from imagegate.runtime.clock import Clock
from imagegate.runtime.image_facts import Known, completed, within_budget
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.registries import Registries, is_about
from imagegate.runtime.store import Store

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that the first pull of a new spec waits for the registry at most."""
UNHURRIED = 30.0
"""Seconds that a registry gets when no pull waits for the answer."""
LATER = 60.0
"""Seconds until a registry is asked again after an error or no answer; doubled each time."""
NOW_AND_THEN = 3600.0
"""Seconds until a registry that has answered is asked again, because a tag may have moved."""
SLOW_RETRY = 5.0
"""Seconds until an ImagePrefetch tries again to ask a slow registry that is busy."""

_Asked = tuple[str, tuple[tuple[str, tuple[str, ...]], ...], str]
"""What the answers depend on: the prefetch's uid, its images with the names of their secrets, and
the namespace of the secrets. Digests are not part of it, because they are answers."""


class Listener(Protocol):
    """Is notified of answers, with the prefetch's name (`reconcile.changes.Changes`)."""

    def images_inspected(self, name: str) -> None:
        """The first answers have come, or answers have changed."""

    def prefetch_changed(self, name: str) -> None:
        """Tags were looked up, and nothing has changed."""


class Inspector:
    def __init__(
        self,
        store: Store,
        registries: Registries,
        clock: Clock,
        queue: KeyedQueue,
        listener: Listener,
    ) -> None:
        self._store = store
        self._registries = registries
        self._clock = clock
        self._queue = queue
        self._listener = listener
        self._known: dict[str, tuple[_Asked, frozenset[str], Known]] = {}
        self._failures: dict[str, int] = {}
        self._refreshed: dict[str, Refreshed] = {}
        self._poked: dict[str, set[str]] = {}
        self._since: dict[str, tuple[_Asked, float]] = {}
        """When a spec was first seen; only for specs whose images are not known yet."""

    def known(self, prefetch: Prefetch) -> Known | None:
        """What is known of the images of exactly this spec; None before the first round."""
        found = self._known.get(prefetch.name)
        return found[2] if found is not None and found[0] == _asked(prefetch) else None

    def refreshed(self, prefetch: str) -> Refreshed | None:
        """When the prefetch's tags were and will be looked up; None: they are not followed."""
        return self._refreshed.get(prefetch)

    def poke(self, registry: str, repository: str) -> int:
        """A push was reported: look up the followed tags of that repository now.

        All of its tags, because a push may move several tags while its event names one (GitHub's
        with two tags, Harbor's copy), or none that is followed. An empty ``registry`` matches any.
        Returns how many images of ImagePrefetches are concerned.
        """
        count = 0
        for prefetch in self._store.prefetches.values():
            if prefetch.refresh is None or prefetch.deleting or prefetch.invalid is not None:
                continue
            for image in prefetch.images:
                if is_about(image, registry, repository):
                    self._poked.setdefault(prefetch.name, set()).add(image.reference)
                    count += 1
            if prefetch.name in self._poked:
                self._queue.add(prefetch.name, urgent=True)
        return count

    def look(self, prefetch: Prefetch) -> None:
        """Ask about the images of this spec, if they are not known yet. If its ``refresh`` interval
        was shortened, look up the tags earlier than planned.
        """
        if self.known(prefetch) is None:
            self._failures.pop(prefetch.name, None)
            asked, before = _asked(prefetch), self._since.get(prefetch.name)
            if before is None or before[0] != asked:
                self._since[prefetch.name] = asked, self._clock.monotonic()
            self._queue.add(prefetch.name, urgent=True)
        elif prefetch.refresh is not None:
            last, now = self._refreshed.get(prefetch.name), self._clock.now()
            due = now if last is None else last.at + prefetch.refresh.interval
            self._queue.add(prefetch.name, delay=max(0.0, due - now))

    def meet(self, platform: str) -> None:
        """A node exists: ask about its platform, unless that was done."""
        for name, (_, platforms, _) in self._known.items():
            if platform and platform not in platforms:
                self._queue.add(name)

    def forget(self, prefetch: str) -> None:
        self._known.pop(prefetch, None)
        self._failures.pop(prefetch, None)
        self._refreshed.pop(prefetch, None)
        self._poked.pop(prefetch, None)
        self._since.pop(prefetch, None)

    async def inspect(self, name: str) -> None:
        """Ask the registries about one prefetch, and plan when they are asked again."""
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting or prefetch.invalid is not None:
            self.forget(name)
            return
        platforms = frozenset(node.platform for node in self._store.nodes.values())
        before = self.known(prefetch)
        asked = _asked(prefetch)
        slow = self._registries.slow(prefetch)
        busy = self._registries.busy(slow)
        if busy and before is not None:
            self._queue.add(name, delay=SLOW_RETRY)
            return
        poked = self._poked.pop(name, set())
        pushed = poked if poked and before is not None and not self._due(name) else None
        patience = UNHURRIED if before is not None else self._patience(name, asked)
        if busy or patience <= 0:
            answers = _unanswered(prefetch, busy)
        else:
            sought = sorted(filter(None, platforms))
            with self._registries.asking(slow):
                answers = await self._registries.ask(prefetch, sought, patience, pushed)
        if self._was_deleted(prefetch):
            return
        found: Known = within_budget(completed(before or {}, answers))
        if before is not None and found == before:
            found = before  # one object, because shares have it and are compared
        self._known[name] = (asked, platforms, found)
        if self._since.get(name, (None,))[0] == asked:
            del self._since[name]
        self._plan(prefetch, found, pushed)
        if found != before:
            self._listener.images_inspected(name)
        elif prefetch.refresh is not None:
            self._listener.prefetch_changed(name)

    def _was_deleted(self, prefetch: Prefetch) -> bool:
        """Whether the prefetch was deleted while its registries were asked. For a new prefetch of
        the same name they are asked again.
        """
        now = self._store.prefetches.get(prefetch.name)
        if now is None or now.deleting:
            self.forget(prefetch.name)
            return True
        return now.uid != prefetch.uid

    def _patience(self, name: str, asked: _Asked) -> float:
        """Seconds that the first pull of a spec may still wait: they count from when the spec was
        seen, not from when a worker was free.
        """
        since = self._since.get(name)
        waited = self._clock.monotonic() - since[1] if since and since[0] == asked else 0.0
        return PATIENCE - waited

    def _due(self, name: str) -> bool:
        """Whether all images of the prefetch are due, and not only pushed images."""
        refreshed = self._refreshed.get(name)
        return refreshed is None or self._clock.now() >= refreshed.due

    def _plan(self, prefetch: Prefetch, found: Known, pushed: Collection[str] | None) -> None:
        """Plan the next lookup. ``pushed``: only these images were looked up, so the plan for all
        images stays as it is. If there is no plan yet, these answers make one.
        """
        last = self._refreshed.get(prefetch.name)
        if pushed is None or last is None:
            self._plan_all(prefetch, [facts.problem for facts in found.values() if facts.problem])
        else:
            self._queue.add(prefetch.name, delay=max(0.01, last.due - self._clock.now()))

    def _plan_all(self, prefetch: Prefetch, problems: Sequence[str]) -> None:
        """Plan the lookup of all images: at the usual interval, or after a problem sooner, with a
        growing delay.
        """
        name, now = prefetch.name, self._clock.now()
        count = self._failures[name] = self._failures.get(name, 0) + 1 if problems else 0
        usual = prefetch.refresh.interval if prefetch.refresh is not None else NOW_AND_THEN
        delay = min(usual, LATER * 2 ** min(count - 1, 10)) if count else usual
        self._queue.add(name, delay=delay)
        if prefetch.refresh is not None:
            problem = "; ".join(problems)
            self._refreshed[name] = Refreshed(now, now + delay, problem, count)
        else:
            self._refreshed.pop(name, None)
        if problems and count == 1:
            logger.info(
                "image not inspected", extra={"prefetch": name, "error": "; ".join(problems)}
            )


def _unanswered(prefetch: Prefetch, busy: Collection[str]) -> dict[str, ImageFacts]:
    """The first answers for a spec if no registry could be asked in time."""
    which = f"{', '.join(sorted(busy)[:3])} has" if busy else "the registries have"
    facts = ImageFacts(problem=f"{which} too many questions open; it is asked again later")
    return {image.reference: facts for image in prefetch.images}


def _asked(prefetch: Prefetch) -> _Asked:
    images = tuple((image.reference, image.pull_secrets) for image in prefetch.images)
    return prefetch.uid, images, prefetch.namespace
