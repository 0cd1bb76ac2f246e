"""Whether the watches work: a watch must soon report every object that a list contains.

Silence alone proves nothing, because in an idle cluster there are no events. An event of one kind
proves nothing about the watch of another kind. The resourceVersions of one kind are one sequence,
and a watch reports them in order. So a watch is stale if a list contains an object that is newer
than everything that the watch has reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from imagegate.runtime.clock import Clock

NODES = "nodes"
PREFETCHES = "imageprefetches"
GATES = "nodegates"

DEAD_AFTER = 60.0
"""Seconds after which a stale watch counts as dead. A working watch reports a rollout of 5,000
nodes within some seconds."""
QUIET = 60.0
"""Seconds without an event about any Node after which the Nodes are listed. A kubelet writes its
Node's status every 5 minutes at least, so that in a large cluster this means a dead watch."""


class Versioned(Protocol):
    @property
    def version(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Missed:
    version: int
    """The resourceVersion of the list's newest object."""
    since: float
    confirmed: float
    """When the last list was made that still had an object of this version or newer."""


class Watches:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reported: dict[str, int] = {}
        self._reported_at: dict[str, float] = {}
        self._missed: dict[str, _Missed] = {}

    @property
    def begun(self) -> bool:
        """Whether any watch has reported an object yet."""
        return bool(self._reported)

    @property
    def stale(self) -> bool:
        """Whether a list has shown that a watch is stale, and the watch still is."""
        return any(self._reported.get(kind, 0) < it.version for kind, it in self._missed.items())

    def quiet_since(self, kind: str) -> float:
        """When the watch of this kind last reported an object, in monotonic seconds."""
        return self._reported_at.get(kind, float("-inf"))

    def told(self, kind: str, version: int) -> None:
        """A watch has reported an object of this kind, or its deletion."""
        self._reported[kind] = max(version, self._reported.get(kind, 0))
        self._reported_at[kind] = self._clock.monotonic()

    def listed(self, kind: str, objects: Iterable[Versioned]) -> None:
        """A list of all objects of this kind is complete."""
        newest = max((each.version for each in objects), default=0)
        now, before = self._clock.monotonic(), self._missed.get(kind)
        reported = self._reported.get(kind, 0)
        if newest <= reported:
            self._missed.pop(kind, None)
        elif before is not None and reported < before.version <= newest:
            self._missed[kind] = replace(before, confirmed=now)
        else:
            # The newest object of the earlier list is deleted, so no watch has to report it.
            self._missed[kind] = _Missed(newest, now, now)

    def problem(self) -> str | None:
        """Says which watch is dead; None: no watch is."""
        for kind, it in self._missed.items():
            late = it.confirmed - it.since
            if self._reported.get(kind, 0) < it.version and late >= DEAD_AFTER:
                return f"the watch of {kind} has not reported a change for {late:.0f} s"
        return None
