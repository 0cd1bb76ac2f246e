"""Large documents: how many may be in memory at once, and how they become objects.

A registry decides how large a document is and what is in it. 4 MiB of `{},{},…` become 100 MB of
objects; hundreds of images may be asked about at the same time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

SMALL = 64 * 1024
"""Bytes up to which a document is read and parsed at once. One of 300 layers is as large."""
AT_ONCE = 4
"""Larger documents in memory at the same time, of all registries."""
AT_ONCE_OF_ONE = 2
"""The same, of one registry: a registry that sends slowly leaves places to the others."""
LONGEST_READ = 10.0
"""Seconds that the rest of a large document may take, from the moment when it has its place."""
MOST_PARTS = 50_000
"""Commas, colons and brackets of a large document: 2,000 layers with nine annotations each have as
many. The bound is on what the parser makes of them."""


class Room:
    """What one question may take up. A place for a large document is taken when it is needed."""

    def __init__(
        self, own: asyncio.Semaphore, places: asyncio.Semaphore, stack: AsyncExitStack
    ) -> None:
        self._own = own
        self._places = places
        self._stack = stack
        self._has_place = False

    async def want(self, size: int) -> bool:
        """Wait until so many bytes may be in memory; whether a place was taken for that."""
        if size <= SMALL or self._has_place:
            return False
        await self._stack.enter_async_context(self._own)
        await self._stack.enter_async_context(self._places)
        self._has_place = True
        return True


class Rooms:
    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def open(self, registry: str) -> AsyncIterator[Room]:
        """For as long as a question is asked and its answer is read."""
        own = self._own.get(registry)
        if own is None:
            own = self._own[registry] = asyncio.Semaphore(AT_ONCE_OF_ONE)
        async with AsyncExitStack() as stack:
            yield Room(own, self._places, stack)


def has_too_many_parts(body: bytes) -> bool:
    return len(body) > SMALL and sum(map(body.count, (b",", b":", b"{", b"["))) > MOST_PARTS


async def parse(body: bytes) -> object:
    """JSON, or None for what is none or has too many parts; a large one outside of the loop."""
    if len(body) <= SMALL:
        return _parse(body)
    return await asyncio.to_thread(_parse, body)


def _parse(body: bytes) -> object:
    if has_too_many_parts(body):
        return None
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found
