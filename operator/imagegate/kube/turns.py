"""The limit of the requests in flight: urgent requests get a free connection before the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """Like `asyncio.Semaphore`, with two queues: waiters of the urgent queue come first."""

    def __init__(self, count: int) -> None:
        """``count``: how many turns there are at a time."""
        self._free = count
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._ordinary: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def turn(self, *, urgent: bool, timeout: float) -> AsyncIterator[None]:
        """Wait for a turn, and have it within this context. Raises TimeoutError after ``timeout``
        seconds without a turn.
        """
        async with asyncio.timeout(timeout):
            await self._acquire(self._urgent if urgent else self._ordinary)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, waiters: deque[asyncio.Future[None]]) -> None:
        if self._free:
            self._free -= 1
            return
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self._release()  # it got a turn, and was cancelled in the same turn of the loop
            raise

    def _release(self) -> None:
        for waiters in (self._urgent, self._ordinary):
            while waiters:
                given = waiters.popleft()
                if not given.done():  # else its request has been cancelled
                    given.set_result(None)
                    return
        self._free += 1
