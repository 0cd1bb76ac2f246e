"""Clocks: for how many seconds something has been so without a break."""

from __future__ import annotations

from tests.simulation.loop import elapsed


class Clocks:
    """Each clock has a kind and a subject. A subject begins with the name of its prefetch."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}
        self._looked_at: set[tuple[str, str]] = set()
        """The clocks that this tick has looked at."""

    def begin_tick(self) -> None:
        self._looked_at.clear()

    def end_tick(self) -> None:
        # The subject of any other clock is gone, or its rule does not apply now.
        self._since = {key: at for key, at in self._since.items() if key in self._looked_at}

    def seconds(self, kind: str, subject: str, true: bool) -> float:
        """For how many seconds something has been so without a break. A tick that does not ask is
        a break, too.
        """
        self._looked_at.add((kind, subject))
        if not true:
            self._since.pop((kind, subject), None)
            return 0.0
        return elapsed() - self._since.setdefault((kind, subject), elapsed())

    def since(self, kind: str, subject: str) -> float:
        """When a clock was started; now, if it does not run."""
        return self._since.get((kind, subject), elapsed())

    def stop(self, kind: str) -> None:
        """Stop all clocks of a kind."""
        self._since = {key: at for key, at in self._since.items() if key[0] != kind}

    def forget(self, prefetch: str) -> None:
        """A prefetch is gone: its clocks count for no other of its name."""
        for kind, subject in list(self._since):
            if subject.partition(" ")[0] == prefetch:
                del self._since[kind, subject]
