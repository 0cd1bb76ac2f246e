"""What a failed pull means and when it is tried again.

The classes come from the messages of containerd 2.x, 1.7 and CRI-O as the kubelet passes them on
in ``state.waiting.message``; ``tests/unit/domain/messages/`` has recorded ones.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeGuard

from imagegate.domain.facts import Attempts, Pod, RetrySpec


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
    "the API server refuses the puller pod: create the namespace of spec.pullerNamespace, allow the"
    " pod in its quota, Pod Security level or policy, or give its containers what a quota or"
    " LimitRange asks for (puller.resources of the chart)",
)
UNAVAILABLE = FailureClass(
    "PodNotCreated",
    False,
    "the API server or an admission webhook fails when the puller pod is created: see the message,"
    " and correct or remove the webhook that it names",
)
UNFIT = FailureClass(
    "PullerFailed",
    False,
    "the image of the chart's puller.container.image must have a static /bin/busybox that the"
    " node's architecture runs",
)
DROPPED = FailureClass(
    "ImageVolumesDropped",
    False,
    "an API server of the cluster has no image volumes: set the chart's puller.mode to Container",
)
REMOVED = FailureClass(
    "PodRemoved",
    False,
    "something deletes puller pods before they are done: the audit log says what (preemption by the"
    " scheduler, a descheduler, a clean-up policy)",
)
TIMED_OUT = FailureClass("PullTimeout", False, "raise retry.timeoutSeconds or look at the network")
DISK_FULL = FailureClass(
    "DiskFull", True, "free or enlarge the node's image file system, or raise disk.maxUsagePercent"
)
"""Said by the disk guard before a pull, or by the runtime in it. Permanent: only a person or the
kubelet's collector, which looks every 5 minutes, makes room."""
EVICTED = FailureClass(
    "EvictedByKubelet",
    False,
    "the images do not fit beside what else the node holds: enlarge its disk, or leave it out",
)

STALE = FailureClass(
    "StaleMirror",
    False,
    "a mirror between the nodes and the registry still serves what the tag was before: have it look"
    " the tag up anew, or shorten the time for which it keeps tags",
)
"""Not a failed pull: the node has the new image, but by its digest only."""

NOT_FOUND = FailureClass("ImageNotFound", True, "push the image or correct the reference")
UNAUTHORIZED = FailureClass(
    "Unauthorized",
    True,
    "check that the image pull secret exists in the puller namespace (spec.pullerNamespace) and may"
    " read the image",
)
BROKEN = FailureClass("TransferBroken", False, "the transfer broke off or was damaged; tried again")
UNREACHABLE = FailureClass("RegistryUnreachable", False, "check that the registry is up")
STORE = FailureClass(
    "NodeStoreDamaged",
    False,
    "the node's image store has lost content, or was collected meanwhile; fetched again. If it goes"
    " on, remove the image on the node (crictl rmi), or replace the node",
)
NOT_CREATED = FailureClass(
    "ContainerNotCreated",
    False,
    "the node's container runtime can make no container of the image, or of the puller pod: see its"
    " message",
)
NOT_THERE = frozenset({STORE.reason, NOT_CREATED.reason})
"""The node says that it has the image, and does not have all of it."""
SNAPSHOTTER = FailureClass(
    "SnapshotterFailed",
    False,
    "the node's snapshotter is missing, or something forbids it to unpack: look at containerd's"
    " configuration and at the node's security modules",
)
DISK = FailureClass(
    "NodeDiskFailed", False, "the node's disk is read-only or damaged: replace the node"
)
LIMIT = FailureClass(
    "NodeLimitReached", False, "raise the node's limits of open files, inotify instances or memory"
)
IDS = FailureClass(
    "IdsOutOfRange",
    False,
    "the layer has user or group ids that the node's user namespace lacks: give it more in"
    " /etc/subuid and /etc/subgid, or build the image with smaller ids",
)
PROXY = FailureClass(
    "ProxyRefused",
    True,
    "the proxy between the node and the registry refuses: correct the HTTPS_PROXY, NO_PROXY and"
    " login of the node's container runtime, or let the proxy allow the registry",
)
PROXY_FAILED = FailureClass(
    "ProxyFailed",
    False,
    "the proxy between the node and the registry does not answer: check it, and the HTTPS_PROXY and"
    " NO_PROXY of the node's container runtime",
)
STORAGE = FailureClass(
    "RegistryStorageRefused",
    False,
    "the store that the registry redirects to refuses, not the registry: check the registry's own"
    " access to it, the clocks, and what stands between the node and the store",
)
WEB_PAGE = FailureClass(
    "NotARegistry",
    False,
    "what answers is no registry (a mirror, a proxy or a login page): check the node's mirror"
    " configuration and the registry's name",
)

