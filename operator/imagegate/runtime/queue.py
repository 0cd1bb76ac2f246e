"""A keyed work queue in the manner of client-go's workqueue, for one event loop.

A key is in the queue at most once. If a key is added while a worker works on it, it is worked on
again afterwards, and never by two workers at a time. A key that fails is queued again after a
back-off, which grows.

Invariant: **no worker sleeps while a key that it may take is queued.** `add` gives a key directly
to a sleeping worker that may take it, and queues the key only if there is no such worker. A worker
goes to sleep only if no key that it may take is queued. So there is no separate wake-up call that
could be lost or reach the wrong worker.

A key is therefore in exactly one of these states: unknown, queued (`_urgent`, `_ordinary`),
assigned to a worker that has not begun yet (`_assigned`), or being worked on (`_active`; with a
note in `_again` if it was added meanwhile). In each state it may also have a timer. An unknown key
uses no memory: `_failures` has only keys whose last attempt failed, and each of them has a timer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from imagegate.errors import ImagegateError

logger = logging.getLogger(__name__)

Handle = Callable[[str], Awaitable[None]]
"""Works on one key. If it raises, the key is worked on again, with a back-off."""
Observe = Callable[[float], None]
"""Takes a duration in seconds."""

FIRST_RETRY = 0.1
LAST_RETRY = 60.0
LAST_URGENT_RETRY = 3.0
"""Seconds until an urgent key is tried again at most: a held node waits for it."""
KICK_SPREAD = 1.0
"""Seconds over which the keys in back-off are spread when `kick` ends their back-offs."""


@dataclass(frozen=True, slots=True)
class _Queued:
    """A key that waits for a worker, or was given to a worker that has not begun yet."""

    since: float
    urgent: bool


@dataclass(frozen=True, slots=True)
class _Timer:
    """A key that will be added later."""

    when: float
    handle: asyncio.TimerHandle
    urgent: bool
    failed: bool
    """Whether the key is in back-off, rather than planned for that time."""


class _Worker:
    """A worker that sleeps until it is given a key."""

    def __init__(self) -> None:
        self.given: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class KeyedQueue:
    """Keys of one kind, and the workers that take them.

    Urgent keys have workers of their own, so that the release of a node never waits for
    thousands of nodes that are not held. The other workers take urgent keys first, too.
    """

    def __init__(
        self,
        name: str,
        *,
        workers: int,
        urgent_workers: int = 0,
        observers: tuple[Observe, Observe] | None = None,
    ) -> None:
        """``observers``: receive how long a key has waited, and how long the work on it took."""
        self.name = name
        self.adds = 0
        self.retries = 0
        self._observe_wait, self._observe_work = observers or (_ignore, _ignore)
        self._workers = workers
        self._urgent_workers = urgent_workers
        # Dictionaries keep the order in which keys were added, and remove any key in O(1).
        self._urgent: dict[str, _Queued] = {}
        self._ordinary: dict[str, _Queued] = {}
        self._assigned: dict[str, _Queued] = {}
        self._active: set[str] = set()
        self._again: dict[str, bool] = {}
        self._timers: dict[str, _Timer] = {}
        self._failures: dict[str, int] = {}
        self._asleep: dict[_Worker, None] = {}
        self._asleep_urgent: dict[_Worker, None] = {}

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ordinary) + len(self._assigned)

    def add(self, key: str, *, delay: float = 0.0, urgent: bool = False) -> None:
        """Work on the key, now or in ``delay`` seconds. The earliest of several times counts. If
        one of several calls is urgent, the key is urgent.
        """
        if delay > 0:
            self._add_later(key, delay, urgent=urgent)
            return
        urgent = self._cancel_timer(key) or urgent
        if key in self._active:
            self._again[key] = self._again.get(key, False) or urgent
        elif key in self._assigned:
            self._assigned[key] = _Queued(self._assigned[key].since, self._is_urgent(key, urgent))
        elif key in self._urgent:
            pass
        elif key in self._ordinary:
            if urgent and self._urgent_workers:
                since = self._ordinary.pop(key).since
                self._offer(key, _Queued(since, urgent=True))
        else:
            self.adds += 1
            urgent = urgent and self._urgent_workers > 0
            self._offer(key, _Queued(time.monotonic(), urgent))

    def kick(self) -> None:
        """End the back-offs, spread over `KICK_SPREAD`, because the cause of the failures ended."""
        loop = asyncio.get_running_loop()
        for key, timer in list(self._timers.items()):
            when = loop.time() + random.uniform(0, KICK_SPREAD)  # noqa: S311
            if timer.failed and when < timer.when:
                self._failures.pop(key, None)
                self._set_timer(key, when, urgent=timer.urgent, failed=True)

    async def run(self, handle: Handle) -> None:
        """Work on the keys until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work(handle, urgent_only=False))
            for _ in range(self._urgent_workers):
                group.create_task(self._work(handle, urgent_only=True))

    # ---- keys

    def _offer(self, key: str, entry: _Queued) -> None:
        """Give the key to a sleeping worker that may take it, or else queue it."""
        # Workers for urgent keys only come first, because the other workers can take any key.
        lanes = (self._asleep_urgent, self._asleep) if entry.urgent else (self._asleep,)
        worker = next((worker for lane in lanes for worker in _drained(lane)), None)
        if worker is not None:
            self._assigned[key] = entry
            worker.given.set_result(key)
        else:
            (self._urgent if entry.urgent else self._ordinary)[key] = entry

    def _is_urgent(self, key: str, urgent: bool) -> bool:
        return self._assigned[key].urgent or (urgent and self._urgent_workers > 0)

    def _add_later(self, key: str, delay: float, *, urgent: bool, failed: bool = False) -> None:
        when = asyncio.get_running_loop().time() + delay
        pending = self._timers.get(key)
        if pending is not None:
            urgent = urgent or pending.urgent
            if pending.when <= when:
                when, failed = pending.when, pending.failed
        self._set_timer(key, when, urgent=urgent, failed=failed)

    def _set_timer(self, key: str, when: float, *, urgent: bool, failed: bool) -> None:
        self._cancel_timer(key)
        loop = asyncio.get_running_loop()
        self._timers[key] = _Timer(when, loop.call_at(when, self.add, key), urgent, failed)

    def _cancel_timer(self, key: str) -> bool:
        """Cancel the key's timer, if it has one. True if it would have added the key as urgent."""
        pending = self._timers.pop(key, None)
        if pending is None:
            return False
        pending.handle.cancel()
        return pending.urgent

    # ---- workers

    async def _take(self, *, urgent_only: bool) -> tuple[str, _Queued]:
        if self._urgent:
            return _first(self._urgent)
        if self._ordinary and not urgent_only:
            return _first(self._ordinary)
        lane, worker = self._asleep_urgent if urgent_only else self._asleep, _Worker()
        lane[worker] = None
        try:
            key = await worker.given
        except asyncio.CancelledError:
            lane.pop(worker, None)
            if worker.given.done() and not worker.given.cancelled():
                # This worker was given the key and cancelled in the same turn of the loop.
                key = worker.given.result()
                self._offer(key, self._assigned.pop(key))
            raise
        return key, self._assigned.pop(key)

    async def _work(self, handle: Handle, *, urgent_only: bool) -> None:
        while True:
            key, entry = await self._take(urgent_only=urgent_only)
            started = time.monotonic()
            self._active.add(key)
            self._observe_wait(started - entry.since)
            try:
                await handle(key)
                self._failures.pop(key, None)
            except Exception as error:  # noqa: BLE001 -- one key must not end the worker
                self._retry(key, error, urgent=entry.urgent)
            finally:
                self._active.discard(key)
                self._observe_work(time.monotonic() - started)
                if key in self._again:
                    self.add(key, urgent=self._again.pop(key))
            # Decisions without requests never wait. Thousands in a row would stop the whole loop.
            await asyncio.sleep(0)

    def _retry(self, key: str, error: Exception, *, urgent: bool) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        self.retries += 1
        last = LAST_URGENT_RETRY if urgent else LAST_RETRY
        delay = min(last, FIRST_RETRY * 2 ** min(count - 1, 16)) * random.uniform(0.8, 1.2)  # noqa: S311
        causes = tuple(_causes(error))
        # An ImagegateError explains itself. Any other error is a bug, so its traceback is logged.
        expected = all(isinstance(cause, ImagegateError) for cause in causes)
        logger.log(
            logging.INFO if expected and count < 4 else logging.WARNING,
            "work failed, will be retried",
            extra={
                "queue": self.name,
                "key": key,
                "retry": count,
                "error": "; ".join(dict.fromkeys(map(str, causes))),
            },
            exc_info=None if expected else error,
        )
        self._add_later(key, delay, urgent=urgent, failed=True)


def _first(queued: dict[str, _Queued]) -> tuple[str, _Queued]:
    key = next(iter(queued))
    return key, queued.pop(key)


def _drained(lane: dict[_Worker, None]) -> Iterator[_Worker]:
    """The sleeping workers of a lane, longest asleep first; each is removed from the lane. A
    cancelled worker that still sleeps is skipped.
    """
    while lane:
        worker = next(iter(lane))
        del lane[worker]
        if not worker.given.done():
            yield worker


def _causes(error: Exception) -> Iterator[Exception]:
    """The errors that a group consists of, or the error itself."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    else:
        yield error


def _ignore(_: float) -> None:
    """Without observers, durations are not measured."""
