"""Clocks: for how many seconds a statement has been true without interruption."""

from __future__ import annotations

from tests.simulation.loop import elapsed


class Clocks:
    """A clock has a kind and a subject, which starts with the name of a prefetch, node or pod."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}
        self._looked_at: set[tuple[str, str]] = set()
        """The clocks that were read in this tick."""

    def begin_tick(self) -> None:
        self._looked_at.clear()

    def end_tick(self) -> None:
        # Stop all other clocks: their subjects were deleted, or their rules do not apply now.
        self._since = {key: at for key, at in self._since.items() if key in self._looked_at}

    def seconds(self, kind: str, subject: str, true: bool) -> float:
        """For how many seconds a statement has been true in every tick. A tick that does not call
        this stops the clock, too.
        """
        self._looked_at.add((kind, subject))
        if not true:
            self._since.pop((kind, subject), None)
            return 0.0
        return elapsed() - self._since.setdefault((kind, subject), elapsed())

    def since(self, kind: str, subject: str) -> float:
        """When a clock was started; the present time, if it does not run."""
        return self._since.get((kind, subject), elapsed())

    def stop(self, kind: str) -> None:
        """Stop all clocks of a kind."""
        self._since = {key: at for key, at in self._since.items() if key[0] != kind}

    def forget(self, prefetch: str) -> None:
        """Stop the clocks of a deleted prefetch, so that a new one with this name starts at 0."""
        for kind, subject in list(self._since):
            if subject.partition(" ")[0] == prefetch:
                del self._since[kind, subject]