# The first match wins, so the specific stands before the general: a 429 is often wrapped in
# "failed to resolve reference". A bare number is never enough ("short read: expected 403 bytes" is
# not about a status), and neither is a bare "not found", which is said of snapshots, leases and
# content in the node's own store as well.
_CLASSES: tuple[tuple[str, FailureClass], ...] = (
    (r"no space left on device|disk quota exceeded", DISK_FULL),
    (
        r"pull QPS exceeded",
        FailureClass(
            "PullQPSExceeded", False, "the kubelet limits its own pulls: raise its registryPullQPS"
        ),
    ),
    (
        r"SignatureValidationFailed|signature validation failed|source image rejected",
        FailureClass(
            "SignatureInvalid", True, "sign the image, or correct the node's signature policy"
        ),
    ),
    (
        r"image verifier|blocked pull of",
        FailureClass(
            "VerifierRefused",
            True,
            "an image verifier of the node's container runtime refuses the image: see its message",
        ),
    ),
    (
        r"toomanyrequests|too many requests|\bstatus\b.*\b429\b|rate limit",
        FailureClass("Throttled", False, "the registry limits requests; lower rollout.maxParallel"),
    ),
    (
        r"no such host|server misbehaving|temporary failure in name resolution|lookup \S+ on",
        FailureClass("NameResolutionFailed", False, "check the registry's name and the node's DNS"),
    ),
    (r"proxy authentication required|\bstatus\b.*\b407\b", PROXY),
    # Of a CONNECT that is answered with an error Go passes on the reason phrase alone.
    (r"failed to do request: [a-z]+\s*: (forbidden|unauthorized|method not allowed)\s*$", PROXY),
    (
        r"proxyconnect|socks connect"
        r"|failed to do request: [a-z]+\s*: (bad gateway|service unavailable|gateway time-?out"
        r"|internal server error)\s*$",
        PROXY_FAILED,
    ),
    (
        r"x509|tls: |certificate|server gave HTTP response to HTTPS client",
        FailureClass("TLSFailed", False, "check the registry's certificate on the node"),
    ),
    (
        r"connection refused|connection reset|no route to host|(network|host) is (unreachable|down)"
        r"|broken pipe|cannot assign requested address"
        r"|RegistryUnavailable|registry is unavailable",
        UNREACHABLE,
    ),
    (
        r"no match for platform|no matching manifest|does not match the specified platform"
        r"|no image found in (image index|manifest list) for",
        FailureClass("PlatformMissing", True, "push the image for the node's os and architecture"),
    ),
    (
        r"cannot be pulled due to configured policy|\bstatus\b.*\b412\b|precondition failed$"
        r"|\bstatus\b.*\b451\b|quarantined?\b",
        FailureClass(
            "RefusedByPolicy",
            True,
            "the registry's own policy refuses this image (vulnerabilities, quarantine, a missing"
            " signature): see what the registry says of it",
        ),
    ),
    (
        r"no longer supported since|schema ?(version )?1\b|manifest\.v1\+",
        FailureClass(
            "SchemaUnsupported",
            True,
            "the image has a manifest of schema 1, which runtimes do not support any more: rebuild"
            " and push it",
        ),
    ),
    (
        r"decryption|decrypt\b|missing private key",
        FailureClass(
            "DecryptionKeyMissing", True, "the image is encrypted: give the node the key for it"
        ),
    ),
    (
        r"stream processor|no processor for media-?type|unsupported (compression|layer)",
        FailureClass(
            "LayerUnsupported",
            True,
            "the node's container runtime cannot unpack this kind of layer: push the image with"
            " gzip or zstd layers",
        ),
    ),
    (r"text.html|doctype html|<html", WEB_PAGE),
    (
        r"(unsupported|unknown|unexpected|invalid) (config )?media ?type"
        r"|is not an? (container )?image\b|unsupported artifact",
        FailureClass(
            "NotAnImage",
            True,
            "this is an artifact (a chart, say) that the node's container runtime cannot unpack:"
            " correct the reference",
        ),
    ),
    (
        r"short-name|short name mode",
        FailureClass(
            "ShortName",
            True,
            "write the registry's name before the image's: the node's container runtime does not"
            " know where to look for a short name",
        ),
    ),
    (
        r"pull policy of never",
        FailureClass(
            "ImageNeverPulled",
            True,
            "something has set the puller pod's imagePullPolicy to Never: exempt the puller"
            " namespace from that policy or webhook",
        ),
    ),
    (
        r"parent snapshot|snapshot .*does not exist|content digest|unable to find content"
        r"|missing content|no such content|lease .*(not found|does not exist)"
        r"|(layer|blob) does not exist in|layer not known|image not known"
        r"|failed to get (reader|content)|locked for .* since|ref .* locked",
        STORE,
    ),
    (
        r"snapshotter \S* ?(was )?not (found|loaded)|snapshotter not loaded|no such snapshotter"
        r"|failed to (get|start|load) snapshotter|unknown service .*snapshots",
        SNAPSHOTTER,
    ),
    (r"read-only file system|input.output error|structure needs cleaning", DISK),
    (
        r"too many open files|inotify|cannot allocate memory|resource temporarily unavailable"
        r"|too many levels of",
        LIMIT,
    ),
    (r"lchown .*invalid argument|potentially insufficient UIDs or GIDs|id ?mapping", IDS),
    (r"operation not permitted|mount callback failed on .*permission denied", SNAPSHOTTER),
    # A token is asked of the registry's own service, wherever that is.
    (r"(oauth|anonymous|auth|bearer) token.*\bstatus\b.*\b40[13]\b", UNAUTHORIZED),
    (r"STORAGE \W*40[13]\b", STORAGE),
    (
        r"\bstatus\b.*\b40[13]\b|unauthorized|authorization failed|insufficient_scope"
        r"|(?<!permission )\bdenied\b|no basic auth credentials|forbidden"
        r"|credentials could not be verified|credentials re-verification",
        UNAUTHORIZED,
    ),
    (
        r"invalid reference format|InvalidImageName|couldn't parse image",
        FailureClass("InvalidImageName", True, "correct the image reference"),
    ),
    (
        r"manifest[ _]unknown|name[ _]unknown|repository name not known|repository does not exist"
        r"|\bstatus\b.*\b404\b"
        # What is said of the reference, or of what the registry was asked for. The names are gone.
        r"|failed to resolve( reference| image)?\b[\s:]*not found"
        r"|from remote: not found|content at\W*not found|manifest for\W*not found"
        r"|(error reading|reading) manifest\b.*\bnot found"
        r"|requested (image|access to the resource)\W*(is )?not found|artifact\W*not found",
        NOT_FOUND,
    ),
    (
        r"\bstatus\b.*\b5\d\d\b|internal server error|bad gateway|service unavailable"
        r"|gateway timeout",
        FailureClass("RegistryError", False, "the registry failed; it is tried again"),
    ),
    (
        r"\beof\b|short read|unexpected commit digest|digest did not match"
        r"|failed size validation|content size mismatch|goaway|http2: |stream error"
        r"|invalid tar header|archive/tar|gzip: |zstd: |magic number mismatch|invalid checksum",
        BROKEN,
    ),
    (r"^CreateContainer(Config)?Error\b", NOT_CREATED),
    (
        r"timeout|timed out|deadline exceeded|context canceled",
        FailureClass("TransferTimeout", False, "the registry was too slow; it is tried again"),
    ),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), cls) for pattern, cls in _CLASSES)
