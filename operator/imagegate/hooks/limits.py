"""Limits for deliveries: rate limit, duplicates, and debouncing of requests to registries.

Pure: the caller passes the time, in monotonic seconds. All memory is limited.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from imagegate.hooks.event import Push


class Bucket:
    """A token bucket: ``rate`` a second on average, and ``burst`` at once."""

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
    """The ids of past deliveries, each kept for some time. When full, forgets the oldest first."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def forget(self, receiver: str, delivery: str) -> None:
        """Forget a delivery that could not be accepted, so that its repetition counts as new."""
        self._ends.pop(_key(receiver, delivery), None)

    def again(self, receiver: str, delivery: str, now: float) -> bool:
        """Whether this delivery is a repetition. Records it."""
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
    """A digest, because the sender chooses how long its ids are."""
    return hashlib.sha256(f"{receiver}\n{delivery}".encode("utf-8", "surrogatepass")).digest()


@dataclass(slots=True)
class _Window:
    asked: float
    """Time of the last request to the registry."""
    due: float | None
    """Time of the next request; None: no request is due."""
    wanted: float
    """A request before this time may be too early to see the last push."""


class Debounce:
    """Decides when the registry is asked about a push.

    It is asked immediately, again ``soon`` seconds later, and again ``quiet`` seconds after the
    last push, because registries report a push before the tag is visible. Docker Distribution
    always does so, in the handler that then moves the tag (registry/handlers/manifests.go,
    PutManifest). Except for the request after ``soon`` seconds, two requests about the same tag are
    at least ``quiet`` seconds apart.
    """

    def __init__(self, soon: float, quiet: float, most: int) -> None:
        self._soon = soon
        self._quiet = quiet
        self._most = most
        self._windows: dict[Push, _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def holds(self, push: Push, now: float) -> bool:
        """Whether to wait with this push, which `due` will return. If False, ask now."""
        self._sweep(now)
        window = self._windows.get(push)
        if window is None:
            return False
        window.wanted = now + self._quiet
        if window.due is None:
            window.due = window.asked + self._quiet
        return True

    def asked(self, push: Push, now: float) -> None:
        """Record the first request about a push, unless too many pushes are recorded."""
        if len(self._windows) < self._most:
            self._windows[push] = _Window(now, now + self._soon, now + self._quiet)

    def due(self, now: float) -> list[Push]:
        """The pushes to ask about now. They are recorded as asked."""
        found = []
        for push, window in self._windows.items():
            if window.due is not None and window.due <= now:
                found.append(push)
                window.asked = now
                window.due = now + self._quiet if now < window.wanted else None
        self._sweep(now)
        return found

    def next(self) -> float | None:
        """Time at which `due` will return a push; None: no push waits."""
        return min((w.due for w in self._windows.values() if w.due is not None), default=None)

    def _sweep(self, now: float) -> None:
        over = [
            push
            for push, window in self._windows.items()
            if window.due is None and now >= window.asked + self._quiet
        ]
        for push in over:
            del self._windows[push]
