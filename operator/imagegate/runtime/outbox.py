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
"""Seconds between two writes: however many pushes come, the API server gets two writes a second."""
LAST_RETRY = 15.0


class Outbox:
    def __init__(self, pushes: Pushes) -> None:
        self._pushes = pushes
        self._waiting: dict[Push, Entry] = {}
        self._wake = asyncio.Event()
        self._mine = secrets.token_hex(4)
        self._count = 0

    def add(self, told: Sequence[Told]) -> bool:
        """All or none; False where there is no room."""
        if len(self._waiting) + len(told) > MOST:
            return False
        for each in told:
            self._count += 1
            # A push that waits already is told of once, under the new id.
            self._waiting[each.push] = Entry(f"{self._mine}-{self._count}", each)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Hand over what comes, for ever: what fails is tried again, with a back-off."""
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
        """One write of what waits, at most as much as the leader reads at once. Raises KubeError,
        and then nothing is lost.
        """
        some = dict(list(self._waiting.items())[: handover.MOST])
        if not some:
            return
        text, version = await self._pushes.get()
        try:
            earlier = handover.decode(text)
        except handover.Unreadable:
            earlier = ()  # Whoever wrote that has overwritten it.
        kept = [entry for entry in earlier if entry.told.push not in some]
        try:
            await self._pushes.replace(handover.encode([*kept, *some.values()]), version)
        except Conflict:
            return  # The other replica was faster: the next round comes soon.
        for push, entry in some.items():
            # Told again during the write: that is a push of its own.
            if self._waiting.get(push) is entry:
                del self._waiting[push]