# What names things instead of saying what is wrong: an image may be called "forbidden:404".
_NAMES = re.compile(
    r'"[^"]*"|(?<!\S)(?!\W?(input/output|text/html)\b)\S*/\S*|\breading manifest \S+ in\b'
)
# A redirect: the paths of a registry's API begin with /v2/.
_STORAGE = re.compile(r"\brequest to https?://[^/\s]+/(?!v2/)\S*?:?(?=\s)")
_DECIDES = (
    # CRI-O: what the registry itself said stands behind what its mirrors did.
    re.compile(r"\(Mirrors also failed: \[.*?\]\): (?P<last>.*)", re.DOTALL),
    # CRI-O: pulled as an image first, then as an artifact.
    re.compile(r"pull image err: (?P<last>.*?); artifact err: ", re.DOTALL),
)
LONGEST_MESSAGE = 4096
"""Characters of a message that are looked at. The longest that runtimes were seen to write has some
hundred. A node may write any number, and the patterns take the square of it: 64 KiB held the event
loop for more than a minute."""


def classify(message: str) -> FailureClass:
    """The class of a failed pull, from the runtime's message."""
    message = message[:LONGEST_MESSAGE]
    for several in _DECIDES:
        if found := several.search(message):
            message = found["last"]
    if "token" not in message:
        message = _STORAGE.sub("request to STORAGE", message)
    text = _NAMES.sub(" ", message)
    return next((cls for pattern, cls in _COMPILED if pattern.search(text)), UNKNOWN)


