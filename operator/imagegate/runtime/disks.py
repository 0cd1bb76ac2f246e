"""Usage of the nodes' image file systems: read when a decision needs it, kept for some seconds.

A kubelet that does not answer, for instance because a NetworkPolicy or a security group drops what
the operator sends to its port, costs seconds. After several nodes in a row that did not answer, the
operator does not wait for the rest of the fleet: it asks one kubelet every few seconds, until one
answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from imagegate.domain.disk import NOT_READ, Usage
from imagegate.domain.facts import Node
from imagegate.runtime.clock import Clock

logger = logging.getLogger(__name__)

FRESH = 30.0
"""Seconds for which a figure is used. A kubelet itself measures every 10 to 20 s."""
ASK_AGAIN = 120.0
"""Seconds until a kubelet that has not answered at all is asked again."""
TRIES = 5
"""How often a kubelet without figures is asked before the operator decides without them. A kubelet
that has just started has no figures for some seconds. An unreachable kubelet is asked once, because
the pull waits for the answer."""
PAUSE = 2.0
"""Seconds between two of these tries."""
CONCURRENCY = 32
"""Kubelets that are asked at a time."""
SURVEYED = 16
"""Kubelets that a survey asks at a time: fewer, so that joining nodes do not wait for a survey."""
SLOW = 0.5
"""Seconds after which a failure counts as no answer. A faster failure costs no time."""
SILENT = 16
"""Nodes in a row without an answer after which kubelets in general count as unreachable."""
PROBE = 5.0
"""Seconds between two requests while kubelets count as unreachable."""


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
        self._turn = asyncio.Semaphore(CONCURRENCY)
        self._silent: set[str] = set()
        """Nodes without an answer of the kubelet since the last answer of any; at most `SILENT`."""
        self._probed_at = float("-inf")

    def known(self, node: Node) -> Usage | None:
        """The figures; None if they are too old, or if another try may succeed."""
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
        """Ask the kubelet, unless a try has failed less than `PAUSE` ago. Never raises."""
        before = self._read.get(node.name)
        tries = 0
        if before is not None and before.identity == node.identity and before.usage.problem:
            if self._clock.monotonic() - before.at < PAUSE:
                return before.usage
            tries = before.tries
        async with self._turn:
            usage = self._spared() or await self._ask(node)
        tries = tries + 1 if usage.problem else 0
        logged = usage == NOT_READ or self._out_of_reach()
        if tries == (TRIES if usage.passing else 1) and not logged:
            logger.warning(
                "disk usage not known", extra={"node": node.name, "problem": usage.problem}
            )
        self._read[node.name] = _Reading(node.identity, self._clock.monotonic(), usage, tries)
        return usage

    async def survey(self, nodes: Sequence[Node]) -> dict[str, Usage]:
        """The usage of each of these nodes, by name, or why it could not be read. A survey takes as
        long as its slowest node, so the first figures are returned even if they are old by then.
        """
        turn = asyncio.Semaphore(SURVEYED)

        async def one(node: Node) -> Usage:
            async with turn:
                return await self._patiently(node)

        usages = await asyncio.gather(*(one(node) for node in nodes))
        return {node.name: usage for node, usage in zip(nodes, usages, strict=True)}

    def _out_of_reach(self) -> bool:
        """Whether kubelets in general do not answer."""
        return len(self._silent) >= SILENT

    def _spared(self) -> Usage | None:
        """The answer without a request, while kubelets are unreachable; None: ask the kubelet."""
        now = self._clock.monotonic()
        if not self._out_of_reach() or now - self._probed_at >= PROBE:
            self._probed_at = now
            return None
        return Usage(
            problem=f"the kubelets of {SILENT} nodes in a row did not answer: allow the operator to"
            " reach their port (10250) in NetworkPolicies, security groups and firewalls"
        )

    async def _ask(self, node: Node) -> Usage:
        began = self._clock.monotonic()
        usage = await self._source.usage(node)
        if not usage.problem or usage.passing or self._clock.monotonic() - began < SLOW:
            self._silent.clear()
        elif not self._out_of_reach():
            self._silent.add(node.name)
            if self._out_of_reach():
                logger.warning("kubelets are not reachable", extra={"problem": usage.problem})
        return usage

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
