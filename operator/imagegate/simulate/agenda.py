"""Virtual time: what happens when."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

_SAME = 1e-9
"""Seconds between two events that count as simultaneous."""


class Agenda:
    def __init__(self) -> None:
        self.now = 0.0
        self._entries: list[tuple[float, bool, int, Callable[[], object]]] = []
        self._order = itertools.count()

    @property
    def next_at(self) -> float:
        """When the next action is due; infinity: there is none."""
        return self._entries[0][0] if self._entries else float("inf")

    def add(self, delay: float, action: Callable[[], object], *, last: bool = False) -> None:
        """Run the action in ``delay`` seconds. ``last``: after all others of the same time."""
        heapq.heappush(self._entries, (self.now + delay, last, next(self._order), action))

    def run(self, until: float) -> None:
        """Go to this time, and run all actions that are due."""
        self.now = until
        while self._entries and self._entries[0][0] <= until + _SAME:
            heapq.heappop(self._entries)[3]()