def ended(reason: str) -> FailureClass:
    """The class of a pod that failed before all of its images were pulled."""
    return UNFIT if reason == UNFIT.reason else LATER


NODES_OWN = frozenset(
    {
        "DiskFull",
        "PodRejected",
        "PodRemoved",
        "PlatformMissing",
        "PullQPSExceeded",
        *(cls.reason for cls in (STORE, NOT_CREATED, SNAPSHOTTER, DISK, LIMIT, IDS)),
    }
)
"""Reasons that lie with the one node: they say nothing of how others would fare."""

CLASSES: tuple[FailureClass, ...] = (
    *dict.fromkeys(cls for _, cls in _CLASSES),
    EVICTED,
    STALE,
    UNFIT,
    TIMED_OUT,
    LATER,
    REFUSED,
    UNAVAILABLE,
    REMOVED,
    DROPPED,
    UNKNOWN,
)
"""All there are; docs/operations.md has a table of them."""
_BY_REASON = {cls.reason: cls for cls in CLASSES}


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
        attempts = self.after(Cause(REMOVED, "the puller pod was deleted before it was done"))
        return replace(attempts, next_at=self.now) if attempts.count == 1 else attempts

    def put_back(self) -> Attempts:
        """After a kept pod that was deleted is put back. That is no failure, but a loop if somebody
        keeps deleting it, as the controller-manager does above its
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


def remedy(attempts: Attempts) -> str:
    """What a person can do about this failure."""
    return _BY_REASON.get(attempts.reason, UNKNOWN).remedy


def exhausted(attempts: Attempts | None, spec: RetrySpec) -> bool:
    """Whether this counts as failed rather than as still being tried."""
    return (
        attempts is not None
        and bool(attempts.reason)
        and (attempts.permanent or attempts.count >= spec.limit)
    )


def removed_again(attempts: Attempts | None) -> TypeGuard[Attempts]:
    """Whether an image was removed more than once: a loop, which a person should know of."""
    return attempts is not None and attempts.reason == EVICTED.reason and attempts.count > 1


def stale(attempts: Attempts | None) -> TypeGuard[Attempts]:
    """Whether a tag was last seen to mean an old image."""
    return attempts is not None and attempts.reason == STALE.reason


def disproved(attempts: Attempts | None, success_at: float) -> bool:
    """Whether what was pulled at that time has since been found not to be there. Both times are by
    the clock of this process.
    """
    found = (EVICTED.reason, STALE.reason)
    return attempts is not None and attempts.reason in found and success_at <= attempts.at


def outlives_success(attempts: Attempts) -> bool:
    """Whether this is about what happens after a pull rather than about the pull."""
    return attempts.reason in ("", EVICTED.reason, STALE.reason)


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


def blamed(pod: Pod, message: str) -> str:
    """The image of the pod that a message is about: the one it names, or else the first."""
    named = (image for image in pod.images if image in message)
    return next(named, pod.images[0] if pod.images else "")


def _jitter(key: str) -> float:
    """0.9 to 1.1, the same for the same key: spreads nodes apart and keeps decisions pure."""
    return 0.9 + 0.2 * hashlib.sha256(key.encode()).digest()[0] / 255
