"""The leader's part of push hooks: it asks registries about pushed tags.

Another process (`runtime.outbox`) has verified the pushes. That process may be compromised. So no
number of pushes may keep the leader from its main work, which is to hold and release nodes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from imagegate.hooks import handover
from imagegate.hooks.event import Push, Told
from imagegate.hooks.limits import Debounce
from imagegate.hooks.receiver import Observe, Outcome

logger = logging.getLogger(__name__)

SOON, QUIET = 1.0, 5.0
MOST_ASKED = 1024
MOST_WAITING = 512
SHARE = 0.1
"""Largest part of the event loop's time in which the prefetches that a push concerns are looked up.
One lookup, needed for every push, takes about 1 ms with 1,000 images."""

Pushed = Callable[[Push], int]
"""Schedules a request to the registry; returns the number of images that the push concerns."""


class Asker:
    def __init__(
        self,
        sources: Iterable[str],
        *,
        pushed: Pushed,
        observe: Observe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = frozenset(sources)
        self._pushed = pushed
        self._observe = observe
        self._clock = clock
        self._unread: str | None = None
        """The newest text of the hand-over, until it is read."""
        self._known: frozenset[str] = frozenset()
        """The ids in the last text that was read."""
        self._waiting: dict[Push, Told] = {}
        self._debounce = Debounce(SOON, QUIET, MOST_ASKED)
        self._wake = asyncio.Event()

    def see(self, text: str) -> None:
        """Take the current text of the hand-over.

        Only the newest text is read, in its turn, because 256 KiB of JSON take 10 ms or more and
        the other process may write as often as it likes.
        """
        self._unread = text
        self._wake.set()

    async def _read_newest(self) -> None:
        text, self._unread = self._unread, None
        if text is not None:
            await self._in_turn(partial(self._read, text))

    def _read(self, text: str) -> None:
        """Read a text of the hand-over. An unreadable text changes nothing."""
        try:
            entries = handover.decode(text)
        except handover.Unreadable as error:
            logger.warning("pushes not read", extra={"error": str(error)})
            return
        self.told(entry.told for entry in entries if entry.id not in self._known)
        self._known = frozenset(entry.id for entry in entries)

    def told(self, pushes: Iterable[Told]) -> None:
        for each in pushes:
            if len(self._waiting) < MOST_WAITING or each.push in self._waiting:
                self._waiting[each.push] = each
            else:
                self._count(each, Outcome.LIMITED)
        self._wake.set()

    async def run(self) -> None:
        """Ask registries about new pushes, and again when `Debounce` says that it is due."""
        while True:
            await self._read_newest()
            while self._waiting:
                told = self._waiting.pop(next(iter(self._waiting)))
                await self._in_turn(partial(self._ask, told))
                await self._read_newest()
            for push in self._debounce.due(self._clock()):
                await self._in_turn(partial(self._pushed, push))
            then = self._debounce.next()
            self._wake.clear()
            if self._waiting or self._unread is not None:
                continue
            try:
                delay = None if then is None else max(0.0, then - self._clock())
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _in_turn(self, work: Callable[[], object]) -> None:
        """Do the work, then sleep, so that the work gets only `SHARE` of the loop's time."""
        began = time.monotonic()
        try:
            work()
        except Exception:
            # An unexpected error must not end the loop that handles all pushes.
            logger.exception("registry not asked about push")
        await asyncio.sleep((time.monotonic() - began) * (1 / SHARE - 1))

    def _ask(self, told: Told) -> None:
        now = self._clock()
        if self._debounce.holds(told.push, now):
            self._count(told, Outcome.DEBOUNCED)
            return
        images = self._pushed(told.push)
        if not images:
            self._count(told, Outcome.UNMATCHED)
            return
        self._debounce.asked(told.push, now)
        self._count(told, Outcome.ASKED)
        logger.info(
            "push",
            extra={
                "receiver": told.receiver,
                "repository": f"{told.push.registry}/{told.push.repository}",
                "tag": told.push.tag,
                "images": images,
            },
        )

    def _count(self, told: Told, outcome: Outcome) -> None:
        # The source is a label of a metric: the other process must not be able to add values.
        self._observe(told.source if told.source in self._sources else "unknown", outcome)
