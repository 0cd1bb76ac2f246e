"""How full the nodes' image file systems are: read when a decision asks, kept for a moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Node
from imagegate.runtime.clock import Clock

logger = logging.getLogger(__name__)

FRESH = 30.0
"""Seconds for which a figure is good: a kubelet measures every 10 to 20 s itself."""
ASK_AGAIN = 120.0
"""Seconds until a kubelet that has not answered at all is asked again."""
TRIES = 5
"""How often a kubelet that has no figures is asked before they are done without: one that has just
started has none for some seconds. One that is out of reach is asked once: somebody waits."""
PAUSE = 2.0
"""Seconds between these."""


class Source(Protocol):
    async def usage(self, node: Node) -> Usage: ...


@dataclass(frozen=True, slots=True)
class _Reading:
    identity: str
    at: float
    usage: Usage
    tries: int


class Disks:
    def __init__(self, source: Source, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._read: dict[str, _Reading] = {}

    def known(self, node: Node) -> Usage | None:
        """The figures, unless they are too old, or may be had by asking once more."""
        found = self._read.get(node.name)
        if found is None or found.identity != node.identity:
            return None
        age = self._clock.monotonic() - found.at
        if not found.usage.problem:
            return found.usage if age < FRESH else None
        if found.usage.passing and found.tries < TRIES:
            return None
        return found.usage if age < ASK_AGAIN else None

    async def read(self, node: Node) -> Usage:
        """Ask, unless that was a moment ago and without success. Never raises."""
        before = self._read.get(node.name)
        tries = 0
        if before is not None and before.identity == node.identity and before.usage.problem:
            if self._clock.monotonic() - before.at < PAUSE:
                return before.usage
            tries = before.tries
        usage = await self._source.usage(node)
        tries = tries + 1 if usage.problem else 0
        if tries == (TRIES if usage.passing else 1):
            logger.warning(
                "disk usage not known", extra={"node": node.name, "problem": usage.problem}
            )
        self._read[node.name] = _Reading(node.identity, self._clock.monotonic(), usage, tries)
        return usage

    async def survey(self, nodes: Sequence[Node]) -> dict[str, Usage]:
        """Of every one of these nodes, by name, be it why it could not be read. Takes as long as
        the slowest of them, so each figure is kept from the moment at which it was read.
        """
        usages = await asyncio.gather(*(self._patiently(node) for node in nodes))
        return {node.name: usage for node, usage in zip(nodes, usages, strict=True)}

    async def _patiently(self, node: Node) -> Usage:
        usage = self.known(node) or await self.read(node)
        for _ in range(1, TRIES):
            if not usage.passing:
                break
            await asyncio.sleep(PAUSE)
            usage = await self.read(node)
        return usage

    def forget(self, name: str) -> None:
        self._read.pop(name, None)
