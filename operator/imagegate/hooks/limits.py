"""What keeps deliveries from doing harm: how many, how often, and each only once.

Pure: times are monotonic seconds that the caller brings. Everything is bounded.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from imagegate.hooks.event import Push


class Bucket:
    """So many a second on average, and so many at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = float("-inf")

    def take(self, now: float) -> bool:
        filled = self._rate * (now - self._at) if self._at > float("-inf") else self._burst
        self._level = min(self._burst, self._level + filled)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Seen:
    """What was delivered already. Forgets after a while, and the oldest first when it is full."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def forget(self, receiver: str, delivery: str) -> None:
        """It could not be taken, and is new when it comes again."""
        self._ends.pop(_key(receiver, delivery), None)

    def again(self, receiver: str, delivery: str, now: float) -> bool:
        """Whether this one was there before; from now on it was."""
        while self._ends:
            oldest, end = next(iter(self._ends.items()))
            if end > now and len(self._ends) < self._most:
                break
            del self._ends[oldest]
        key = _key(receiver, delivery)
        known = key in self._ends
        self._ends.setdefault(key, now + self._seconds)
        return known


def _key(receiver: str, delivery: str) -> bytes:
    """The sender chooses how long its names are: only their digests are remembered."""
    return hashlib.sha256(f"{receiver}\n{delivery}".encode("utf-8", "surrogatepass")).digest()


@dataclass(slots=True)
class _Window:
    asked: float
    """When the registry was asked last."""
    due: float | None
    """When it has to be asked again."""
    wanted: float
    """No ask before this says enough about the last push."""


class Debounce:
    """When the registry is asked about what was pushed.

    At once, ``soon`` after that, and again ``quiet`` seconds after the last push, because
    registries tell of a push before the tag is to be seen: Docker Distribution does so always, in
    the handler that then moves the tag (registry/handlers/manifests.go, PutManifest). Apart from
    that one about the same tag never twice within ``quiet`` seconds.
    """

    def __init__(self, soon: float, quiet: float, most: int) -> None:
        self._soon = soon
        self._quiet = quiet
        self._most = most
        self._windows: dict[Push, _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def holds(self, push: Push, now: float) -> bool:
        """Whether to wait with this one: `due` will name it. Otherwise it is to be asked now."""
        self._sweep(now)
        window = self._windows.get(push)
        if window is None:
            return False
        window.wanted = now + self._quiet
        if window.due is None:
            window.due = window.asked + self._quiet
        return True

    def asked(self, push: Push, now: float) -> None:
        """It was asked now, for the first time. Not remembered when there are too many."""
        if len(self._windows) < self._most:
            self._windows[push] = _Window(now, now + self._soon, now + self._quiet)

    def due(self, now: float) -> list[Push]:
        """What is to be asked now; it counts as asked."""
        found = []
        for push, window in self._windows.items():
            if window.due is not None and window.due <= now:
                found.append(push)
                window.asked = now
                window.due = now + self._quiet if now < window.wanted else None
        self._sweep(now)
        return found

    def next(self) -> float | None:
        """When `due` will name something."""
        return min((w.due for w in self._windows.values() if w.due is not None), default=None)

    def _sweep(self, now: float) -> None:
        over = [
            push
            for push, window in self._windows.items()
            if window.due is None and now >= window.asked + self._quiet
        ]
        for push in over:
            del self._windows[push]
