"""A keyed work queue in the manner of client-go's workqueue, for one event loop.

A key is in the queue at most once; a key that is added while it is being worked on is worked on
again afterwards, never twice at a time; a key that fails comes back later and later.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from imagegate.errors import ImagegateError

logger = logging.getLogger(__name__)

FIRST_RETRY = 0.1
LAST_RETRY = 60.0


class KeyedQueue:
    """Keys of one kind, and the workers that take them.

    Urgent keys have workers of their own, so that the release of a node never waits behind
    thousands of nodes that only have to be looked at.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[str], Awaitable[None]],
        *,
        workers: int,
        urgent_workers: int = 0,
    ) -> None:
        self.name = name
        self.adds = 0
        self.retries = 0
        self._handle = handle
        self._workers = workers
        self._urgent_workers = urgent_workers
        self._urgent: deque[str] = deque()
        self._ready: deque[str] = deque()
        self._queued: set[str] = set()
        self._active: set[str] = set()
        self._again: dict[str, bool] = {}
        self._due: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._failures: dict[str, int] = {}
        self._wake: deque[asyncio.Future[None]] = deque()
        self._wake_urgent: deque[asyncio.Future[None]] = deque()
        self._since: dict[str, float] = {}
        self.observe_wait: Callable[[float], None] = _ignore
        self.observe_work: Callable[[float], None] = _ignore

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, key: str, *, delay: float = 0.0, urgent: bool = False) -> None:
        """Work on the key, now or in ``delay`` seconds. The earliest of several times counts."""
        if delay > 0:
            self._add_later(key, delay, urgent=urgent)
            return
        self._cancel_due(key)
        if key in self._active:
            self._again[key] = self._again.get(key, False) or urgent
            return
        if key in self._queued:
            if urgent and self._urgent_workers and key in self._ready:
                self._ready.remove(key)
                self._urgent.append(key)
                self._notify()
            return
        self.adds += 1
        self._queued.add(key)
        self._since[key] = time.monotonic()
        (self._urgent if urgent and self._urgent_workers else self._ready).append(key)
        self._notify()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work(urgent_only=False))
            for _ in range(self._urgent_workers):
                group.create_task(self._work(urgent_only=True))

    def _add_later(self, key: str, delay: float, *, urgent: bool) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + delay
        pending = self._due.get(key)
        if pending is not None:
            if pending[0] <= when:
                return
            pending[1].cancel()
        self._due[key] = (when, loop.call_at(when, lambda: self._fall_due(key, urgent=urgent)))

    def _fall_due(self, key: str, *, urgent: bool) -> None:
        self._due.pop(key, None)
        self.add(key, urgent=urgent)

    def _cancel_due(self, key: str) -> None:
        pending = self._due.pop(key, None)
        if pending is not None:
            pending[1].cancel()

    def _notify(self) -> None:
        # An urgent key may be taken by any worker; those that take nothing else come first.
        waiters = [self._wake_urgent, self._wake] if self._urgent else [self._wake]
        for queue in waiters:
            while queue:
                future = queue.popleft()
                if not future.done():
                    future.set_result(None)
                    return

    async def _take(self, *, urgent_only: bool) -> str:
        while True:
            if self._urgent:
                return self._urgent.popleft()
            if self._ready and not urgent_only:
                return self._ready.popleft()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            (self._wake_urgent if urgent_only else self._wake).append(future)
            await future

    async def _work(self, *, urgent_only: bool) -> None:
        while True:
            key = await self._take(urgent_only=urgent_only)
            started = time.monotonic()
            self._queued.discard(key)
            self._active.add(key)
            self.observe_wait(started - self._since.pop(key, started))
            try:
                await self._handle(key)
                self._failures.pop(key, None)
            except Exception as error:  # noqa: BLE001 -- one key must not end the worker
                self._retry(key, error)
            finally:
                self._active.discard(key)
                self.observe_work(time.monotonic() - started)
                if key in self._again:
                    self.add(key, urgent=self._again.pop(key))

    def _retry(self, key: str, error: Exception) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        self.retries += 1
        delay = min(LAST_RETRY, FIRST_RETRY * 2 ** min(count - 1, 16)) * random.uniform(0.8, 1.2)  # noqa: S311
        # What is raised on purpose explains itself; anything else is a bug and needs its place.
        expected = isinstance(error, ImagegateError)
        logger.log(
            logging.INFO if expected and count < 4 else logging.WARNING,
            "work failed, will be retried",
            extra={"queue": self.name, "key": key, "retry": count, "error": str(error)},
            exc_info=None if expected else error,
        )
        self._add_later(key, delay, urgent=False)


def _ignore(_: float) -> None:
    """Nobody measures."""
