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
    """The image that caused it; empty: it is not a single image."""


PUT_BACK = RetrySpec(limit=2**31, minimum=60.0, maximum=3600.0)
EVICTIONS = RetrySpec(limit=2**31, minimum=30.0, maximum=3600.0)
PULL_TOKENS = 3.0
"""Seconds after which a kubelet that limits its own pulls allows 15 more: by default it allows 10
at once and 5 a second (`registryBurst`, `registryPullQPS`)."""
STABLE = 6 * 3600.0
"""Seconds after which an earlier eviction is ignored."""


@dataclass(frozen=True, slots=True)
class History:
    """The attempts of one group on one node until now. Every method returns the attempts to
    remember after one more attempt.
    """

    earlier: Attempts | None
    spec: RetrySpec
    key: str
    """``node/group``, from which the jitter is made."""
    now: float

    def after(self, cause: Cause) -> Attempts:
        """After a failure.

        Exponential from ``minimum`` to ``maximum``. After a permanent failure, and after ``limit``
        failures, attempts go on at ``maximum``: the operator never gives up while the object
        exists. Where the kubelet limits its own pulls, nothing is wrong, and the first new attempt
        comes after `PULL_TOKENS`.
        """
        count = (self.earlier.count if self.earlier else 0) + 1
        slow = cause.failure.permanent or count >= self.spec.limit
        # The exponent is bounded so that a count in the thousands cannot overflow a float.
        limited = cause.failure == failures.PULL_QPS_EXCEEDED
        least = min(self.spec.minimum, PULL_TOKENS) if limited else self.spec.minimum
        delay = least * 2 ** min(count - 1, 30)
        delay = self.spec.maximum if slow else min(self.spec.maximum, delay)
        return Attempts(
            count=count,
            next_at=self.now + delay * _jitter(f"{self.key}/{count}"),
            reason=cause.failure.reason,
            message=cause.message,
            image=cause.image,
            permanent=cause.failure.permanent,
            at=self.now,
            pods=self._pods + 1,
        )

    def not_created(self, cause: Cause) -> Attempts:
        """After a create that was refused, or whose answer was lost."""
        return replace(self.after(cause), pods=self._pods)

    def removed(self) -> Attempts:
        """After an unfinished puller pod was deleted, but not by the operator.

        The first such pod is created again immediately. Later pods wait as after any failure,
        because the client that deleted the pod probably deletes the next pod, too.
        """
        attempts = self.after(
            Cause(failures.POD_REMOVED, "the puller pod was deleted before it was done")
        )
        return replace(attempts, next_at=self.now) if attempts.count == 1 else attempts

    def put_back(self) -> Attempts:
        """After a finished pod that pins images was deleted and is created again. That is no
        failure, but a loop if another client deletes each new pod, as the controller-manager does
        above its ``--terminated-pod-gc-threshold``. The next pod waits a minute, then two minutes,
        up to an hour.
        """
        return replace(self, spec=PUT_BACK).after(Cause(FailureClass("", False, ""), ""))

    def lost(self, cause: Cause) -> Attempts:
        """After a node has lost an image, or has another image for a tag.

        A kubelet under disk pressure removes the image again after each pull. So the next pull
        waits half a minute, then a minute, up to an hour.
        """
        earlier = self.earlier
        if earlier is not None and (
            earlier.reason != cause.failure.reason or self.now > earlier.at + STABLE
        ):
            earlier = None
        attempts = replace(self, earlier=earlier, spec=EVICTIONS).after(cause)
        return replace(attempts, pods=self._pods + 1)

    @property
    def _pods(self) -> int:
        return self.earlier.pods if self.earlier else 0


def exhausted(attempts: Attempts | None, spec: RetrySpec) -> bool:
    """Whether the node is reported as failed rather than as pending."""
    return (
        attempts is not None
        and bool(attempts.reason)
        and (attempts.permanent or attempts.count >= spec.limit)
    )


def removed_again(attempts: Attempts | None) -> TypeGuard[Attempts]:
    """Whether an image was removed more than once: a loop, which is reported to people."""
    return (
        attempts is not None
        and attempts.reason == failures.EVICTED_BY_KUBELET.reason
        and attempts.count > 1
    )


def stale(attempts: Attempts | None) -> TypeGuard[Attempts]:
    """Whether a tag was last found to be an old image on the node."""
    return attempts is not None and attempts.reason == failures.STALE_MIRROR.reason


def disproved(attempts: Attempts | None, success_at: float) -> bool:
    """Whether images that were pulled at ``success_at`` were found missing or stale after that.
    Both times are by the clock of this process.
    """
    found = (failures.EVICTED_BY_KUBELET.reason, failures.STALE_MIRROR.reason)
    return attempts is not None and attempts.reason in found and success_at <= attempts.at


def outlives_success(attempts: Attempts) -> bool:
    """Whether these attempts record an event after a successful pull rather than a failed pull."""
    after = ("", failures.EVICTED_BY_KUBELET.reason, failures.STALE_MIRROR.reason)
    return attempts.count > 0 and attempts.reason in after


UNSIZED = 7200.0
"""Seconds that a pull of unknown size may take: 36 GB at 5 MB/s."""


def deadline(spec: RetrySpec, queued: int | None) -> float:
    """Seconds after which a pull is given up. ``queued``: compressed bytes to pull; None: unknown.

    10 minutes plus the time for ``queued`` bytes at 5 MB/s, at least 15 minutes. That is generous,
    because the kubelet continues the pull itself, and the next attempt begins only after it.
    """
    if spec.timeout is not None:
        return spec.timeout
    if queued is None:
        return UNSIZED
    return max(900.0, 600.0 + queued / 5e6)


def _jitter(key: str) -> float:
    """0.9 to 1.1, the same for the same key: spreads nodes apart and keeps decisions pure."""
    return 0.9 + 0.2 * hashlib.sha256(key.encode()).digest()[0] / 255
