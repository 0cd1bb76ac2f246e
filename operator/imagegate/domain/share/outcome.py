"""The result of the decision about a share, and how long the result holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from imagegate.domain import disk
from imagegate.domain.actions import Action, Standing
from imagegate.domain.facts import DaemonSetRef, Prefetch
from imagegate.domain.share.decision import ShareDecision
from imagegate.domain.share.known import Share


@dataclass(frozen=True, slots=True)
class Outcome:
    """See `decision.ShareDecision` for the conclusions."""

    share: Share
    standing: Standing
    cached: bool
    labelled: bool
    evicted: bool
    starting: Mapping[disk.Key, int]
    awaits: Mapping[DaemonSetRef, str]
    actions: tuple[Action, ...]
    decided_at: float
    requeue_at: float | None
    """The time at which to decide again, if no event causes a decision before."""
    lasting: bool
    """Whether the outcome may be reused, see `holds`."""
    queued: int | None
    """See `decision.ShareDecision.queued`."""

    @classmethod
    def of(cls, decision: ShareDecision) -> Outcome:
        # A time in the past needs no new decision, because this decision has considered it.
        later = (at for at in decision.requeue if at > decision.now)
        return cls(
            decision.share,
            decision.standing,
            decision.cached,
            decision.labelled,
            decision.evicted,
            decision.starting or _NOTHING,
            decision.awaits or _NOTHING,
            tuple(decision.actions),
            decision.now,
            min(later, default=None),
            # Actions change the facts, and are not decided twice.
            decision.lasting and not decision.actions,
            decision.queued,
        )

    @property
    def prefetch(self) -> Prefetch:
        return self.share.prefetch

    @property
    def waits_for(self) -> str:
        """The DaemonSet or the slot that its pulls wait for, as text for people."""
        standing = self.standing
        return standing.waits_for or (self.share.slots if standing.wants else "")

    def holds(self, share: Share, queued: int, now: float) -> bool:
        """Whether a decision about this share would now have the same outcome. The other facts
        about the node are compared in `node.shares`. ``queued``: see `known.Site`.
        """
        return (
            self.lasting
            and self.queued in (None, queued)
            and self.decided_at <= now
            and (self.requeue_at is None or now < self.requeue_at)
            and self.share == share
        )


_NOTHING: Final[Mapping[Any, Any]] = {}
