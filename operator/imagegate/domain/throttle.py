"""Limits the pulls at a time: the limit falls when a registry refuses pulls."""

from __future__ import annotations

from dataclasses import dataclass, replace

WINDOW = 60.0
"""Seconds for which attempts are counted together."""
BURST = 0.1
"""Share of refused attempts in the window above which the limit is halved."""
PAUSE = 15.0
"""Seconds between two halvings, because a halving takes time to have an effect."""
REFUSALS = frozenset({"Throttled", "RegistryUnreachable", "RegistryError"})
"""Reasons of failures that fewer pulls at a time may prevent."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Additive increase, multiplicative decrease of the pulls at a time.

    In memory only: a new leader begins without a limit and learns it again.
    """

    limit: int | None = None
    """Nodes that may pull at once, below maxParallel; None: maxParallel."""
    halved_at: float = float("-inf")
    refused: tuple[float, ...] = ()
    succeeded: tuple[float, ...] = ()
    """When attempts were refused and when they succeeded, within the window."""

    def bound(self, parallel: int) -> int:
        return parallel if self.limit is None else max(1, min(parallel, self.limit))

    def after_refusal(self, now: float, parallel: int) -> Throttle:
        """One more pull was refused while ``parallel`` were allowed."""
        seen = self._recent(now, refused=(*self.refused, now))
        attempts = len(seen.refused) + len(seen.succeeded)
        burst = len(seen.refused) > 1 and len(seen.refused) > BURST * attempts
        half = self.bound(parallel) // 2
        if not burst or not half or now < self.halved_at + PAUSE:
            return seen
        return replace(seen, limit=half, halved_at=now)

    def after_success(self, now: float, parallel: int) -> Throttle:
        """One more node is cached. The limit grows by one, and ends when it reaches maxParallel."""
        seen = self._recent(now, succeeded=(*self.succeeded, now))
        if self.limit is None:
            return seen
        grown = self.limit + 1
        return replace(seen, limit=grown if grown < parallel else None)

    def _recent(
        self,
        now: float,
        *,
        refused: tuple[float, ...] | None = None,
        succeeded: tuple[float, ...] | None = None,
    ) -> Throttle:
        def within(times: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(at for at in times if at > now - WINDOW)[-1000:]

        return replace(
            self,
            refused=within(self.refused if refused is None else refused),
            succeeded=within(self.succeeded if succeeded is None else succeeded),
        )
