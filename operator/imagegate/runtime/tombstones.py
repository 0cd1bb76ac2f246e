"""Which of two sightings of an object is newer, also after the object has ended.

Watches, lists and answers to the operator's own requests arrive in any order. An older one must
neither replace what is known nor bring a deleted object back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from imagegate.runtime.clock import Clock

LATE = 120.0
"""Seconds by which an answer to the operator's own request may be late. A tombstone is kept for
this time after the start of a list that does not contain the object."""
TOMBSTONES = 20_000
"""How many tombstones are kept at most; the oldest are dropped first."""


class Versioned(Protocol):
    @property
    def uid(self) -> str: ...
    @property
    def version(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The end of an object. A list or an answer from before it must not bring the object back."""

    uid: str
    version: int
    """The resourceVersion of the deletion, or the last that was known of the object."""
    at: float
    """Monotonic."""

    returns: bool
    """Whether an object of this uid may be seen again. A puller pod whose label is removed leaves
    the watch as if it were deleted, and comes back with a newer version when the label does."""

    def covers(self, seen: Versioned) -> bool:
        if seen.uid == self.uid and not self.returns:
            return True
        return 0 < seen.version <= self.version


class Tombstones:
    """Orders the sightings of objects: when each was seen last, and how the ended ones ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, object], float] = {}
        self._ended: dict[tuple[str, object], Tombstone] = {}

    def stale(self, kind: str, key: object, old: Versioned | None, seen: Versioned) -> bool:
        """Whether ``seen`` is older than what is known. The resourceVersions of one kind are one
        sequence, so that they are compared whatever the uid. 0 is a version that is not known.
        """
        if old is not None and 0 < seen.version < old.version:
            return True
        ended = self._ended.get((kind, key))
        return ended is not None and ended.covers(seen)

    def see(self, kind: str, key: object) -> None:
        """The object exists now."""
        self._seen[kind, key] = self._clock.monotonic()

    def forget(self, kind: str, key: object) -> None:
        self._seen.pop((kind, key), None)

    def seen_since(self, kind: str, key: object, since: float) -> bool:
        """Whether the object was seen at ``since`` (monotonic) or later."""
        return self._seen.get((kind, key), 0.0) >= since

    def end(
        self, kind: str, key: object, old: Versioned | None, uid: str | None, version: int
    ) -> bool:
        """Note the end of an object. False where the store knows another object of that name."""
        if old is not None and uid is not None and old.uid != uid:
            return False
        if old is not None:
            uid, version = old.uid, max(version, old.version)
        before = self._ended.get((kind, key))
        if uid and (before is None or before.uid == uid or before.version <= version):
            self._ended.pop((kind, key), None)
            self._ended[kind, key] = Tombstone(
                uid,
                # A second report of the deletion, without its version, must not lower the version.
                max(version, before.version) if before is not None else version,
                self._clock.monotonic(),
                returns=kind == "pod",
            )
            if len(self._ended) > TOMBSTONES:
                del self._ended[next(iter(self._ended))]
        return old is not None

    def prune(self, since: float) -> None:
        """Drop the tombstones that no late answer needs any more, after lists that were begun at
        ``since`` (monotonic).
        """
        for ended in [k for k, stone in self._ended.items() if stone.at < since - LATE]:
            del self._ended[ended]
