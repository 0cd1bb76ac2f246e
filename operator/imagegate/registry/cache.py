"""A bounded cache. Concurrent requests for the same key cause only one request."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Holds the `limit` most recently used values, together at most `most_bytes`."""

    def __init__(
        self, limit: int, *, most_bytes: int = 2**63, weigh: Callable[[K, V], int] | None = None
    ) -> None:
        self._limit = limit
        self._most_bytes = most_bytes
        self._weigh = weigh or _weightless
        self._bytes = 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._turns: WeakValueDictionary[K, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        before = self._values.pop(key, None)
        if before is not None:
            self._bytes -= self._weigh(key, before)
        self._values[key] = value
        self._bytes += self._weigh(key, value)
        while len(self._values) > self._limit or self._bytes > self._most_bytes:
            oldest, dropped = self._values.popitem(last=False)
            self._bytes -= self._weigh(oldest, dropped)

    @asynccontextmanager
    async def turn(self, key: K) -> AsyncIterator[None]:
        """A lock for a key. Check the cache again inside, because the previous task may have put
        the value.

        If the previous task failed or was cancelled, the next one asks again: errors are not
        shared.
        """
        lock = self._turns.get(key)
        if lock is None:
            lock = self._turns[key] = asyncio.Lock()
        async with lock:
            yield


def _weightless(_: object, __: object) -> int:
    """For values of about the same size: the limit of their number is enough."""
    return 0
