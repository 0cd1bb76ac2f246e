"""Pushes that wait to be handed over to the leader, in the process that receives them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from imagegate.hooks import handover
from imagegate.hooks.event import Push, Told
from imagegate.hooks.handover import Entry
from imagegate.kube.errors import Conflict, KubeError
from imagegate.kube.pushes import Pushes

logger = logging.getLogger(__name__)

MOST = 1000
"""Pushes that wait. More are refused, and the sender tries again."""
SPACING = 0.5
"""Seconds between two writes, so that the API server gets at most two writes a second."""
LAST_RETRY = 15.0


class Outbox:
    def __init__(self, pushes: Pushes) -> None:
        self._pushes = pushes
        self._waiting: dict[Push, Entry] = {}
        self._wake = asyncio.Event()
        self._mine = secrets.token_hex(4)
        self._count = 0

    def add(self, told: Sequence[Told]) -> bool:
        """Add all pushes, or none: then the outbox is full, and the result is False."""
        if len(self._waiting) + len(told) > MOST:
            return False
        for each in told:
            self._count += 1
            # A push that already waits is handed over once, under the new id.
            self._waiting[each.push] = Entry(f"{self._mine}-{self._count}", each)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Hand over pushes until cancelled. A failed write is repeated, with a back-off."""
        failures = 0
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            try:
                await self.flush()
                failures = 0
            except KubeError as error:
                if not failures:
                    logger.warning("pushes not handed over", extra={"error": str(error)})
                failures += 1
            await asyncio.sleep(min(LAST_RETRY, SPACING * 2 ** min(failures, 6)))

    async def flush(self) -> None:
        """Write the waiting pushes, at most as many as the leader reads at once. No push is lost if
        it raises a KubeError.
        """
        some = dict(list(self._waiting.items())[: handover.MOST])
        if not some:
            return
        text, version = await self._pushes.get()
        try:
            earlier = handover.decode(text)
        except handover.Unreadable:
            earlier = ()  # Another writer has overwritten the earlier pushes.
        kept = [entry for entry in earlier if entry.told.push not in some]
        try:
            await self._pushes.replace(handover.encode([*kept, *some.values()]), version)
        except Conflict:
            return  # The other replica was faster: the next round comes soon.
        for push, entry in some.items():
            # A push that came again during the write is handed over again.
            if self._waiting.get(push) is entry:
                del self._waiting[push]
