"""Whether this leader sees enough of the cluster to continue, and to hold nodes."""

from __future__ import annotations

from imagegate.runtime import watches
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.resync import Resync


class Health:
    def __init__(self, known: Knowledge, resync: Resync, period: float) -> None:
        """``period``: seconds between two resyncs."""
        self._clock = known.clock
        self._store = known.store
        self._resync = resync
        self._period = period

    def problem(self) -> str | None:
        """The problem of this leader that a restart may fix; None: there is none."""
        now = self._clock.monotonic()
        if now - self._resync.last > max(3 * self._period, 120.0):
            return "no resync has succeeded for three periods"
        return self._store.watches.problem()

    def unfit_to_hold(self) -> str | None:
        """Why no node may be held: this process might release it too late. None: it may be held."""
        if problem := self.problem():
            return problem
        if not self._store.watches.begun:
            return "no watch has begun yet"
        gate = self._store.gate
        silence = gate.silence if gate is not None else float("inf")
        seen = max(self._resync.last, self._store.watches.quiet_since(watches.NODES))
        if self._clock.monotonic() - seen > max(silence, 2 * watches.QUIET):
            return "neither a list nor the watch of Nodes has said anything for silenceSeconds"
        return None
