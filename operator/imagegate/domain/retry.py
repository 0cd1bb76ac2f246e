"""What a failed pull means and when it is tried again.

The classes come from the messages of containerd 2.x and CRI-O as the kubelet passes them on in
``state.waiting.message``; see ``tests/unit/domain/test_retry.py`` for real ones.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from imagegate.domain.facts import Attempts, RetrySpec


class FailureClass(NamedTuple):
    reason: str
    """CamelCase, as it stands in conditions, Events and metrics."""
    permanent: bool
    """Whether trying again soon is pointless: somebody has to change something first."""
    remedy: str


UNKNOWN = FailureClass("PullFailed", False, "see the message of the container runtime")
LATER = FailureClass("PodRejected", False, "the node had no room for the puller pod; tried again")
REFUSED = FailureClass(
    "PodRefused",
    False,
    "the API server refuses the puller pod: create the namespace of spec.pullerNamespace, or allow"
    " the pod in its quota, Pod Security level or policy",
)
TIMED_OUT = FailureClass("PullTimeout", False, "raise retry.timeoutSeconds or look at the network")

# The first match wins, so the specific stands before the general: a 429 is often wrapped in
# "failed to resolve reference", and a DNS failure of a registry contains "not found" nowhere else.
_CLASSES: tuple[tuple[str, FailureClass], ...] = (
    (
        r"no space left on device|disk quota exceeded",
        FailureClass("DiskFull", False, "free or enlarge the node's image filesystem"),
    ),
    (
        r"toomanyrequests|too many requests|\b429\b|rate limit|pull QPS exceeded",
        FailureClass("Throttled", False, "the registry limits requests; lower rollout.maxParallel"),
    ),
    (
        r"no such host|server misbehaving|temporary failure in name resolution|lookup \S+ on",
        FailureClass("NameResolutionFailed", False, "check the registry's name and the node's DNS"),
    ),
    (
        r"x509|tls: |certificate|server gave HTTP response to HTTPS client",
        FailureClass("TLSFailed", False, "check the registry's certificate on the node"),
    ),
    (
        r"connection refused|connection reset|no route to host|network is unreachable|broken pipe",
        FailureClass("RegistryUnreachable", False, "check that the registry is up"),
    ),
    (
        r"no match for platform|no matching manifest|does not match the specified platform"
        r"|no image found in (image index|manifest list) for",
        FailureClass("PlatformMissing", True, "push the image for the node's os and architecture"),
    ),
    (
        r"\b40[13]\b|unauthorized|authorization failed|insufficient_scope|pull access denied"
        r"|access denied|access to the resource is denied|no basic auth credentials|forbidden",
        FailureClass(
            "Unauthorized", True, "check that the image pull secret exists and may read the image"
        ),
    ),
    (
        r"invalid reference format|InvalidImageName|couldn't parse image",
        FailureClass("InvalidImageName", True, "correct the image reference"),
    ),
    (
        r"not found|manifest unknown|manifest_unknown|name unknown|repository name not known"
        r"|does not exist|\b404\b",
        FailureClass("ImageNotFound", True, "push the image or correct the reference"),
    ),
    (
        r"\b50[0-9]\b|internal server error|bad gateway|service unavailable|gateway timeout",
        FailureClass("RegistryError", False, "the registry failed; it is tried again"),
    ),
    (
        r"unexpected eof|short read|unexpected commit digest|failed size validation"
        r"|content size mismatch",
        FailureClass("TransferBroken", False, "the transfer broke off or was damaged; tried again"),
    ),
    (
        r"timeout|timed out|deadline exceeded|context canceled",
        FailureClass("TransferTimeout", False, "the registry was too slow; it is tried again"),
    ),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), cls) for pattern, cls in _CLASSES)


def classify(message: str) -> FailureClass:
    """The class of a failed pull, from the runtime's message."""
    return next((cls for pattern, cls in _COMPILED if pattern.search(message)), UNKNOWN)


NODES_OWN = frozenset({"DiskFull", "PodRejected", "PlatformMissing"})
"""Reasons that lie with the one node: they say nothing of how others would fare."""

_SPECIAL = {cls.reason: cls for cls in (UNKNOWN, LATER, REFUSED, TIMED_OUT)}


def remedy(attempts: Attempts) -> str:
    """What a person can do about this failure."""
    return _SPECIAL.get(attempts.reason, classify(attempts.message)).remedy


def after(
    earlier: Attempts | None,
    failure: FailureClass,
    *,
    spec: RetrySpec,
    key: str,
    now: float,
    image: str,
    message: str,
) -> Attempts:
    """What to remember after one more failure.

    Exponential from ``minimum`` to ``maximum``. A permanent failure, and whatever has failed
    ``limit`` times, goes on at the slow end: nothing is given up while the object exists.
    """
    count = (earlier.count if earlier else 0) + 1
    slow = failure.permanent or count >= spec.limit
    # The exponent is bounded so that a count in the thousands cannot overflow a float.
    delay = spec.maximum if slow else min(spec.maximum, spec.minimum * 2 ** min(count - 1, 30))
    return Attempts(
        count=count,
        next_at=now + delay * _jitter(f"{key}/{count}"),
        reason=failure.reason,
        message=message,
        image=image,
        permanent=failure.permanent,
        at=now,
    )


def exhausted(attempts: Attempts | None, spec: RetrySpec) -> bool:
    """Whether this counts as failed rather than as still being tried."""
    return (
        attempts is not None
        and bool(attempts.reason)
        and (attempts.permanent or attempts.count >= spec.limit)
    )


PUT_BACK = RetrySpec(limit=2**31, minimum=60.0, maximum=3600.0)


def put_back(earlier: Attempts | None, *, key: str, now: float) -> Attempts:
    """What to remember when a kept pod that vanished is put back: no failure, but a loop if
    somebody keeps deleting it, as the controller-manager does above its
    ``--terminated-pod-gc-threshold``. The next one waits a minute, then two, up to an hour.
    """
    nothing = FailureClass("", False, "")
    return after(earlier, nothing, spec=PUT_BACK, key=key, now=now, image="", message="")


def _jitter(key: str) -> float:
    """0.9 to 1.1, the same for the same key: spreads nodes apart and keeps decisions pure."""
    return 0.9 + 0.2 * hashlib.sha256(key.encode()).digest()[0] / 255
