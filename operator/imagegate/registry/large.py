"""Limits for large documents: how many are in memory at once, and how they are parsed.

A registry decides the size and the content of a document. 4 MiB of `{},{},…` become 100 MB of
objects, and hundreds of images may be requested at the same time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

SMALL = 64 * 1024
"""Bytes of the largest document that needs no slot: about the size of a manifest of 300 layers."""
AT_ONCE = 4
"""Slots for larger documents in memory, for all registries together."""
AT_ONCE_OF_ONE = 2
"""Slots of one registry, so that a registry that sends slowly leaves slots to the others."""
LONGEST_READ = 10.0
"""Seconds that the rest of a large document may take, counted from when it has its slot."""
MOST_PARTS = 50_000
"""Largest number of commas, colons and brackets in a large document, which limits the number of
objects that the parser creates. 2,000 layers with nine annotations each have as many."""


class Room:
    """The memory of one request. It takes a slot when its document is larger than `SMALL`."""

    def __init__(
        self, own: asyncio.Semaphore, shared: asyncio.Semaphore, stack: AsyncExitStack
    ) -> None:
        """``own``: slots of the registry; ``shared``: slots of all registries together."""
        self._own = own
        self._shared = shared
        self._stack = stack
        self._has_slot = False

    async def want(self, size: int) -> bool:
        """Wait until the document may have `size` bytes in memory. True if it took a slot."""
        if size <= SMALL or self._has_slot:
            return False
        await self._stack.enter_async_context(self._own)
        await self._stack.enter_async_context(self._shared)
        self._has_slot = True
        return True


class Rooms:
    def __init__(self) -> None:
        self._shared = asyncio.Semaphore(AT_ONCE)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def open(self, registry: str) -> AsyncIterator[Room]:
        """A room for one request, until its answer has been read."""
        own = self._own.get(registry)
        if own is None:
            own = self._own[registry] = asyncio.Semaphore(AT_ONCE_OF_ONE)
        async with AsyncExitStack() as stack:
            yield Room(own, self._shared, stack)


def has_too_many_parts(body: bytes) -> bool:
    return len(body) > SMALL and sum(map(body.count, (b",", b":", b"{", b"["))) > MOST_PARTS


async def parse(body: bytes) -> object:
    """Parse JSON; None if it is invalid or has too many parts. Large documents are parsed in a
    thread.
    """
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
