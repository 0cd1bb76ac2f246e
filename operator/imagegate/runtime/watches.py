"""Whether the watches tell what happens: what lists know, a watch must have told soon after.

Silence proves nothing, because in a cluster at rest nothing happens; and an event of one kind says
nothing about the watch of another. The resourceVersions of one kind are one sequence and a watch
tells them in order, so a list whose newest object is newer than everything that the watch has told
proves that the watch is behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from imagegate.runtime.clock import Clock

NODES = "nodes"
PREFETCHES = "imageprefetches"
GATES = "nodegates"

BEHIND = 60.0
"""Seconds by which a watch may be behind a list. A rollout of 5,000 nodes is told within some."""
QUIET = 60.0
"""Seconds without an event about any Node after which the Nodes are listed. A kubelet writes its
Node's status every 5 minutes at least, so that in a large cluster this means a dead watch."""


class Versioned(Protocol):
    @property
    def version(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Behind:
    version: int
    """The newest object of the list."""
    since: float
    confirmed: float
    """When the last list was made that still had an object as new as that."""


class Watches:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str, int] = {}
        self._told_at: dict[str, float] = {}
        self._behind: dict[str, _Behind] = {}

    @property
    def begun(self) -> bool:
        """Whether any watch has told anything yet."""
        return bool(self._told)

    @property
    def behind(self) -> bool:
        """Whether a list was ahead of a watch, as far as is known."""
        return any(self._told.get(kind, 0) < it.version for kind, it in self._behind.items())

    def quiet_since(self, kind: str) -> float:
        """When the watch of this kind last told anything, in monotonic seconds."""
        return self._told_at.get(kind, float("-inf"))

    def told(self, kind: str, version: int) -> None:
        """A watch has told an object of this kind, or the end of one."""
        self._told[kind] = max(version, self._told.get(kind, 0))
        self._told_at[kind] = self._clock.monotonic()

    def listed(self, kind: str, objects: Iterable[Versioned]) -> None:
        """A list of all objects of this kind is complete."""
        newest = max((each.version for each in objects), default=0)
        now, told, before = self._clock.monotonic(), self._told.get(kind, 0), self._behind.get(kind)
        if newest <= told:
            self._behind.pop(kind, None)
        elif before is not None and told < before.version <= newest:
            self._behind[kind] = replace(before, confirmed=now)
        else:
            # An object of the earlier list that is gone by now need not be told by anybody.
            self._behind[kind] = _Behind(newest, now, now)

    def problem(self) -> str | None:
        """Which watch is dead, if one is."""
        for kind, it in self._behind.items():
            late = it.confirmed - it.since
            if self._told.get(kind, 0) < it.version and late >= BEHIND:
                return f"the watch of {kind} has not told a change for {late:.0f} s"
        return None
