"""When a failed attempt is tried again, and how long a pull may take (``spec.retry``)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypeGuard

from imagegate.domain import failures
from imagegate.domain.facts import Attempts, RetrySpec
from imagegate.domain.failures import FailureClass


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt failed, or why a node does not hold an image that it held."""

    failure: FailureClass
    message: str
    image: str = ""
    """The image that it is about; empty: not one image."""


PUT_BACK = RetrySpec(limit=2**31, minimum=60.0, maximum=3600.0)
EVICTIONS = RetrySpec(limit=2**31, minimum=30.0, maximum=3600.0)
STABLE = 6 * 3600.0
"""Seconds after which an earlier eviction is history."""


@dataclass(frozen=True, slots=True)
class History:
    """The attempts of one group on one node until now. Every method returns the attempts to
    remember after one more.
    """

    earlier: Attempts | None
    spec: RetrySpec
    key: str
    """``node/group``, from which the jitter is made."""
    now: float

    def after(self, cause: Cause) -> Attempts:
        """After a failure.

        Exponential from ``minimum`` to ``maximum``. After a permanent failure, and after ``limit``
        failures, attempts go on at ``maximum``: nothing is given up while the object exists.
        """
        count = (self.earlier.count if self.earlier else 0) + 1
        slow = cause.failure.permanent or count >= self.spec.limit
        # The exponent is bounded so that a count in the thousands cannot overflow a float.
        delay = self.spec.minimum * 2 ** min(count - 1, 30)
        delay = self.spec.maximum if slow else min(self.spec.maximum, delay)
        return Attempts(
            count=count,
            next_at=self.now + delay * _jitter(f"{self.key}/{count}"),
            reason=cause.failure.reason,
            message=cause.message,
            image=cause.image,
            permanent=cause.failure.permanent,
            at=self.now,
        )

    def removed(self) -> Attempts:
        """After an unfinished puller pod is gone that the operator did not delete.

        The first is put back at once. Later ones wait as after any failure, because whatever
        deleted the pod deletes the next one, too.
        """
        attempts = self.after(
            Cause(failures.POD_REMOVED, "the puller pod was deleted before it was done")
        )
        return replace(attempts, next_at=self.now) if attempts.count == 1 else attempts

    def put_back(self) -> Attempts:
        """After a kept pod that was deleted is put back. That is no failure, but it is a loop if
        something deletes each new pod, as the controller-manager does above its
        ``--terminated-pod-gc-threshold``. The next one waits a minute, then two, up to an hour.
        """
        return replace(self, spec=PUT_BACK).after(Cause(FailureClass("", False, ""), ""))

    def lost(self, cause: Cause) -> Attempts:
        """After a node that held an image is found not to hold it any more, or to have another
        image by its tag.

        A kubelet that collects an image under pressure collects it again: pull, collect, pull. So
        the next pull waits half a minute, then one, up to an hour.
        """
        earlier = self.earlier
        if earlier is not None and (
            earlier.reason != cause.failure.reason or self.now > earlier.at + STABLE
        ):
            earlier = None
        return replace(self, earlier=earlier, spec=EVICTIONS).after(cause)


def exhausted(attempts: Attempts | None, spec: RetrySpec) -> bool:
    """Whether this counts as failed rather than as still being tried."""
    return (
        attempts is not None
        and bool(attempts.reason)
        and (attempts.permanent or attempts.count >= spec.limit)
    )


def removed_again(attempts: Attempts | None) -> TypeGuard[Attempts]:
    """Whether an image was removed more than once: a loop, which a person should know of."""
    return (
        attempts is not None
        and attempts.reason == failures.EVICTED_BY_KUBELET.reason
        and attempts.count > 1
    )


def stale(attempts: Attempts | None) -> TypeGuard[Attempts]:
    """Whether a tag was last seen to mean an old image."""
    return attempts is not None and attempts.reason == failures.STALE_MIRROR.reason


def disproved(attempts: Attempts | None, success_at: float) -> bool:
    """Whether what was pulled at that time has since been found not to be there. Both times are by
    the clock of this process.
    """
    found = (failures.EVICTED_BY_KUBELET.reason, failures.STALE_MIRROR.reason)
    return attempts is not None and attempts.reason in found and success_at <= attempts.at


def outlives_success(attempts: Attempts) -> bool:
    """Whether this is about what happens after a pull rather than about the pull."""
    return attempts.reason in ("", failures.EVICTED_BY_KUBELET.reason, failures.STALE_MIRROR.reason)


UNSIZED = 7200.0
"""Seconds that a pull of unknown size may take: 36 GB at 5 MB/s."""


def deadline(spec: RetrySpec, queued: int | None) -> float:
    """Seconds after which a pull is given up. ``queued``: None where its size is not known.

    By the size: 10 minutes and as long as ``queued`` bytes take at 5 MB/s, at least 15 minutes.
    Generous: the kubelet lets the pull itself go on, and the next attempt begins when it is over.
    """
    if spec.timeout is not None:
        return spec.timeout
    if queued is None:
        return UNSIZED
    return max(900.0, 600.0 + queued / 5e6)


def _jitter(key: str) -> float:
    """0.9 to 1.1, the same for the same key: spreads nodes apart and keeps decisions pure."""
    return 0.9 + 0.2 * hashlib.sha256(key.encode()).digest()[0] / 255
